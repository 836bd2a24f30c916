"""What a matrix becomes on crossbars: arrays, cells, errors by cause, and what a product costs.

Errors are simulated, and held against closed forms where there are any (expected.py); costs are modelled.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvcim.crossbar import expected
from nvcim.crossbar.array import Crossbar
from nvcim.crossbar.causes import LEVELS, QUANTIZATION, Bench, beside, with_only
from nvcim.crossbar.converters import bit_planes, drive
from nvcim.crossbar.cost import Geometry, Layout, layout, product_cost
from nvcim.crossbar.cost_constants import Constant, CostConstants, load_cost_constants
from nvcim.crossbar.cost_table import MODELLED, CostTable
from nvcim.crossbar.cost_write import CellWrite, write_cost
from nvcim.crossbar.expected import Nominal
from nvcim.crossbar.explain_job import ExplainJob, draw_inputs, load_weight
from nvcim.crossbar.geometry import geometry_of
from nvcim.crossbar.kernel import kernel_status
from nvcim.crossbar.reading import Counts
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.devices.conductance import to_siemens

SIMULATED, EXPECTED = "simulated", "expected"
"""Bases of an error: of simulated chips, or of a closed form."""

_FORMS: Mapping[str, Callable[[Nominal], float]] = {
    QUANTIZATION: expected.quantization,
    "variation": expected.variation,
    "stuck cells": expected.stuck_cells,
    "array spread": expected.array_spread,
    "DAC": expected.dac,
    "read noise": expected.read_noise,
}
_NO_FORM = "no closed form: simulated only"


@dataclass(frozen=True)
class CauseError:
    """Root mean square errors of the product, relative to the exact product's, one per chip.

    alone: what the cause adds to an array without flaws. cumulative: against the exact product, with this cause and
    all before it. expected: of `alone`, from a closed form; None without one, and `note` says why.
    """

    cause: str
    alone: tuple[float, ...]
    cumulative: tuple[float, ...]
    expected: float | None
    note: str

    def as_record(self) -> dict[str, Any]:
        """A flat row for JSON."""
        return {
            "cause": self.cause,
            "alone_mean": statistics.fmean(self.alone),
            "alone_sd": spread(self.alone),
            "cumulative_mean": statistics.fmean(self.cumulative),
            "cumulative_sd": spread(self.cumulative),
            "basis": SIMULATED,
            "expected": self.expected,
            "expected_basis": EXPECTED,
            "note": self.note,
        }


@dataclass(frozen=True)
class Plane:
    """One side and slice of the matrix: its sign, the bits of a cell, and what full conductance adds to the integer."""

    side: int
    index: int
    sign: int
    bits: int
    worth: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `causes` in the order in which they were switched on.

    clipping: of the reads with all causes. mean_conductance: siemens, of the cells in use; None if the device's range
    is unknown. pulses: mean number of a cell's write.
    """

    job: ExplainJob
    shape: tuple[int, int]
    geometry: Geometry
    plan: Layout
    planes: tuple[Plane, ...]
    read_method: str
    kernel: str
    clipping: Counts
    mean_conductance: float | None
    pulses: float
    causes: tuple[CauseError, ...]
    product: CostTable
    write: CostTable
    constants: CostConstants

    @property
    def quadrature(self) -> float:
        """The causes' own errors as if they were independent: the root of the sum of their squares."""
        return math.sqrt(sum(statistics.fmean(one.alone) ** 2 for one in self.causes))

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "settings": self.job.model_dump(mode="json"),
            "matrix": {"in_features": self.shape[0], "out_features": self.shape[1]},
            "arrays": {
                "row_tiles": self.plan.row_tiles,
                "col_tiles": self.plan.col_tiles,
                "arrays_per_tile": self.plan.planes,
                "arrays": self.plan.arrays,
                "cells": self.plan.weight_cells,
                "cells_built": self.plan.physical_cells,
                "utilisation": self.plan.utilisation,
                "adcs": self.plan.adcs,
                "conversions_per_product": self.plan.conversions * self.geometry.input_cycles,
                "planes": [vars(plane) for plane in self.planes],
                "mean_conductance_s": self.mean_conductance,
            },
            "reads": {"method": self.read_method, "kernel": self.kernel, **vars(self.clipping)},
            "errors": [one.as_record() for one in self.causes],
            "errors_root_of_sum_of_squares": self.quadrature,
            "product": {
                "basis": MODELLED,
                "rows": [*self.product.as_records(), self.product.total().as_record()],
            },
            "write": {
                "basis": MODELLED,
                "pulses_per_cell": self.pulses,
                "rows": [*self.write.as_records(), self.write.total().as_record()],
            },
            "constants": {"node_nm": self.constants.node_nm, **constants_used(self.constants)},
        }


