"""The statistical noise model of the paper's group against the crossbar that is simulated cell by cell.

Three readings of that model are compared with the write of a crossbar, each by the mean and the variance of a product
x @ w over fresh writes:

  level-wise, per cell   every cell of every slice and side is off by the sigma of its own level; added up by hand here
  published code         one draw per weight, whose size depends on |w| (`published.group_sigma`)
  pair's form            the same and the pair's other cell, at level 0 (`nvcim.prompts.noise`, which training uses)
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.prompts.noise import LevelNoise, add_level_noise, level_noise
from nvcim.randomness import named_generator
from tests.fidelity.published import MIDDLE, group_sigma
from tests.fidelity.tables import decimals, table

DEVICES = ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6")
UNITS = ("level_step", "full_range")
WEIGHTS = ("normal", "uniform", "sparse", "binary", "small")
INPUTS, OUTPUTS, WRITES = 64, 32, 2000
SIGMA, BITS = 0.1, 8


@dataclass(frozen=True)
class Agreement:
    """One device, unit of sigma, and distribution of weights.

    mean: the largest deviation of an output's mean from that of its levels, in standard errors. per_cell: variance
    found on the crossbar over that of the level-wise model per cell. pair: variance drawn by the pair's form over
    that found on the crossbar. pair_closed: the same by closed forms, without sampling error. pair_own: variance
    drawn by the pair's form over its closed form. published: variance found on the crossbar over that of the published
    code; published_closed: the same by closed forms.
    """

    device: str
    unit: str
    weights: str
    mean: float
    per_cell: float
    pair: float
    pair_closed: float
    pair_own: float
    published: float
    published_closed: float


def weights_of(kind: str) -> Tensor:
    """Weights [INPUTS, OUTPUTS] of a distribution: float32, the largest magnitude is 1."""
    generator = torch.Generator().manual_seed(11)
    normal = torch.randn(INPUTS, OUTPUTS, generator=generator)
    chance = torch.rand(INPUTS, OUTPUTS, generator=generator)
    made = {
        "normal": normal,
        "uniform": 2 * chance - 1,
        "sparse": torch.where(chance < 0.1, normal, 0.0),
        "binary": normal.sign(),
        "small": torch.where(torch.arange(INPUTS * OUTPUTS).reshape(INPUTS, OUTPUTS) > 0, 0.13, 1.0)
        * normal.sign(),
    }[kind]
    return made / made.abs().max()


def inputs() -> Tensor:
    """One input vector [1, INPUTS]."""
    return torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(12))


def config_of(device: str, unit: str) -> CrossbarConfig:
    """A crossbar whose only flaw is how it is written."""
    fields = {"device": device, "sigma": SIGMA, "sigma_unit": unit, "weight_bits": BITS}
    return CrossbarConfig.model_validate(fields | {"dac_bits": None, "adc_bits": None})


def by_levels(weight: Tensor, config: CrossbarConfig) -> tuple[Tensor, Tensor]:
    """Mean and variance of every weight [in, out], float64, from the levels of its cells; by hand, for 8-bit weights.

    7 bits of magnitude are cut into digits from the most significant bit; a digit of a one-bit cell counts 2^i / 127,
    one of a two-bit cell 3 * 4^i / 2 / 127 at full conductance. The other side of the pair holds zeros.
    """
    cell = config.cell()
    conductance = torch.tensor(cell.level_conductance, dtype=torch.float64)
    unit = 1 if config.sigma_unit == "full_range" else 1 / (cell.levels - 1)
    spread = torch.tensor(cell.level_sigma, dtype=torch.float64) / 0.01 * config.sigma * unit
    step = float(weight.abs().max()) / 127
    integers = (weight.double() / step).round()
    value = integers.abs().long() * (2 if cell.bits == 2 else 1)
    mean, variance = torch.zeros_like(integers), torch.zeros_like(integers)
    for index in range(4 if cell.bits == 2 else 7):
        digit = value // cell.levels**index % cell.levels
        factor = 3 * 4**index / 2 if cell.bits == 2 else 2**index
        mean += factor * (conductance[digit] - conductance[0])
        variance += factor**2 * (spread[digit] ** 2 + spread[0] ** 2)
    return mean * integers.sign() * step, variance * step**2


def pair_variance(weight: Tensor, noise: LevelNoise) -> Tensor:
    """Variance of every weight [in, out] in the pair's form, by its formula."""
    share = weight.abs() / weight.abs().max()
    middle = (share > MIDDLE[0]) & (share < MIDDLE[1])
    sigma = torch.where(middle, noise.middle, noise.edge).double() * weight.abs().max()
    return sigma.square()


