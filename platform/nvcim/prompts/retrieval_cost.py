"""What it costs to find one query's token set among N stored ones: on crossbars, on this CPU, on an edge CPU.

The search is one vector times a matrix [n * code, N] and the place of the largest score, on every processor; encoding
the query is left out on all of them. The crossbar and the edge CPUs are modelled (`nvcim.crossbar.cost`,
`nvcim.crossbar.edge_cpu`), this CPU is measured; every row says which, and what was assumed.

How it scales: a column of cells per stored set, so arrays grow with N. Cells keep their codes, so nothing is written
for a search; but a chip drives and converts only so many arrays at a time (`chip_arrays`), and others wait for their
turn. So time grows while the arrays of one bus fill up, then with log N (the winner's tree) up to a chip, and in
proportion to N beyond. The default is ISAAC's chip (Shafiee et al., ISCA 2016: 168 tiles of 12 x 8 arrays), the source
of most constants; the power that it draws while it searches is part of the assumption. `chip_arrays: null` reads
everything at once. A million sets of 512 elements of 8 bits in 2-bit cells lie in the arrays of more than fifteen such
chips, whether they are read at once or not.

The winner is found by a tree of comparators over the scores of a round, and one comparison with the best of the rounds
before. A comparison costs what the constants say of a 32-bit addition. Bringing scores to the tree is in the
`buffers` of the product; wires between arrays are modelled nowhere.
"""

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.crossbar import CrossbarConfig
from nvcim.crossbar.cost import Geometry, layout, product_cost
from nvcim.crossbar.cost_constants import CostConstants, load_cost_constants
from nvcim.crossbar.cost_table import MODELLED, NOTHING, CostRow, CostTable, Figure
from nvcim.crossbar.edge_cpu import edge_cost, load_edge_cpu
from nvcim.crossbar.geometry import geometry_of
from nvcim.errors import ConfigError
from nvcim.randomness import named_generator

MEASURED = "measured"
NOT_A_REPRODUCTION = (
    "NVCiM-PT reports up to 120x less time and 60x less energy than a Jetson Orin's CPU; its numbers of stored sets, "
    "simulator settings and way of measuring are not known, so these ratios are this model's own, not a reproduction"
)
"""To be printed with every ratio."""

EDGE_CACHES: Mapping[str, int] = {
    # Raspberry Pi 4's BCM2711: 1 MiB of L2, shared by the four cores (Raspberry Pi documentation, BCM2711)
    "cortex-a72": 2**20,
    # 12 cores x 256 KiB of L2 and 3 clusters x 2 MiB of L3 (NVIDIA Jetson AGX Orin Series technical brief)
    "jetson-agx-orin-cpu": 9 * 2**20,
}
"""Bytes of the last level of cache that its cores share; a matrix that fits is taken to stay there between queries."""

MEMORY_LIMIT = 2_500_000_000
SHORTEST_TIMING = 1e-3
"""Seconds that one repeat lasts at least, by calling the search several times."""
Precision = Literal["float32", "int8"]
BYTES: Mapping[Precision, int] = {"float32": 4, "int8": 1}
RowValue = str | int | float | None


class SearchHardware(Settings):
    """What the crossbar settings do not say of the hardware that searches, and which edge CPUs to compare with."""

    chip_arrays: int | None = Field(
        168 * 96,
        ge=1,
        description="arrays that are read at once; others wait for their turn; null: all at once",
    )
    columns_per_adc: int = Field(8, ge=1, description="outputs that share one ADC, in turn")
    arrays_per_bus: int = Field(96, ge=1, description="arrays that share a buffer")
    on_ohm: float = Field(
        100e3, gt=0, description="of a device without published conductances: DNN+NeuroSim V1.4, Param.cpp"
    )
    off_ohm: float = Field(1.7e6, gt=0, description="likewise")
    edge_cpus: tuple[str, ...] = Field(
        ("cortex-a72", "jetson-agx-orin-cpu"), description="of the file of cost constants"
    )


@dataclass(frozen=True)
class SearchCost:
    """A search on crossbars, modelled.

    Attributes:
        table: energy and latency by component; `winner` is the comparison of the scores.
        arrays: that hold the stored sets.
        rounds: in which they are read, one after the other.
    """

    table: CostTable
    arrays: int
    rounds: int


@dataclass(frozen=True)
class SearchTime:
    """Seconds that this CPU takes for one search, on one thread; `how` says how they were found."""

    ovts: int
    precision: Precision
    seconds: float
    basis: str
    how: str