def spread(values: tuple[float, ...]) -> float | None:
    """Standard deviation over chips; None for a single one, NaN where one is not finite."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def constants_used(constants: CostConstants) -> dict[str, dict[str, Any]]:
    """The cost model's constants by name: value at the node, unit, source, note."""
    found = {name: getattr(constants, name) for name in type(constants).model_fields}
    return {
        name: {
            "value": constants.figure(name).value,
            "unit": constant.unit,
            "source": constant.source,
            "note": constant.note,
        }
        for name, constant in found.items()
        if isinstance(constant, Constant)
    }


def explain(
    job: ExplainJob, on_step: Callable[[int, int, str], None] = lambda done, total, note: None
) -> Explanation:
    """Simulate and model what a matrix becomes on crossbars.

    Args:
        job: matrix, inputs, settings.
        on_step: called with (reads done, reads in all, what is on) before each read.

    Raises:
        ConfigError, DataError, DeviceError: settings, files or weights that cannot serve.
    """
    job.crossbar.mapping()
    constants = load_cost_constants(job.cost_constants)
    bench = _bench(load_weight(job.weight), job, on_step)
    causes = _errors(bench)
    chips = bench.written
    inputs, outputs = bench.weight.shape
    geometry = geometry_of(job.crossbar, inputs, outputs, job.columns_per_adc, job.arrays_per_bus)
    conductance = _mean_conductance(chips, job.crossbar)
    read_voltage = constants.figure("read_voltage").value
    square = None if read_voltage is None else read_voltage**2 * mean_square_input(bench.inputs, job.crossbar)
    return Explanation(
        job=job,
        shape=(inputs, outputs),
        geometry=geometry,
        plan=layout(geometry),
        planes=_planes(job),
        read_method=chips.read_method,
        kernel=kernel_status(),
        clipping=chips.counts,
        mean_conductance=conductance,
        pulses=float(chips.wear().double().mean()),
        causes=causes,
        product=product_cost(geometry, constants, mean_conductance=conductance, mean_square_voltage=square),
        write=_write_cost(chips, job.crossbar, geometry, constants, conductance),
        constants=constants,
    )


def _bench(weight: Tensor, job: ExplainJob, on_step: Callable[[int, int, str], None]) -> Bench:
    done = 0

    def on_read(note: str) -> None:
        nonlocal done
        done += 1
        on_step(done, total, note)

    bench = Bench(weight, job, on_read)
    total = len(bench.sets())
    return bench


def _errors(bench: Bench) -> tuple[CauseError, ...]:
    """The error of each cause, alone and with those before it."""
    bench.read(())  # weights that cannot be written are refused here
    first = _cause(bench, QUANTIZATION, bench.quantization_alone(), bench.quantization_alone())
    errors = [first]
    if bench.uneven:
        errors.append(_cause(bench, LEVELS, bench.levels_alone(), bench.together(())))
    for index, cause in enumerate(bench.causes):
        with_all_before = bench.together(bench.causes[: index + 1])
        errors.append(_cause(bench, cause, bench.alone(cause), with_all_before))
    return tuple(errors)


