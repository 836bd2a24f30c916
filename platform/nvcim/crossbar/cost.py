"""What a product of vectors with a matrix on crossbar arrays costs: energy, latency and area by component.

An analytical model in the manner of ISAAC (Shafiee et al., ISCA 2016, section VII); everything is modelled,
nothing measured. What overlaps and what does not:

- All arrays work at once; inputs of one vector come in `input_cycles` pulses, one after the other.
- Each pulse passes three stages: read (drivers, DACs, cells; one read pulse), convert (each ADC digitises
  `columns_per_adc` bit lines one after the other), accumulate (partial sums; a tree over row tiles).
- Sample-and-holds let the stages overlap, so n pulses take the three stages once, and n - 1 times the slowest.
- A bus serves `arrays_per_bus` arrays: it brings them the vector and takes their outputs away. For the first
  vector of a batch that adds to the time; for the others only as far as it takes longer than the product.
"""

from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

from pydantic import Field

from nvcim.config import Settings
from nvcim.crossbar.cost_constants import CostConstants
from nvcim.crossbar.cost_table import NOTHING, CostRow, CostTable, Figure, largest
from nvcim.errors import ConfigError

ACCUMULATOR_BITS = 32
"""Width of a partial sum; that of the adder whose energy `cost_constants.yaml` gives."""


class Geometry(Settings):
    """How a matrix lies on arrays and how they are read: what the costs depend on.

    `rows` and `cols` are an array's physical word and bit lines. A weight takes `slices * sides` bit lines:
    `slices` cells of some bits each, and two sides in a differential pair. By `placement` these are neighbours in
    one array (`interleaved`), or each lies in an array of its own, with drivers and DACs of its own (`separate`).
    With `accumulate` "analog" they are added before one ADC conversion, with "slices" the sides are subtracted and
    each slice is converted, with "digital" each bit line is converted.
    """

    in_features: int = Field(ge=1)
    out_features: int = Field(ge=1)
    rows: int = Field(ge=1)
    cols: int = Field(ge=1)
    slices: int = Field(default=1, ge=1)
    sides: int = Field(default=1, ge=1, le=2)
    reference_columns: int = Field(default=0, ge=0, description="bit lines of an array that hold no weights")
    accumulate: Literal["analog", "slices", "digital"] = "analog"
    placement: Literal["interleaved", "separate"] = "interleaved"
    input_cycles: int = Field(
        default=1, ge=1, description="pulses per vector: its bits when bit-serial, else 1"
    )
    dac_bits: int | None = Field(default=8, ge=1, le=16, description="per pulse; None is an ideal DAC")
    adc_bits: int | None = Field(default=8, ge=1, le=16, description="None is an ideal ADC")
    columns_per_adc: int = Field(default=8, ge=1, description="outputs that share one ADC, in turn")
    arrays_per_bus: int = Field(
        default=96, ge=1, description="arrays that share a buffer; ISAAC's tile has 96"
    )


@dataclass(frozen=True)
class Layout:
    """What a matrix takes: arrays, cells, ADCs.

    `planes` are the arrays that hold one tile of the matrix, `used_cells` those of weights and of reference columns,
    `conversions` those of one pulse on all arrays, `turns` those that the busiest ADC makes one after the other.
    """

    row_tiles: int
    col_tiles: int
    planes: int
    outputs_per_array: int
    weight_cells: int
    used_cells: int
    physical_cells: int
    conversions_per_output: int
    conversions: int
    adcs: int
    turns: int

    @property
    def arrays(self) -> int:
        """Arrays in all."""
        return self.row_tiles * self.col_tiles * self.planes

    @property
    def utilisation(self) -> float:
        """Cells that hold weights, as a fraction of those that are built."""
        return self.weight_cells / self.physical_cells


def layout(geometry: Geometry) -> Layout:
    """Lay a matrix out on arrays.

    Raises:
        ConfigError: a weight needs more bit lines than an array has.
    """
    per_weight = geometry.slices * geometry.sides
    separate = geometry.placement == "separate"
    planes = per_weight if separate else 1
    outputs_per_array = (geometry.cols - geometry.reference_columns) // (per_weight // planes)
    if outputs_per_array < 1:
        raise ConfigError(
            f"a weight takes {geometry.slices} slices x {geometry.sides} sides and an array has {geometry.cols} "
            f"cols, {geometry.reference_columns} of them for reference; allowed: at most cols - reference_columns"
        )
    row_tiles = ceil(geometry.in_features / geometry.rows)
    col_tiles = ceil(geometry.out_features / outputs_per_array)
    per_output = {"analog": 1, "slices": geometry.slices, "digital": per_weight}[geometry.accumulate]
    # ADCs of a tile come in banks; arrays whose currents are added before conversion share one.
    banks = per_output if separate else 1
    per_bank = per_output // banks
    # analog references are subtracted before the ADC
    references = geometry.reference_columns if geometry.accumulate == "digital" else 0
    weight_cells = geometry.in_features * geometry.out_features * per_weight
    reference_cells = geometry.in_features * geometry.reference_columns * col_tiles * planes
    busiest = per_bank * min(geometry.out_features, outputs_per_array) + references
    built = per_bank * outputs_per_array + references
    return Layout(
        row_tiles=row_tiles,
        col_tiles=col_tiles,
        planes=planes,
        outputs_per_array=outputs_per_array,
        weight_cells=weight_cells,
        used_cells=weight_cells + reference_cells,
        physical_cells=row_tiles * col_tiles * planes * geometry.rows * geometry.cols,
        conversions_per_output=per_output,
        conversions=row_tiles * (per_output * geometry.out_features + references * col_tiles * banks),
        adcs=row_tiles * col_tiles * banks * ceil(built / geometry.columns_per_adc),
        turns=min(busiest, geometry.columns_per_adc),
    )


