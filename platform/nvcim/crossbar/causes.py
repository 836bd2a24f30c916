"""The causes of a crossbar's error, switched on one at a time and one after the other.

A cause's own error compares the reads of two arrays that differ in nothing else: the same chips, the same draws, once
with the cause and once without. The base is an array without any flaw, which holds the quantised weights on its cells'
nominal levels.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from nvcim.crossbar.array import Crossbar
from nvcim.crossbar.explain_job import ExplainJob, draw_inputs
from nvcim.crossbar.mapping import quantize_symmetric
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.errors import ConfigError
from nvcim.randomness import named_generator

QUANTIZATION, LEVELS = "quantization", "cell levels"

# In this order they are switched on: the cells, what time and voltage do to them, wires, converters. Each with the
# settings that take it away (none for ageing, whose time is set to zero).
WITHOUT: dict[str, dict[str, Any]] = {
    "variation": {"sigma": 0.0},
    "stuck cells": {"stuck_on": 0.0, "stuck_off": 0.0},
    "array spread": {"array_sigma": 0.0},
    "temperature": {"temperature_k": None},
    "ageing": {},
    "cell current": {"cell_current": "linear"},
    "IR drop": {"wires": None, "gated_rows": False},
    "DAC": {"dac_bits": None, "input_coding": "analog"},
    "read noise": {"read_noise": 0.0, "read_noise_floor": 0.0, "read": None},
    "ADC": {"adc_bits": None, "adc_errors": None},
}


def causes_in(config: CrossbarConfig, age_s: float) -> tuple[str, ...]:
    """The causes that these settings have, without quantisation and the cells' levels, in order."""
    cell = config.cell()
    present = {
        "variation": config.sigma > 0 and max(cell.level_sigma) > 0,
        "stuck cells": any(config.stuck_rates()),
        "array spread": config.array_spread() > 0,
        "temperature": config.temperature_k is not None,
        "ageing": age_s > 0 and any((cell.drift, cell.retention, cell.relaxation)),
        "cell current": config.cell_current == "device",
        "IR drop": config.wires is not None and not config.wires.ideal,
        "DAC": config.dac_bits is not None,
        "read noise": config.noisy,
        "ADC": config.adc_bits is not None,
    }
    return tuple(cause for cause in WITHOUT if present[cause])


def with_only(config: CrossbarConfig, causes: Sequence[str]) -> CrossbarConfig:
    """The settings with every other cause switched off; mapping, programming and tiles stay."""
    off: dict[str, Any] = {}
    for cause, settings in WITHOUT.items():
        if cause not in causes:
            off |= settings
    return config.model_copy(update=off)


def beside(config: CrossbarConfig, cause: str) -> tuple[str, ...]:
    """What must be on for a cause to be what it is: bit-serial inputs make noise and conversions bit by bit."""
    serial = config.input_coding == "bit_serial" and config.dac_bits is not None
    return ("DAC",) if serial and cause in ("read noise", "ADC") else ()