def agreement(device: str, unit: str, kind: str) -> Agreement:
    """Write WRITES crossbars, draw the pair's form as often, and compare the products."""
    config, weight, x = config_of(device, unit), weights_of(kind), inputs()
    squares = x.double().square()
    mean, variance = by_levels(weight, config)
    mean, variance = x.double() @ mean, squares @ variance
    generator = named_generator(13, device, unit, kind)  # each figure its own draws
    crossbar = Crossbar.program(weight.expand(WRITES, -1, -1), config, generator)
    off = crossbar.matmul(x)[:, 0].double() - mean
    score = off / variance.sqrt()
    noise = level_noise(config)
    noisy = add_level_noise(weight.repeat(1, WRITES, 1).reshape(1, -1, OUTPUTS), [noise], [generator])
    drawn = (x @ (noisy.reshape(WRITES, INPUTS, OUTPUTS) - weight))[:, 0].double()
    formula = squares @ pair_variance(weight, noise)
    published = squares @ group_sigma(weight, device, unit, SIGMA).square()
    found, pair = score.square().mean(), (drawn.square() / variance).mean()
    return Agreement(
        device,
        unit,
        kind,
        mean=float(score.mean(dim=0).abs().max()) * WRITES**0.5,
        per_cell=float(found),
        pair=float(pair / found),
        pair_closed=float((formula / variance).mean()),
        pair_own=float((drawn.square() / formula).mean()),
        published=float((off.square() / published).mean()),
        published_closed=float((variance / published).mean()),
    )


@cache
def agreements() -> tuple[Agreement, ...]:
    """Every device, distribution and unit."""
    return tuple(agreement(d, unit, kind) for d in DEVICES for kind in WEIGHTS for unit in UNITS)


@dataclass(frozen=True)
class Departure:
    """What one cause beyond programming variation does to products, in standard deviations of the model's noise.

    bias: rms over outputs of (mean over writes - x @ quantised w). spread: of the outputs over writes. total: rms
    error. expected: the total from a closed form, None where there is none.
    """

    cause: str
    bias: float
    spread: float
    total: float
    expected: float | None


CHIPS, VECTORS = 64, 16
LITERAL = Path(__file__).with_name("evaxb_leak.yaml")
RANGE = {"device": "RRAM4", "g_min_us": 1.0, "g_max_us": 100.0}
CAUSES: dict[str, dict[str, object]] = {
    "programming variation alone": {},
    "a cell that conducts a tenth when off (g_min 10 uS)": {"g_min_us": 10.0},
    "level 0 leaks 1 % (FeFET2, against its own sigmas)": {"device": "FeFET2"},
    "level 0 leaks 0.33 % (EvaXB's leak, read literally)": {"device": "FeFET2_literal", "catalogue": LITERAL},
    "DAC of 8 bits": {"dac_bits": 8},
    "DAC of 5 bits": {"dac_bits": 5},
    "ADC of 8 bits": {"adc_bits": 8},
    "ADC of 6 bits": {"adc_bits": 6},
    "ADC of 4 bits": {"adc_bits": 4},
    "no cell below zero siemens (wires of 1 microohm)": {"wires": {"r_word_ohm": 1e-6, "r_bit_ohm": 1e-6}},
    "wires of 1 ohm": {"wires": {"r_word_ohm": 1.0, "r_bit_ohm": 1.0}},
    "wires of 5 ohm": {"wires": {"r_word_ohm": 5.0, "r_bit_ohm": 5.0}},
}