def product_cost(
    geometry: Geometry,
    constants: CostConstants,
    batch: int = 1,
    *,
    mean_conductance: float | None,
    mean_square_voltage: float | None,
) -> CostTable:
    """Energy, latency and area of multiplying `batch` vectors with the matrix.

    Args:
        geometry: the matrix on its arrays.
        constants: what single operations cost.
        batch: vectors, one after the other.
        mean_conductance: siemens, over the cells in use; None if the device's is not known.
        mean_square_voltage: volts squared, over inputs and pulses: `read_voltage**2` times the mean square of
            inputs scaled to [-1, 1]; None if not known.

    Returns:
        Rows `array`, `drivers`, `dac`, `sample and hold`, `adc`, `accumulation`, `buffers`. Idle cells of a
        tile draw nothing: their access transistors are off.

    Raises:
        ConfigError: a weight that does not fit an array, or a batch below 1.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; allowed: 1 or more")
    plan = layout(geometry)
    pulses = batch * geometry.input_cycles
    cells = read_energy(plan.used_cells, constants, mean_conductance, mean_square_voltage)
    stages = stage_times(geometry, plan, constants)
    read, convert, accumulate = pipelined(stages, pulses)
    return CostTable(
        (
            CostRow(
                "array",
                cells * pulses,
                read,
                constants.figure("cell_area") * (constants.node_nm * 1e-6) ** 2 * plan.physical_cells,
                plan.used_cells * pulses,
                note="sum of G V^2 t over the cells in use",
            ),
            _drivers(geometry, plan, constants, pulses),
            _dac(geometry, plan, constants, pulses),
            _sample_and_hold(geometry, plan, constants, pulses),
            _adc(geometry, plan, constants, pulses, convert),
            _accumulation(geometry, plan, constants, batch, accumulate),
            _buffers(geometry, plan, constants, batch, largest(stages) * geometry.input_cycles),
        )
    )


def read_energy(
    cells: int, constants: CostConstants, mean_conductance: float | None, mean_square_voltage: float | None
) -> Figure:
    """Joules that `cells` cells turn to heat in one read pulse: G V^2 t, summed.

    Raises:
        ConfigError: a negative conductance or mean square voltage.
    """
    for name, value in (
        ("mean_conductance", mean_conductance),
        ("mean_square_voltage", mean_square_voltage),
    ):
        if value is not None and not value >= 0:
            raise ConfigError(f"{name} is {value}; allowed: 0 or more")
    conductance = (
        Figure.unknown("mean_conductance: the device's conductances are not known")
        if mean_conductance is None
        else Figure(mean_conductance)
    )
    square = (
        Figure.unknown("mean_square_voltage: the inputs' is not known")
        if mean_square_voltage is None
        else Figure(mean_square_voltage)
    )
    return conductance * square * constants.figure("read_pulse") * cells


def stage_times(geometry: Geometry, plan: Layout, constants: CostConstants) -> tuple[Figure, Figure, Figure]:
    """Seconds of one pulse's stages: read, convert (ADCs in turn), accumulate (a tree over row tiles)."""
    added = plan.row_tiles * plan.conversions_per_output * geometry.input_cycles > 1
    depth = 1 + ceil(log2(plan.row_tiles)) if added else 0
    convert = _adc_bits(geometry) * constants.figure("adc_time") * plan.turns
    return constants.figure("read_pulse"), convert, constants.figure("add_time") * depth


def pipelined(stages: tuple[Figure, Figure, Figure], pulses: int) -> tuple[Figure, Figure, Figure]:
    """Seconds that each stage adds to the whole of `pulses` overlapping pulses.

    Each stage runs once in full; the other pulses wait for the slowest, which is charged with that. When a
    stage's time is unknown, so is the slowest, and each stage keeps its own single pass.
    """
    slowest = largest(stages)
    if slowest.value is None:
        return stages
    at = [stage.value for stage in stages].index(slowest.value)
    read, convert, accumulate = (
        stage + slowest * (pulses - 1) if index == at else stage for index, stage in enumerate(stages)
    )
    return read, convert, accumulate