class Bench:
    """A matrix, its input vectors and its chips, read with whatever causes are on; each set is simulated once."""

    def __init__(self, weight: Tensor, job: ExplainJob, on_read: Callable[[str], None]) -> None:
        self.weight = weight
        self.job = job
        self.inputs = draw_inputs(job, weight.shape[0])
        self.causes = causes_in(job.crossbar, job.age_s)
        self._on_read = on_read
        self._outputs: dict[frozenset[str], Tensor] = {}
        self._written: Crossbar | None = None
        self._size = float(self.exact.norm())
        if self._size == 0:
            raise ConfigError(
                "weight: its product with the inputs is zero, so a relative error has no meaning"
            )

    @cached_property
    def exact(self) -> Tensor:
        """The exact product: [vectors, out], float64."""
        return self.inputs.double() @ self.weight.double()

    @cached_property
    def quantised(self) -> tuple[Tensor, Tensor]:
        """Integers [in, out] and their scale [1, out] that the weights are rounded to."""
        config = self.job.crossbar
        integers, scale = quantize_symmetric(
            self.weight[None], config.weight_bits, config.scale_per == "column"
        )
        return integers[0], scale[0]

    def relative(self, difference: Tensor) -> tuple[float, ...]:
        """Root mean square of differences [devices, vectors, out], relative to the exact product's, per device."""
        return tuple((difference.double().flatten(1).norm(dim=1) / self._size).tolist())

    def relative_of(self, squares: float) -> float:
        """The same of a sum of squares over vectors and outputs."""
        return math.sqrt(squares) / self._size

    def chips(self, causes: Sequence[str]) -> Crossbar:
        """The job's chips with only these causes, written, calibrated where that is needed, and aged."""
        job = self.job
        generators = [named_generator(job.seed, "explain", "chip", chip) for chip in range(job.devices)]
        config = with_only(job.crossbar, causes)
        crossbar = Crossbar.program(self.weight.expand(job.devices, *self.weight.shape), config, generators)
        if config.adc_bits is not None and config.adc_scaling == "calibrated":
            crossbar.calibrate(draw_inputs(job, self.weight.shape[0], "calibration"))
        if "ageing" in causes:
            crossbar.age(job.age_s)
        return crossbar

    def read(self, causes: Sequence[str]) -> Tensor:
        """What the chips with only these causes answer: [devices, vectors, out]."""
        key = frozenset(causes)
        if key not in self._outputs:
            self._on_read(causes[-1] if causes else "no flaw")
            crossbar = self.chips(causes)
            self._outputs[key] = crossbar.matmul(self.inputs)
            if key == frozenset(self.causes):
                self._written = crossbar
        return self._outputs[key]

    @property
    def written(self) -> Crossbar:
        """The chips with all causes, after their reads."""
        self.read(self.causes)
        assert self._written is not None
        return self._written

    def sets(self) -> list[tuple[str, ...]]:
        """The sets of causes that are simulated to tell all errors, each once."""
        config = self.job.crossbar
        bases = [beside(config, cause) for cause in self.causes]
        alone = [(*base, cause) for base, cause in zip(bases, self.causes, strict=True)]
        before = [self.causes[: index + 1] for index in range(len(self.causes))]
        return list({frozenset(one): one for one in [(), *bases, *alone, *before]}.values())

    @property
    def uneven(self) -> bool:
        """Whether the cells' nominal levels are not evenly spaced."""
        levels = self.job.crossbar.cell().level_conductance
        return any(abs(level - index / (len(levels) - 1)) > 1e-6 for index, level in enumerate(levels))

    @cached_property
    def verified(self) -> Tensor | None:
        """Which weights [in, out] are read back while they are written; None for none."""
        if self.job.crossbar.programming.method == "open_loop":
            return None
        return self.chips(()).state_dict()["verified"][0]

    def quantization_alone(self) -> tuple[float, ...]:
        """Error of the rounded weights, the same on every chip."""
        return self.relative(self._rounded()[None] - self.exact) * self.job.devices

    def levels_alone(self) -> tuple[float, ...]:
        """Error of cells that sit on their nominal levels, where these are not evenly spaced."""
        return self.relative(self.read(()) - self._rounded())

    def alone(self, cause: str) -> tuple[float, ...]:
        """Error that one cause adds to an array without flaws, per chip."""
        base = beside(self.job.crossbar, cause)
        return self.relative(self.read((*base, cause)).double() - self.read(base).double())

    def together(self, causes: Sequence[str]) -> tuple[float, ...]:
        """Error against the exact product with these causes and the rounded weights, per chip."""
        return self.relative(self.read(causes) - self.exact)

    def _rounded(self) -> Tensor:
        integers, scale = self.quantised
        return self.inputs.double() @ (integers.double() * scale.double())