def search_cost(
    config: CrossbarConfig,
    rows: int,
    ovts: int,
    hardware: SearchHardware | None = None,
    constants: CostConstants | None = None,
) -> SearchCost:
    """Energy and latency of one search.

    Args:
        config: cells, arrays and converters.
        rows: elements of a stored set's code (n * code).
        ovts: stored sets.
        hardware: null: the defaults.
        constants: null: the built-in ones.

    Raises:
        ConfigError: a chip that cannot read one stored set at once, or as `geometry_of`.
        DeviceError: as `geometry_of`.
    """
    hardware = hardware or SearchHardware()
    constants = constants or load_cost_constants()
    plan = layout(_geometry(config, rows, ovts, hardware))
    per_column_tile = plan.row_tiles * plan.planes
    at_once = plan.col_tiles if hardware.chip_arrays is None else hardware.chip_arrays // per_column_tile
    if at_once < 1:
        raise ConfigError(
            f"field 'chip_arrays' is {hardware.chip_arrays}; a stored set of {rows} elements lies in {per_column_tile}"
        )
    rounds = ceil(plan.col_tiles / at_once)
    columns = min(ovts, at_once * plan.outputs_per_array)
    last = ovts - (rounds - 1) * columns
    whole = _round_cost(config, rows, columns, hardware, constants).repeated(rounds - 1)
    ending = _round_cost(config, rows, last, hardware, constants)
    between = CostRow(
        "best of the rounds",
        constants.figure("add_energy") * (rounds - 1),
        constants.figure("add_time") * (rounds - 1),
        NOTHING,
        rounds - 1,
        note="one comparison with the best of the rounds before",
    )
    return SearchCost(
        CostTable((*(_sum(row, ending[row.component]) for row in whole), between)), plan.arrays, rounds
    )


def time_search(
    rows: int, ovts: Sequence[int], repeats: int, memory_limit: int = MEMORY_LIMIT
) -> list[SearchTime]:
    """Time the search on this CPU: float32 and int8, one thread, the winner's place included.

    The matrix holds random int8 codes, as float32 or as they are. A size above `memory_limit` bytes is not measured:
    its time is its bytes over the bytes per second of the largest matrix below the limit, and labelled modelled.

    Args:
        rows: elements of a stored set's code.
        ovts: numbers of stored sets.
        repeats: timings of which the median is taken.
        memory_limit: bytes of the largest matrix that is made.

    Raises:
        ConfigError: sizes or repeats below 1, or a limit that holds no stored set.
    """
    if rows < 1 or repeats < 1 or min(ovts, default=1) < 1:
        raise ConfigError(
            f"{rows} rows, {list(ovts)} stored sets, {repeats} repeats; allowed: 1 or more of each"
        )
    if memory_limit < rows * max(BYTES.values()):
        raise ConfigError(f"field 'memory_limit' is {memory_limit}; one stored set takes {rows * 4} bytes")
    found = []
    for precision, size in BYTES.items():
        fits = memory_limit // (rows * size)
        with _one_thread():
            at = {n: _median_time(precision, rows, n, repeats) for n in sorted({min(n, fits) for n in ovts})}
        for count in ovts:
            if count <= fits:
                how = f"median of {repeats} repeats, codes as {precision}, one thread"
                found.append(SearchTime(count, precision, at[count], MEASURED, how))
                continue
            bandwidth = fits * rows * size / at[fits]
            how = (
                f"extrapolated, not measured: bytes of the codes as {precision} over {bandwidth / 1e9:.3g} GB/s, "
                f"measured at {fits} stored sets, one thread"
            )
            found.append(SearchTime(count, precision, count * rows * size / bandwidth, MODELLED, how))
    return found


def retrieval_cost_rows(
    config: CrossbarConfig,
    tokens: int,
    code: int,
    ovts: Sequence[int],
    repeats: int = 5,
    hardware: SearchHardware | None = None,
    times: Sequence[SearchTime] | None = None,
) -> list[dict[str, RowValue]]:
    """One flat row per number of stored sets and processor, for a table.

    Columns: `ovts`; `device`, the crossbar's cells, also in the rows of the processors that are compared with it;
    `what` (crossbar, this CPU, edge CPU); `processor`; `latency_s` and `energy_j` of one search, None where unknown;
    `time_ratio` and `energy_ratio`, that processor's over the crossbar's; `arrays` and `rounds` of the crossbar;
    `basis`, measured or modelled; `assumption`. Print `NOT_A_REPRODUCTION` with the ratios.

    Args:
        config: cells, arrays and converters of the crossbar; `weight_bits` is the precision of a code's element.
        tokens: virtual tokens of a stored set (n).
        code: width of a token's code.
        ovts: numbers of stored sets.
        repeats: timings of this CPU of which the median is taken.
        hardware: null: the defaults.
        times: this CPU's, from `time_search`, to serve several devices; null: they are measured now.

    Raises:
        ConfigError: as `search_cost`, `time_search` and `load_edge_cpu`, or no time for a number of stored sets.
    """
    hardware = hardware or SearchHardware()
    rows = tokens * code
    times = time_search(rows, ovts, repeats) if times is None else times
    absent = sorted(set(ovts) - {time.ovts for time in times})
    if absent:
        raise ConfigError(f"no time of this CPU for {absent[0]} stored sets; those there: {len(times)}")
    table = []
    for count in ovts:
        crossbar = _crossbar(config, rows, count, hardware)
        table.append(_row(count, config.device, crossbar, None))
        # codes of more than 8 bits are no int8, and would be wider on that CPU
        mine = [
            time for time in times if time.ovts == count and config.weight_bits <= 8 * BYTES[time.precision]
        ]
        others = [_this_cpu(time) for time in mine]
        others += [_edge_cpu(name, rows, count, config.weight_bits) for name in hardware.edge_cpus]
        table += [_row(count, config.device, other, crossbar) for other in others]
    return table