def _adc_bits(geometry: Geometry) -> Figure:
    if geometry.adc_bits is None:
        return Figure.unknown("adc_bits: an ideal ADC has no cost that is known")
    return Figure(float(geometry.adc_bits))


def _dac_bits(geometry: Geometry) -> Figure:
    if geometry.dac_bits is None:
        return Figure.unknown("dac_bits: an ideal DAC has no cost that is known")
    return Figure(float(geometry.dac_bits))


def _steps(bits: Figure) -> Figure:
    return bits if bits.value is None else Figure(2.0**bits.value)


def conversion_energy(geometry: Geometry, constants: CostConstants) -> Figure:
    """Joules of one ADC conversion: energy per step times 2**bits (Walden)."""
    return _steps(_adc_bits(geometry)) * constants.figure("adc_energy")


def _drivers(geometry: Geometry, plan: Layout, constants: CostConstants, pulses: int) -> CostRow:
    lines = geometry.in_features * plan.col_tiles * plan.planes
    return CostRow(
        "drivers",
        constants.figure("driver_energy") * (geometry.cols * lines * pulses),
        NOTHING,
        constants.figure("driver_area") * (plan.arrays * geometry.rows),
        lines * pulses,
        note="each drives one word line; time is part of the read pulse",
    )


def _dac(geometry: Geometry, plan: Layout, constants: CostConstants, pulses: int) -> CostRow:
    conversions = geometry.in_features * plan.col_tiles * plan.planes * pulses
    if geometry.dac_bits == 1:
        return CostRow("dac", NOTHING, NOTHING, NOTHING, 0, note="a 1-bit DAC is the word line's driver")
    steps = _steps(_dac_bits(geometry))
    return CostRow(
        "dac",
        steps * constants.figure("dac_energy") * conversions,
        NOTHING,
        steps * constants.figure("dac_area") * (plan.arrays * geometry.rows),
        conversions,
        note="one per word line; time is part of the read pulse",
    )


def _sample_and_hold(geometry: Geometry, plan: Layout, constants: CostConstants, pulses: int) -> CostRow:
    bit_lines = geometry.out_features * geometry.slices * geometry.sides
    references = geometry.reference_columns * plan.col_tiles * plan.planes
    samples = (bit_lines + references) * plan.row_tiles * pulses
    note = "one per bit line"
    if plan.conversions_per_output < geometry.slices * geometry.sides:
        note += "; adding slices and sides by sharing these charges is taken to cost nothing more"
    return CostRow(
        "sample and hold",
        constants.figure("sample_energy") * samples,
        NOTHING,
        constants.figure("sample_area") * (plan.arrays * geometry.cols),
        samples,
        note=note,
    )


def _adc(geometry: Geometry, plan: Layout, constants: CostConstants, pulses: int, latency: Figure) -> CostRow:
    conversions = plan.conversions * pulses
    return CostRow(
        "adc",
        conversion_energy(geometry, constants) * conversions,
        latency,
        _steps(_adc_bits(geometry)) * constants.figure("adc_area") * plan.adcs,
        conversions,
        note=f"{plan.adcs} ADCs, each up to {geometry.columns_per_adc} outputs in turn",
    )


def _accumulation(
    geometry: Geometry, plan: Layout, constants: CostConstants, batch: int, latency: Figure
) -> CostRow:
    terms = plan.row_tiles * plan.conversions_per_output * geometry.input_cycles
    additions = geometry.out_features * (terms - 1) * batch
    return CostRow(
        "accumulation",
        constants.figure("add_energy") * additions,
        latency,
        constants.figure("add_area") * (plan.adcs if terms > 1 else 0),
        additions,
        note="one shift-and-add unit per ADC",
    )


def _buffers(
    geometry: Geometry, plan: Layout, constants: CostConstants, batch: int, interval: Figure
) -> CostRow:
    inputs = _dac_bits(geometry) * (geometry.in_features * geometry.input_cycles)
    outputs = Figure(float(geometry.out_features * ACCUMULATOR_BITS))
    moved = inputs * (1 + plan.col_tiles * plan.planes) + outputs * 2
    buses = ceil(plan.arrays / geometry.arrays_per_bus)
    move = (inputs + outputs / Figure(float(buses))) * constants.figure("bus_time")
    return CostRow(
        "buffers",
        moved * constants.figure("buffer_energy") * batch,
        move + excess(move, interval) * (batch - 1),
        (inputs + outputs) * constants.figure("buffer_area"),
        0 if moved.value is None else int(moved.value) * batch,
        moved_bytes=0 if moved.value is None else ceil(moved.value * batch / 8),
        note=(
            "one vector in and out: inputs are written once and read by every array of a row, outputs of "
            f"{ACCUMULATOR_BITS} bits written and read once; {buses} buses, each brings all inputs"
        ),
    )


def excess(longer: Figure, shorter: Figure) -> Figure:
    """How much longer the first takes than the second; 0 if it does not."""
    if longer.value is None or shorter.value is None:
        return Figure(None, longer.missing | shorter.missing)
    return Figure(max(longer.value - shorter.value, 0.0))
