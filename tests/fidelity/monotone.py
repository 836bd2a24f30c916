"""How the error of a product changes with every knob, alone and among the other flaws."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from tests.fidelity.tables import percent, table

CHIPS, INPUTS, OUTPUTS, VECTORS, TILE = 24, 64, 16, 32, 32
BASE = {"device": "RRAM4", "g_min_us": 1.0, "g_max_us": 100.0, "rows": TILE, "cols": TILE}
IDEAL: dict[str, object] = {
    "sigma": 0.0,
    "weight_bits": 12,
    "dac_bits": None,
    "adc_bits": None,
    "read_noise": 0.0,
    "ohm": 0.0,
}
FLAWED: dict[str, object] = {
    "sigma": 0.1,
    "weight_bits": 8,
    "dac_bits": 8,
    "adc_bits": 8,
    "read_noise": 0.02,
    "ohm": 1.0,
}
KNOBS: dict[str, tuple[float, ...]] = {
    "weight_bits": (2, 3, 4, 6, 8, 10),
    "dac_bits": (3, 4, 6, 8, 10),
    "adc_bits": (3, 4, 6, 8, 10),
    "sigma": (0.2, 0.1, 0.05, 0.02, 0.01),
    "read_noise": (0.2, 0.1, 0.05, 0.02, 0.01),
    "ohm": (20.0, 5.0, 2.0, 1.0, 0.5, 0.1),
}
"""Values from the worst to the best."""


def config_of(fields: dict[str, object]) -> CrossbarConfig:
    """Settings from knobs; `ohm` is that of a segment of both wires."""
    ohm = fields["ohm"]
    wires = {"r_word_ohm": ohm, "r_bit_ohm": ohm} if ohm else None
    own = {name: value for name, value in fields.items() if name != "ohm"}
    return CrossbarConfig.model_validate(BASE | own | {"wires": wires})


def errors(fields: dict[str, object]) -> Tensor:
    """Relative rms error of the products of every chip with weights, inputs and draws of its own: [CHIPS], float64.

    The seeds are the same for all settings, so two settings differ by nothing else.
    """
    weight = torch.randn(CHIPS, INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(41))
    x = torch.randn(CHIPS, VECTORS, INPUTS, generator=torch.Generator().manual_seed(42))
    y = Crossbar.program(weight, config_of(fields), torch.Generator().manual_seed(43)).matmul(x).double()
    exact = x.double() @ weight.double()
    found: Tensor = (y - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    return found


@cache
def errors_among() -> Tensor:
    """`errors` with all flaws, which every sweep passes."""
    return errors(FLAWED)


@dataclass(frozen=True)
class Step:
    """A value of a knob: mean errors over chips, and by how many standard errors each exceeds that of the next value.

    The standard error is that of the paired differences over chips; None for the last value.
    """

    knob: str
    value: float
    alone: float
    among: float
    gain_alone: float | None
    gain_among: float | None


def _gain(worse: Tensor, better: Tensor) -> float:
    gap = worse - better
    return float(gap.mean() / gap.std()) * math.sqrt(len(gap))


def sweep(knob: str) -> list[Step]:
    """All values of a knob."""
    values = KNOBS[knob]
    alone = [errors(IDEAL | {knob: value}) for value in values]
    usual = errors_among()
    among = [usual if value == FLAWED[knob] else errors(FLAWED | {knob: value}) for value in values]
    gains = [(_gain(alone[i], alone[i + 1]), _gain(among[i], among[i + 1])) for i in range(len(values) - 1)]
    return [
        Step(knob, value, float(a.mean()), float(b.mean()), *gain)
        for value, a, b, gain in zip(values, alone, among, [*gains, (None, None)], strict=True)
    ]


@cache
def sweeps() -> dict[str, list[Step]]:
    """Every knob."""
    return {knob: sweep(knob) for knob in KNOBS}


def section() -> str:
    """The page's part."""
    rows = [
        [f"{step.knob} {step.value:g}", percent(step.alone), percent(step.among)]
        for steps in sweeps().values()
        for step in steps
    ]
    return _TEXT.format(first=table(["setting", "alone", "among the others"], rows))


_TEXT = """\
## 4. More bits, less noise, thicker wires

Relative rms error of products with 64 x 16 normal weights on 32 x 32 tiles, mean over 24 chips with weights, inputs
and draws of their own (RRAM4, 1 to 100 uS, seeds 41 to 43). *Alone*: 12-bit weights and nothing else wrong. *Among
the others*: sigma 0.1 of a level step, 8-bit weights and converters, 2 % read noise, 1 ohm wires, and the setting
given. The draws are the same for all settings. Alone, every step has to help on average; among the others none may
hurt beyond chance.

{first}

What a setting can gain among the others ends where another flaw takes over. Wires of less than an ohm no longer show
there; what they take from the products they take from the noise as well. With wires the array is solved as resistors,
where no cell lies below zero siemens: that is why sigma 0.2 among the others can be less than alone.
"""
