"""Modelled figures that know when they are unknown, and tables of them by component.

A `Figure` is a number or the reasons why there is none. Sums and products with an unknown figure are unknown
and keep its reasons, so a constant that nobody published never turns into a silent zero.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import isfinite

from nvcim.errors import ConfigError

MODELLED = "modelled"
"""The basis of every figure of the cost model: computed from a formula, never measured."""


@dataclass(frozen=True)
class Figure:
    """A number, or (with `value` None) the reasons why it is unknown.

    Raises:
        ConfigError: NaN or infinity, an unknown figure without a reason, or a known one with reasons.
    """

    value: float | None
    missing: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.value is not None and not isfinite(self.value):
            raise ConfigError(f"a cost figure is {self.value}; allowed: finite numbers")
        if (self.value is None) != bool(self.missing):
            raise ConfigError(f"a cost figure is {self.value} with reasons {sorted(self.missing)}")

    @classmethod
    def unknown(cls, reason: str) -> "Figure":
        """A figure that nobody can compute, and why."""
        return cls(None, frozenset((reason,)))

    def __add__(self, other: "Figure") -> "Figure":
        if self.value is None or other.value is None:
            return Figure(None, self.missing | other.missing)
        return Figure(self.value + other.value)

    def __mul__(self, other: "Figure | float") -> "Figure":
        factor = other if isinstance(other, Figure) else Figure(other)
        if self.value is None or factor.value is None:
            return Figure(None, self.missing | factor.missing)
        return Figure(self.value * factor.value)

    def __truediv__(self, other: "Figure") -> "Figure":
        if self.value is None or other.value is None:
            return Figure(None, self.missing | other.missing)
        if other.value == 0:
            return Figure.unknown("divided by a cost of zero")
        return Figure(self.value / other.value)


NOTHING = Figure(0.0)
"""A cost that is known to be zero (the row's note says why)."""


def largest(figures: Iterable[Figure]) -> Figure:
    """The largest of some figures; unknown when any of them is."""
    figures = tuple(figures)
    missing = frozenset[str]().union(*(figure.missing for figure in figures))
    if missing:
        return Figure(None, missing)
    return Figure(max((figure.value or 0.0 for figure in figures), default=0.0))


@dataclass(frozen=True)
class CostRow:
    """What one component costs.

    energy in joules; latency in seconds, the time that the component adds to the critical path, so latencies
    of a table add up; area in mm2, of all of the component's instances; `operations` counts the component's
    own events (pulses, conversions, additions), `moved_bytes` what it moves.
    """

    component: str
    energy: Figure
    latency: Figure
    area: Figure
    operations: int
    moved_bytes: int = 0
    note: str = ""

    def missing(self) -> frozenset[str]:
        """Why figures of this row are unknown; empty when all are known."""
        return self.energy.missing | self.latency.missing | self.area.missing

    def as_record(self) -> dict[str, str | float | int | None]:
        """One flat row for an Arrow table; unknown figures are None, with the reasons under `missing`."""
        return {
            "component": self.component,
            "energy_j": self.energy.value,
            "latency_s": self.latency.value,
            "area_mm2": self.area.value,
            "operations": self.operations,
            "moved_bytes": self.moved_bytes,
            "basis": MODELLED,
            "note": self.note,
            "missing": "; ".join(sorted(self.missing())),
        }


@dataclass(frozen=True)
class CostTable:
    """Costs by component. Components are unique; order is the table's own.

    Raises:
        ConfigError: two rows of one component.
    """

    rows: tuple[CostRow, ...]

    def __post_init__(self) -> None:
        names = [row.component for row in self.rows]
        if len(set(names)) != len(names):
            raise ConfigError(f"a cost table names a component twice: {', '.join(names)}")

    def __iter__(self) -> Iterator[CostRow]:
        return iter(self.rows)

    def __getitem__(self, component: str) -> CostRow:
        for row in self.rows:
            if row.component == component:
                return row
        allowed = ", ".join(row.component for row in self.rows)
        raise ConfigError(f"no cost of component '{component}'; allowed: {allowed}")

    def total(self) -> CostRow:
        """The sum over components; a figure that one component lacks is unknown in the total."""
        energy = latency = area = NOTHING
        for row in self.rows:
            energy, latency, area = energy + row.energy, latency + row.latency, area + row.area
        operations = sum(row.operations for row in self.rows)
        return CostRow("total", energy, latency, area, operations, sum(row.moved_bytes for row in self.rows))

    def repeated(self, times: int) -> "CostTable":
        """The cost of doing the same `times` times, one after the other, on the same hardware.

        Raises:
            ConfigError: a negative number of times.
        """
        if times < 0:
            raise ConfigError(f"a cost cannot be repeated {times} times; allowed: 0 or more")
        rows = (
            replace(
                row,
                energy=row.energy * times,
                latency=row.latency * times,
                operations=row.operations * times,
                moved_bytes=row.moved_bytes * times,
            )
            for row in self.rows
        )
        return CostTable(tuple(rows))

    def as_records(self) -> list[dict[str, str | float | int | None]]:
        """Flat rows for an Arrow table (`pyarrow.Table.from_pylist`)."""
        return [row.as_record() for row in self.rows]