def departure(cause: str) -> Departure:
    """Products on CHIPS crossbars with one cause more than the model knows."""
    weight = weights_of("normal")
    base = {"sigma": SIGMA, "rows": INPUTS, "cols": OUTPUTS, "dac_bits": None, "adc_bits": None} | RANGE
    config = CrossbarConfig.model_validate(base | CAUSES[cause])
    x = torch.randn(VECTORS, INPUTS, generator=torch.Generator().manual_seed(15))
    crossbar = Crossbar.program(weight.expand(CHIPS, -1, -1), config, torch.Generator().manual_seed(14))
    step = float(weight.abs().max()) / 127
    ideal = x.double() @ ((weight.double() / step).round() * step)
    _, variance = by_levels(weight, config)
    model = x.double().square() @ variance
    y = crossbar.matmul(x).double()
    bias, spread = (y.mean(dim=0) - ideal).square(), y.var(dim=0)
    total = (y - ideal).square().mean(dim=0)
    added = _added(config, weight, x, crossbar)
    return Departure(
        cause,
        bias=float((bias / model).mean().sqrt()),
        spread=float((spread / model).mean().sqrt()),
        total=float((total / model).mean().sqrt()),
        expected=None if added is None else float(((model + added) / model).mean().sqrt()),
    )


def _added(config: CrossbarConfig, weight: Tensor, x: Tensor, crossbar: Crossbar) -> Tensor | None:
    """Mean square error [vectors, out] that the cause adds by a closed form; None where there is none."""
    added = torch.zeros(len(x), weight.shape[1], dtype=torch.float64)
    if config.wires is not None:
        return None
    if config.dac_bits is not None:
        step = x.double().abs().amax(dim=1, keepdim=True) / (2 ** (config.dac_bits - 1) - 1)
        added += step.square() / 12 * weight.double().square().sum(dim=0)
    if config.adc_bits is not None:
        # Its range belongs to the widest column that was written, so it differs a little from chip to chip.
        reach = crossbar.read_weight().double().norm(dim=1).amax(dim=1).square().mean()
        steps = 2 ** (config.adc_bits - 1) - 1
        added += x.double().square().sum(dim=1, keepdim=True) * reach / steps**2 / 12
    if config.device.startswith("FeFET2"):
        mean, _ = by_levels(weight, config)
        step = weight.double().abs().max() / 127
        added += (x.double() @ (mean - (weight.double() / step).round() * step)).square()
    return added


@cache
def departures() -> tuple[Departure, ...]:
    """Every cause by itself."""
    return tuple(departure(cause) for cause in CAUSES)


def section() -> str:
    """The page's part."""
    rows = []
    for device in DEVICES:
        for kind in WEIGHTS:
            step, full = (
                next(a for a in agreements() if (a.device, a.weights, a.unit) == (device, kind, unit))
                for unit in UNITS
            )
            cells = [f"{device}, {kind}", decimals(max(step.mean, full.mean), 1)]
            cells += [decimals(step.per_cell, 3), decimals(full.per_cell, 3)]
            rows.append(
                [*cells, decimals(step.pair, 2), decimals(full.pair, 2), decimals(step.pair_closed, 2),
                 decimals(step.published_closed, 2), decimals(full.published_closed, 2)]
            )  # fmt: skip
    first = table(
        ["device, weights", "mean, worst of 32 outputs (standard errors)", "variance / per cell: level_step",
         "full_range", "pair's form / crossbar: level_step", "full_range", "by closed forms",
         "crossbar / published code, by closed forms: EvaXB (level_step)", "NeFT (full_range)"], rows,
    )  # fmt: skip
    second = table(
        ["cause", "bias", "spread over writes", "rms error", "rms error expected"],
        [
            [d.cause, *(decimals(v, 3) for v in (d.bias, d.spread, d.total)),
             "-" if d.expected is None else decimals(d.expected, 3)]
            for d in departures()
        ],
    )  # fmt: skip
    return _TEXT.format(first=first, second=second)


