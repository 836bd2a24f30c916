"""A processor at the edge, to compare a crossbar with: a roofline over its DRAM and its arithmetic.

Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009: data moves and
operations overlap, so the slower of the two sets the time. Idle power and the rest of the board are left out,
and peak rates taken, which favours the processor; data that fits its caches costs no DRAM traffic, which the
caller must say. Everything is modelled.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from nvcim.config import Settings, load_settings, parse_settings
from nvcim.crossbar.cost_constants import BUILT_IN, Constant, CostFile
from nvcim.crossbar.cost_table import NOTHING, CostRow, CostTable, Figure, largest
from nvcim.errors import ConfigError

DEFAULT = "cortex-a72"


class EdgeCpu(Settings):
    """A processor and its DRAM; values and sources in `cost_constants.yaml`."""

    title: str = Field(min_length=1)
    dram_bandwidth: Constant = Field(description="bytes per second")
    dram_energy: Constant = Field(description="joules per byte")
    operation_rate: Constant = Field(description="arithmetic operations per second")
    operation_energy: Constant = Field(description="joules per operation")


def load_edge_cpu(name: str = DEFAULT, path: Path | None = None) -> EdgeCpu:
    """Return a processor by name, from a file of cost constants or else from the built-in one.

    Raises:
        ConfigError: unreadable file, unknown name (with the allowed ones), unknown or absent field.
    """
    source = BUILT_IN if path is None else path
    known = load_settings(source, CostFile).edge_cpus
    if name not in known:
        raise ConfigError(
            f"{source}: edge CPU '{name}' is not there; allowed: {', '.join(sorted(known)) or 'none'}"
        )
    return parse_settings(known[name], EdgeCpu, source=f"{source}: edge CPU {name}")


def edge_cost(cpu: EdgeCpu, moved_bytes: int, operations: int) -> CostTable:
    """Energy and latency of moving bytes from DRAM and computing on them.

    Args:
        cpu: the processor.
        moved_bytes: DRAM traffic: a matrix that no cache holds, once a use; 0 for one that stays in a cache.
        operations: arithmetic operations; a multiply-accumulate is two.

    Returns:
        Rows `dram` and `cpu`. The one that takes longer has the latency, the other 0: they overlap.

    Raises:
        ConfigError: negative bytes or operations.
    """
    if moved_bytes < 0 or operations < 0:
        raise ConfigError(f"{moved_bytes} bytes and {operations} operations; allowed: 0 or more of each")
    bandwidth, rate = _figure(cpu, "dram_bandwidth"), _figure(cpu, "operation_rate")
    moving, computing = Figure(float(moved_bytes)) / bandwidth, Figure(float(operations)) / rate
    slower = largest((moving, computing))
    waits_for_dram = slower.value is None or moving.value == slower.value
    no_area = "area is not compared"
    return CostTable(
        (
            CostRow(
                "dram",
                _figure(cpu, "dram_energy") * moved_bytes,
                slower if waits_for_dram else NOTHING,
                Figure.unknown(no_area),
                0,
                moved_bytes,
                note="sets the time" if waits_for_dram else "hidden behind the operations",
            ),
            CostRow(
                "cpu",
                _figure(cpu, "operation_energy") * operations,
                NOTHING if waits_for_dram else slower,
                Figure.unknown(no_area),
                operations,
                note="hidden behind the DRAM" if waits_for_dram else "sets the time",
            ),
        )
    )


@dataclass(frozen=True)
class Comparison:
    """How many times less time and energy the first takes than the second; modelled."""

    time_ratio: Figure
    energy_ratio: Figure


def compare(crossbar: CostTable, edge: CostTable) -> Comparison:
    """How many times less time and energy `crossbar` takes than `edge` for the same work."""
    here, there = crossbar.total(), edge.total()
    return Comparison(there.latency / here.latency, there.energy / here.energy)


def _figure(cpu: EdgeCpu, name: str) -> Figure:
    constant = getattr(cpu, name)
    assert isinstance(constant, Constant)
    return constant.at(name, constant.node_nm or 0.0)  # a processor stays at its own node
