"""Read noise: one Gaussian per output against the reference that reads every cell by itself, and where they part.

Many chips with the same quiet cells are read once each: their draws are independent, and one call reads them all.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.wires import Wires
from nvcim.randomness import named_generator
from tests.fidelity.tables import decimals, percent, table

# Two-bit cells from 10 to 100 microsiemens; nothing but read noise is random.
QUIET = {
    "device": "RRAM4",
    "sigma": 0.0,
    "dac_bits": None,
    "adc_bits": None,
    "g_min_us": 10.0,
    "g_max_us": 100.0,
}
CHIPS, INPUTS, OUTPUTS = 3000, 16, 8


def weights(inputs: int = INPUTS, outputs: int = OUTPUTS) -> Tensor:
    """Normal weights [inputs, outputs]."""
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(31))


def vector(inputs: int = INPUTS) -> Tensor:
    """One input vector [1, inputs]."""
    return torch.randn(1, inputs, generator=torch.Generator().manual_seed(32))


def reads(mode: str, fields: dict[str, object], chips: int = CHIPS) -> Tensor:
    """One read of each of `chips` chips in a mode: [chips, outputs], float64."""
    config = CrossbarConfig.model_validate(QUIET | fields | {"read_mode": mode})
    crossbar = Crossbar.program(
        weights().expand(chips, -1, -1), config, named_generator(33, mode, repr(sorted(fields.items())))
    )
    return crossbar.matmul(vector())[:, 0].double()


@dataclass(frozen=True)
class Pair:
    """Both modes on one setting.

    shift: the largest difference of an output's means over its standard error. spread: sd of cell mode over that of
    output mode.
    """

    name: str
    shift: float
    spread: float


def pair(name: str, fields: dict[str, object], chips: int = CHIPS) -> Pair:
    """Read in both modes."""
    output, cell = (reads(mode, fields, chips) for mode in ("output", "cell"))
    variance = output.var(dim=0), cell.var(dim=0)
    gap = cell.mean(dim=0) - output.mean(dim=0)
    error = ((variance[0] + variance[1]) / chips).sqrt()
    return Pair(
        name,
        shift=float((gap / error).abs().max()),
        spread=float((variance[1] / variance[0]).mean().sqrt()),
    )


AGREE: dict[str, dict[str, object]] = {
    "relative, 2 % of the conductance": {"read_noise": 0.02},
    "relative, 10 %": {"read_noise": 0.1},
    "flat, 0.5 % of the range": {"read_noise_floor": 0.005},
    "flat, 2 % of the range": {"read_noise_floor": 0.02},
    "both": {"read_noise": 0.05, "read_noise_floor": 0.01},
    "thermal and shot, 0.2 V, 1 GHz": {"read": {"voltage_v": 0.2, "bandwidth_hz": 1e9}},
    "both, digital accumulation": {"read_noise": 0.05, "read_noise_floor": 0.01, "accumulate": "digital"},
    "both, 6-bit ADC": {"read_noise": 0.05, "read_noise_floor": 0.01, "adc_bits": 6},
}


@cache
def agreements() -> tuple[Pair, ...]:
    """Where both modes have to agree: cells well above zero siemens, ideal wires."""
    return tuple(pair(name, fields) for name, fields in AGREE.items())


@dataclass(frozen=True)
class Clipping:
    """Flat read noise on cells that turn off fully: what cutting at zero siemens leaves of it.

    floor: sigma, of the range. mean: shift of a cell at level 0, of the range. mean_expected, spread_expected: of a
    Gaussian cut at zero, sigma / sqrt(2 pi) and sqrt(1/2 - 1 / (2 pi)) sigma. spread: sd of such a cell over sigma.
    """

    floor: float
    mean: float
    mean_expected: float
    spread: float
    spread_expected: float


def clipping(floor: float) -> Clipping:
    """One-bit weights of 0 beside one of 1 in the one-sided scheme: cells at level 0, read cell by cell."""
    fields = {"scheme": "one_sided", "weight_bits": 3, "read_noise_floor": floor, "g_min_us": 0.0}
    config = CrossbarConfig.model_validate(QUIET | fields | {"read_mode": "cell"})
    weight = torch.zeros(2, 40)
    weight[0] = 1.0
    crossbar = Crossbar.program(weight.expand(CHIPS, -1, -1), config, named_generator(34, str(floor)))
    read = crossbar.matmul(torch.tensor([[0.0, 1.0]]))[:, 0].double()
    expected = 1 / math.sqrt(2 * math.pi), math.sqrt(0.5 - 0.5 / math.pi)
    return Clipping(floor, float(read.mean()), floor * expected[0], float(read.std()) / floor, expected[1])


@cache
def clippings() -> tuple[Clipping, ...]:
    """Several sigmas."""
    return tuple(clipping(floor) for floor in (0.002, 0.01, 0.05))


@dataclass(frozen=True)
class Onset:
    """Relative read noise, by both modes on a differential array: where the cut at zero starts to matter."""

    sigma: float
    spread: float
    expected: float


def rectified(sigma: float) -> float:
    """sd of max(1 + sigma z, 0) over sigma, z standard normal: E and E of the square in closed form."""
    density = math.exp(-0.5 / sigma**2) / math.sqrt(2 * math.pi)
    below = 0.5 * math.erfc(1 / sigma / math.sqrt(2))
    mean = (1 - below) + sigma * density
    square = (1 + sigma**2) * (1 - below) + sigma * density
    return math.sqrt(square - mean**2) / sigma


@cache
def onsets() -> tuple[Onset, ...]:
    """Relative sigmas from 10 % to 100 %."""
    sigmas = (0.1, 0.3, 0.5, 0.7, 1.0)
    return tuple(Onset(s, pair(f"{s}", {"read_noise": s}).spread, rectified(s)) for s in sigmas)


@dataclass(frozen=True)
class WireNoise:
    """sd of a read's noise with wires, by the engine's rule over that by the exact derivative; worst and rms output.

    ignored: sd if wires left the noise alone, over the exact one. sampled: sd by the per-cell mode over the exact one;
    None where that would take long.
    """

    size: int
    ohm: float
    inputs: str
    typical: float
    worst: float
    ignored: float
    sampled: float | None


def wire_noise(size: int, ohm: float, inputs: str, chips: int | None) -> WireNoise:
    """One tile of two-bit weights, 5 % relative read noise; the exact derivative of each output to each cell.

    To first order in the noise an output's variance is the sum over cells of (d output / d G)^2 sigma^2 G^2; the
    engine takes x G_effective / G for the derivative, which leaves out that other rows' drivers share the wires.
    """
    noise, wires = 0.05, {"r_word_ohm": ohm, "r_bit_ohm": ohm}
    fields: dict[str, object] = {
        "weight_bits": 3,
        "read_noise": noise,
        "rows": size,
        "cols": size,
        "wires": wires,
    }
    config = CrossbarConfig.model_validate(QUIET | fields)
    x = vector(size) if inputs == "both signs" else vector(size).abs()
    crossbar = Crossbar.program(weights(size, size), config, torch.Generator().manual_seed(35))
    span = 90e-6
    cells = (crossbar.cells().conductance[0].double() * span + 10e-6).requires_grad_()
    seen = effective_conductance(cells, Wires.model_validate(wires))
    scale = float(weights(size, size).abs().max()) / span  # the full range stands for the largest weight
    currents = x[0].double() @ (seen[0] - seen[1]) * scale
    exact = torch.zeros(size, dtype=torch.float64)
    # Some outputs stand for all, as each needs a backward pass.
    columns = torch.arange(0, size, 1 if size <= 16 else size * size // 512)
    for column in columns.tolist():
        (gradient,) = torch.autograd.grad(currents[column], cells, retain_graph=True)
        exact[column] = (gradient * cells.detach() * noise).square().sum().sqrt()
    variance = crossbar.state_dict()["variance"][0, 0].double()
    ratio = (x[0].double().square() @ variance).sqrt()[columns] / exact[columns]
    bare = (x[0].double().square() @ (cells.detach() * noise * scale).square().sum(dim=0)).sqrt()[columns]
    sampled = None
    if chips is not None:
        many = Crossbar.program(
            weights(size, size).expand(chips, -1, -1),
            config.model_copy(update={"read_mode": "cell"}),
            named_generator(36, size, str(ohm), inputs),
        )
        found = many.matmul(x)[:, 0].double().var(dim=0)[columns]
        sampled = float((found / exact[columns].square()).mean().sqrt())
    return WireNoise(
        size,
        ohm,
        inputs,
        typical=float(ratio.square().mean().sqrt()),
        worst=float(ratio[(ratio - 1).abs().argmax()]),
        ignored=float((bare / exact[columns]).square().mean().sqrt()),
        sampled=sampled,
    )


@cache
def wire_noises() -> tuple[WireNoise, ...]:
    """Sizes, resistances, and inputs of one or both signs."""
    both, one = "both signs", "one sign"
    cases: list[tuple[int, float, str, int | None]]
    cases = [(16, ohm, inputs, 250) for ohm in (1.0, 5.0, 20.0) for inputs in (both, one)]
    cases += [(size, ohm, inputs, None) for size in (64, 128) for ohm in (1.0, 5.0) for inputs in (both, one)]
    return tuple(wire_noise(*case) for case in cases)


@dataclass(frozen=True)
class Averaging:
    """sd of the mean of several reads of one vector over the sd of one read."""

    reads: int
    spread: float


@cache
def averagings() -> tuple[Averaging, ...]:
    """Up to 256 reads."""
    found = []
    for count in (1, 4, 16, 64, 256):
        config = CrossbarConfig.model_validate(QUIET | {"read_noise": 0.05})
        crossbar = Crossbar.program(weights(INPUTS, 64), config, torch.Generator().manual_seed(37))
        y = crossbar.matmul(vector().expand(256 * 64, -1)).double().reshape(-1, count, 64).mean(dim=1)
        one = crossbar.state_dict()["variance"][0, 0].double()
        sigma = (vector()[0].double().square() @ one).sqrt()
        found.append(Averaging(count, float((y / sigma).var(dim=0).mean().sqrt())))
    return tuple(found)


def section() -> str:
    """The page's part."""
    first = table(
        ["read noise", "means differ by at most (standard errors)", "sd cell by cell / per output"],
        [[p.name, decimals(p.shift, 1), decimals(p.spread, 3)] for p in agreements()],
    )
    second = table(
        ["flat noise, of the range", "mean of a cell at zero, of the range", "expected", "sd / sigma", "expected"],
        [
            [percent(c.floor, 1), percent(c.mean, 3), percent(c.mean_expected, 3), decimals(c.spread, 3),
             decimals(c.spread_expected, 3)]
            for c in clippings()
        ],
    )  # fmt: skip
    third = table(
        ["relative noise", "sd cell by cell / per output", "expected"],
        [[percent(o.sigma, 0), decimals(o.spread, 3), decimals(o.expected, 3)] for o in onsets()],
    )
    fourth = table(
        ["tile", "ohm", "inputs", "engine / exact", "worst output", "wires left out / exact", "cell by cell / exact"],
        [
            [f"{w.size} x {w.size}", f"{w.ohm:g}", w.inputs, decimals(w.typical, 3), decimals(w.worst, 3),
             decimals(w.ignored, 3), "-" if w.sampled is None else decimals(w.sampled, 2)]
            for w in wire_noises()
        ],
    )  # fmt: skip
    fifth = table(
        ["reads averaged", "sd / sd of one read", "1 / sqrt(reads)"],
        [[str(a.reads), decimals(a.spread, 3), decimals(a.reads**-0.5, 3)] for a in averagings()],
    )
    return _TEXT.format(first=first, second=second, third=third, fourth=fourth, fifth=fifth)