def devices_told_apart(
    config: CrossbarConfig, devices: Sequence[str], hardware: SearchHardware | None = None
) -> list[tuple[str, ...]]:
    """Devices in groups that the cost model cannot tell apart: as many cells per element, the same conductances.

    Of the paper's five, only the one with one bit per cell differs from the four with two: none of them has published
    conductances, and a spread of writes costs a read nothing.

    Raises:
        DeviceError: a device that the catalogue does not hold.
        ConfigError: as `geometry_of`.
    """
    hardware = hardware or SearchHardware()
    groups: dict[object, tuple[str, ...]] = {}
    for name in devices:
        own = config.model_copy(update={"device": name})
        key = (_geometry(own, 1, 1, hardware), _mean_conductance(own, hardware))
        groups[key] = (*groups.get(key, ()), name)
    return list(groups.values())


@dataclass(frozen=True)
class _Processor:
    """Whatever searches, and what one search costs it."""

    what: str
    name: str
    latency: Figure
    energy: Figure
    basis: str
    assumption: str
    arrays: int | None = None
    rounds: int | None = None


def _row(ovts: int, device: str, own: _Processor, crossbar: _Processor | None) -> dict[str, RowValue]:
    """A row of the table; `crossbar` is what the ratios refer to, None for the crossbar's own row."""
    return {
        "ovts": ovts,
        "device": device,
        "what": own.what,
        "processor": own.name,
        "latency_s": own.latency.value,
        "energy_j": own.energy.value,
        "time_ratio": None if crossbar is None else (own.latency / crossbar.latency).value,
        "energy_ratio": None if crossbar is None else (own.energy / crossbar.energy).value,
        "arrays": own.arrays,
        "rounds": own.rounds,
        "basis": own.basis,
        "assumption": own.assumption,
    }


def _geometry(config: CrossbarConfig, rows: int, columns: int, hardware: SearchHardware) -> Geometry:
    return geometry_of(config, rows, columns, hardware.columns_per_adc, hardware.arrays_per_bus)


def _round_cost(
    config: CrossbarConfig, rows: int, columns: int, hardware: SearchHardware, constants: CostConstants
) -> CostTable:
    """One product with the columns that are read at once, and the winner among them."""
    voltage = constants.figure("read_voltage").value
    product = product_cost(
        _geometry(config, rows, columns, hardware),
        constants,
        mean_conductance=_mean_conductance(config, hardware),
        mean_square_voltage=None if voltage is None else voltage**2 * _mean_square_input(config),
    )
    winner = CostRow(
        "winner",
        constants.figure("add_energy") * (columns - 1),
        constants.figure("add_time") * (columns - 1).bit_length(),  # ceil(log2(columns)) levels of the tree
        NOTHING,
        columns - 1,
        note="a tree of comparators, each at the cost of a 32-bit addition; area not counted",
    )
    return CostTable((*product, winner))


def _sum(one: CostRow, other: CostRow) -> CostRow:
    return CostRow(
        one.component,
        one.energy + other.energy,
        one.latency + other.latency,
        one.area,
        one.operations + other.operations,
        one.moved_bytes + other.moved_bytes,
        note=one.note,
    )


def _mean_conductance(config: CrossbarConfig, hardware: SearchHardware) -> float:
    """Siemens: the middle of the range. Codes are mostly small numbers, whose cells conduct less: an upper bound."""
    cell = config.cell()
    if cell.g_min is None or cell.g_max is None:
        return (1 / hardware.on_ohm + 1 / hardware.off_ohm) / 2
    return (cell.g_min + cell.g_max) / 2


def _mean_square_input(config: CrossbarConfig) -> float:
    """Of inputs spread evenly over the DAC's range; of pulses, half of which are on, if bit-serial."""
    return 1 / 2 if config.input_coding == "bit_serial" else 1 / 3