_TEXT = """\
## 1. The statistical noise model of the paper's group

The group's papers describe a device by one Gaussian per level (`level_sigma`,
`platform/nvcim/devices/catalogue.yaml`). The crossbar here writes every cell of every slice and side with the sigma
of its own level. Products x @ w of one input vector, 64 x 32 weights of 8 bits, sigma 0.1, 2000 writes, ideal
converters and wires, seeds 11 to 13. Weights: normal; uniform; sparse (a tenth normal, the rest zero); binary (all at
plus or minus the largest).

- *per cell*: the model evaluated at the level of each cell and added up by hand. It has to agree: the 64,000 products
  behind a figure scatter the variance by 0.006, and no output's mean may lie further off than chance.
- *published code*: one draw per weight, sized by whether |w| lies in the middle half (EvaXB in level steps, NeFT of
  the full range; `tests/fidelity/published.py`). It has no second cell: for ordinary weights a crossbar's variance is
  1.1 to 2.0 times as large, and more for weights that are mostly zero or small.
- *pair's form*: the published code's draw and the pair's other cell, which is written to level 0, an edge level
  (`nvcim.prompts.noise`, which training uses, because it is a crossbar of pairs that its values are written to). The
  unit of sigma scales both sides alike.

{first}

Where the published code and the crossbar differ, and why: the second cell adds the variance of level 0 to every
weight. That is as much again where all levels are alike (RRAM1: 2 x 1.016), and less beside a noisy middle level the
quieter the edge levels are. The factor 1.016 (1.008 for NeFT): the code slices 8 bits, a pair 7 of magnitude. What the
lower digits do (below) comes on top.

Where the pair's form and the crossbar differ, and why:

- **RRAM1**: every level has the same sigma, so collapsing the slices into one draw is exact.
- **four-level devices**: the middle interval, a quarter to three quarters of the largest weight, is where the most
  significant digit is 1 or 2, so for that digit the form is right. A lower digit has a sixteenth of the variance of
  the one above it, but its middle levels are noisy whatever the weight is. The form does not see them: it is too
  quiet by a few percent for ordinary weights, and by up to a factor of two for *small*, whose digits are 0 2 0 2: all
  quiet to the form, mostly noisy in the array. The more so the more levels differ (FeFET6).
- **binary**: 127 is 3 3 3 2 in base four (with the spare bit), all edge levels but the last, as the form assumes.
- 7 bits of magnitude leave one of 8 bits spare, so the slices' factors exceed the form's B by 0.8 % in variance.

What the form leaves out, on RRAM4 (sigma 0.1 of a level step, cells of 1 to 100 uS, 64 x 32 normal weights in one
tile, 64 chips, 16 input vectors, seeds 14 and 15), each cause by itself, in units of the model's standard deviation:

{second}

Bias is the part of the error that all chips share; averaging over writes does not remove it (0.125 is the sampling
error of 64 chips). A pair of sides cancels what cells conduct when they are off. A leaking level 0 takes 1 % from
every digit; EvaXB's own leak, 0.01 with levels counted 0..3, would take a third of that, which is within the sampling
error here. The catalogue keeps the larger one (its comment says why). Converters add their step squared over 12; the
ADC's step is dithered by the noise until it is larger than that (4 bits). With wires the array is solved as
resistors, and a cell that a write put below zero siemens is open: at level 0 half of the draws go below the level, and
with g_min at 1 % of the range some go below zero. Wires take current away, most from the far corner, so the bias grows
with the ohms, and the spread shrinks with what is left of each cell.
"""