_TEXT = """\
## 3. Read noise

Reads of independent Gaussian cells add up to one Gaussian per output, which is what `read_mode: output` draws.
`read_mode: cell` draws every cell's noise for every vector. 16 x 8 weights of 8 bits, cells of 10 to 100 uS, ideal
wires, 3000 chips read once (seeds 31 to 33); 24,000 products a side scatter the ratio by 0.0065:

{first}

**A cell cannot conduct less than nothing.** Read cell by cell, noise is cut at zero siemens; per output it is not.
Flat noise (`read_noise_floor`) on cells that turn off fully (g_min 0, or unknown) is the case that shows: half of the
draws of a cell at level 0 are cut, so its mean rises by 0.4 sigma and its noise shrinks to 0.58. In a pair the shifts
of both sides cancel where both are at level 0. Seed 34:

{second}

Relative noise keeps clear of zero until its sigma is a third of the conductance; expected, by the closed form of a
Gaussian cut at zero:

{third}

**Wires.** A read's noise passes through the wires. The engine scales each cell's variance by the square of what its
wires leave of it; exact, to first order, is the derivative of each output with respect to each cell, which also knows
that other rows' currents lower the voltage at a cell. One tile of two-bit weights, 5 % relative noise, cells of 10 to
100 uS, sd of the outputs' noise as ratios (16 outputs of the 16 x 16 tiles, 8 and 4 of the larger ones), inputs
normal with both signs or their magnitudes; the per-cell mode with exact wires on 250 chips, which scatters by 0.01
(seeds 31, 32, 35, 36):

{fourth}

With inputs of both signs the drops along a bit line cancel in part and the rule is close; inputs of one sign all pull
in the same direction, and the rule overstates the noise, the more the wires take. It errs on the side of more noise.

**Time.** Every read draws anew, so averaging helps as it does for white noise (seed 37):

{fifth}

On a chip random telegraph noise and the slow part of 1/f noise persist from one read to the next, and averaging stops
helping there. That is not modelled: the spread over cells is right, its correlation in time is not.
"""