def _crossbar(config: CrossbarConfig, rows: int, ovts: int, hardware: SearchHardware) -> _Processor:
    constants = load_cost_constants()
    cost = search_cost(config, rows, ovts, hardware, constants)
    total = cost.table.total()
    cell = config.cell()
    conductances = f"conductances of {config.device}"
    if cell.g_min is None or cell.g_max is None:
        conductances = (
            f"conductances of {config.device} not published: {hardware.on_ohm / 1e3:g} to "
            f"{hardware.off_ohm / 1e3:g} kOhm assumed (DNN+NeuroSim V1.4)"
        )
    limit = "all" if hardware.chip_arrays is None else f"at most {hardware.chip_arrays}"
    power = (total.energy / total.latency).value
    assumption = (
        f"{constants.node_nm:g} nm, converters at their published nodes; {cost.arrays} arrays of {config.rows} x "
        f"{config.cols}, {limit} read at once, {cost.rounds} round(s){_watts(power)}; {hardware.columns_per_adc} "
        f"columns per ADC of {config.adc_bits} bits; DAC of {config.dac_bits} bits; {conductances}, cells in the "
        "middle of the range; comparators cost as 32-bit adders; leakage, control, wires between arrays and encoding "
        f"of the query not modelled{_unknown(total)}"
    )
    name = f"{config.device} crossbar"
    return _Processor(
        "crossbar", name, total.latency, total.energy, MODELLED, assumption, cost.arrays, cost.rounds
    )


def _watts(power: float | None) -> str:
    return "" if power is None else f", {power:.2g} W while it searches"


def _unknown(total: CostRow) -> str:
    """Why energy or latency are unknown, to end an assumption with."""
    missing = "; ".join(sorted(total.energy.missing | total.latency.missing))
    return f"; unknown: {missing}" if missing else ""


def _this_cpu(time: SearchTime) -> _Processor:
    energy = Figure.unknown("this CPU's energy was not metered")
    assumption = f"{time.how}; energy not metered; encoding of the query left out"
    name = f"{_cpu_name()}, {time.precision}"
    return _Processor("this CPU", name, Figure(time.seconds), energy, time.basis, assumption)


def _edge_cpu(name: str, rows: int, ovts: int, bits: int) -> _Processor:
    """A roofline: packed codes, from DRAM unless the cache holds them; a multiply-add is two operations."""
    cpu = load_edge_cpu(name)
    size, cache = ceil(rows * ovts * bits / 8), EDGE_CACHES.get(name, 0)
    cached = size <= cache
    total = edge_cost(cpu, 0 if cached else size, 2 * rows * ovts + ovts - 1).total()
    where = f"stay in its {cache / 2**20:g} MiB of cache" if cached else "come from DRAM for every query"
    assumption = (
        f"roofline of {cpu.title}, all cores at their peak rate, without idle power; codes of {bits} bits {where}; no "
        f"overhead per query; encoding of the query left out{_unknown(total)}"
    )
    return _Processor("edge CPU", name, total.latency, total.energy, MODELLED, assumption)


def _median_time(precision: Precision, rows: int, ovts: int, repeats: int) -> float:
    """Seconds of one search; each repeat calls it as often as `SHORTEST_TIMING` asks."""
    search = _search(precision, rows, ovts)
    search()
    calls = max(1, ceil(SHORTEST_TIMING / max(_seconds(search, 1), 1e-9)))
    return median(_seconds(search, calls) / calls for _ in range(repeats))


def _seconds(search: Callable[[], Tensor], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        search()
    return perf_counter() - start


def _search(precision: Precision, rows: int, ovts: int) -> Callable[[], Tensor]:
    """The search as torch does it fastest here: float32 on [rows, ovts], int8 on the transpose of [ovts, rows]."""
    generator = named_generator(0, "codes to time")
    # A run of random codes, each stored set starting one further: random enough, and quick to make. Of 7 bits, because
    # on processors without VNNI instructions torch's int8 product adds pairs in 16 bits, which saturate beyond.
    run = torch.randint(-63, 64, (rows + ovts - 1,), dtype=torch.int8, generator=generator)
    query = torch.randint(-127, 128, (1, rows), dtype=torch.int8, generator=generator)
    if precision == "int8":
        codes = run.unfold(0, rows, 1).contiguous()  # [ovts, rows]
        return lambda: torch._int_mm(query, codes.T).argmax()
    matrix = run.unfold(0, ovts, 1).to(torch.float32, memory_format=torch.contiguous_format)  # [rows, ovts]
    floats = query.float()
    return lambda: (floats @ matrix).argmax()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()