def _cause(bench: Bench, cause: str, alone: tuple[float, ...], cumulative: tuple[float, ...]) -> CauseError:
    config = bench.job.crossbar
    nominal = Nominal(
        with_only(config, (*beside(config, cause), cause)), *bench.quantised, bench.inputs, bench.verified
    )
    if cause == "ADC":
        calibration = draw_inputs(bench.job, bench.weight.shape[0], "calibration")
        squares = expected.adc(nominal, calibration)
    elif cause == "stuck cells" and config.remap != "none":
        return CauseError(cause, alone, cumulative, None, "no closed form with remapping: simulated only")
    elif cause in _FORMS:
        squares = _FORMS[cause](nominal)
    else:
        return CauseError(cause, alone, cumulative, None, _NO_FORM)
    return CauseError(cause, alone, cumulative, bench.relative_of(squares), _ASSUMES.get(cause, ""))


_ASSUMES = {
    QUANTIZATION: "closed form: step^2 / 12",
    "variation": "closed form: sd of each cell's level",
    "stuck cells": "closed form: independent faults at the given rates",
    "array spread": "closed form: one factor per array",
    "DAC": "closed form: step^2 / 12",
    "read noise": "closed form: variance of each cell's read",
    "ADC": "closed form: step^2 / 12, without clipping and converter errors",
}


def _planes(job: ExplainJob) -> tuple[Plane, ...]:
    mapping = job.crossbar.mapping()
    return tuple(
        Plane(side, index, sign, piece.mask.bit_length(), piece.factor)
        for side, sign in enumerate(mapping.signs)
        for index, piece in enumerate(mapping.slices)
    )


def _mean_conductance(chips: Crossbar, config: CrossbarConfig) -> float | None:
    """Siemens, over all cells as they were written; None where the device's range is unknown."""
    cell = config.cell()
    if cell.g_min is None or cell.g_max is None:
        return None
    return max(float(to_siemens(chips.cells().conductance, cell).mean()), 0.0)


def mean_square_input(inputs: Tensor, config: CrossbarConfig) -> float:
    """Mean square of inputs [vectors, in] as the DAC drives them, 1 at its full scale; of pulses, if bit-serial."""
    driven = drive(inputs[None], config)
    if config.input_coding == "bit_serial" and config.dac_bits is not None:
        return float(bit_planes(driven, config.dac_bits)[0].double().mean())
    scale = driven.full_scale.clamp(min=torch.finfo(torch.float32).tiny)
    return float((driven.x / scale).double().square().mean())


def _write_cost(
    chips: Crossbar,
    config: CrossbarConfig,
    geometry: Geometry,
    constants: CostConstants,
    conductance: float | None,
) -> CostTable:
    """Cost of writing the matrix with the pulses that the simulated chips took."""
    given, pulses = config.cell().write, float(chips.wear().double().mean())
    energy = None if given is None or given.energy_j is None else given.energy_j * pulses
    per_write = None if given is None or given.pulses is None else given.pulses * pulses
    write = CellWrite(
        energy=energy,
        pulse_time=None if given is None else given.pulse_s,
        pulses=pulses if per_write is None else per_write,
        endurance=config.cell().endurance,
    )
    read_voltage = constants.figure("read_voltage").value
    return write_cost(
        geometry,
        constants,
        write,
        verify_reads=_checks(pulses, config),
        mean_conductance=conductance,
        mean_square_voltage=None if read_voltage is None else read_voltage**2,
    )


def _checks(pulses: float, config: CrossbarConfig) -> float:
    """Mean number of reads that check a cell while it is written: one per pulse of those that are verified."""
    if config.programming.method == "open_loop":
        return 0.0
    unverified = 1 - config.programming.share if config.programming.method == "selective" else 0.0
    return max(pulses - unverified, 0.0)
