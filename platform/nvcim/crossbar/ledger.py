"""A ledger of costs that adds up over layers, models and nodes.

Sums are exact (rational arithmetic), so the totals of a fleet are the same however its nodes were packed on
hosts and in whatever order their ledgers arrived.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nvcim.crossbar.cost_table import MODELLED, CostTable, Figure
from nvcim.errors import ConfigError

Key = tuple[tuple[str, ...], str]
"""Where a cost arose, outermost first (node, model, layer), and the component."""


@dataclass(frozen=True)
class Sum:
    """A sum of figures: what is known of it, exactly, and why the rest is not."""

    known: Fraction = Fraction(0)
    missing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, figure: Figure, times: int) -> "Sum":
        """`times` equal figures."""
        return cls(Fraction(0 if figure.value is None else figure.value) * times, figure.missing)

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.known + other.known, self.missing | other.missing)

    @property
    def value(self) -> float | None:
        """The sum, or None when a part of it is unknown (`known` is then a lower bound)."""
        return None if self.missing else float(self.known)


@dataclass(frozen=True)
class Entry:
    """Totals of one component: energy (J), latency (s, one use after the other), operations, bytes moved."""

    energy: Sum = Sum()
    latency: Sum = Sum()
    operations: int = 0
    moved_bytes: int = 0

    def __add__(self, other: "Entry") -> "Entry":
        return Entry(
            self.energy + other.energy,
            self.latency + other.latency,
            self.operations + other.operations,
            self.moved_bytes + other.moved_bytes,
        )


@dataclass(frozen=True)
class Ledger:
    """Immutable totals by place and component; `+` merges, in any order and grouping, to the same totals.

    Latencies are added as if one use followed the other; what runs at once on several nodes takes the longest
    of their ledgers instead. Areas do not add up over uses and are not kept.
    """

    entries: Mapping[Key, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, table: CostTable, *place: str, times: int = 1) -> "Ledger":
        """The ledger of a table's costs, incurred `times` times at `place` (outermost first).

        Raises:
            ConfigError: a negative number of times.
        """
        if times < 0:
            raise ConfigError(f"a cost cannot be booked {times} times; allowed: 0 or more")
        if times == 0:
            return cls()
        return cls(
            {
                (place, row.component): Entry(
                    Sum.of(row.energy, times),
                    Sum.of(row.latency, times),
                    row.operations * times,
                    row.moved_bytes * times,
                )
                for row in table
            }
        )

    def __add__(self, other: "Ledger") -> "Ledger":
        merged = dict(self.entries)
        for key, entry in other.entries.items():
            merged[key] = merged[key] + entry if key in merged else entry
        return Ledger(merged)

    def __hash__(self) -> int:
        return hash(frozenset(self.entries.items()))

    def under(self, *place: str) -> "Ledger":
        """The same ledger as part of something larger: `layers.under("model").under("node-7")`."""
        return Ledger({((*place, *at), component): entry for (at, component), entry in self.entries.items()})

    def to_depth(self, depth: int) -> "Ledger":
        """Merge all places that agree in their first `depth` names; 0 merges everything.

        Raises:
            ConfigError: a negative depth.
        """
        if depth < 0:
            raise ConfigError(f"depth is {depth}; allowed: 0 or more")
        merged: dict[Key, Entry] = {}
        for (place, component), entry in self.entries.items():
            key = (place[:depth], component)
            merged[key] = merged.get(key, Entry()) + entry
        return Ledger(merged)

    def total(self) -> Entry:
        """Everything together."""
        return sum(self.entries.values(), start=Entry())

    def __iter__(self) -> Iterator[tuple[Key, Entry]]:
        return iter(sorted(self.entries.items(), key=lambda item: item[0]))

    def as_records(self) -> list[dict[str, str | float | int | None]]:
        """Flat rows for an Arrow table, sorted by place and component; unknown sums are None, with reasons."""
        return [
            {
                "place": "/".join(place),
                "component": component,
                "energy_j": entry.energy.value,
                "latency_s": entry.latency.value,
                "operations": entry.operations,
                "moved_bytes": entry.moved_bytes,
                "basis": MODELLED,
                "missing": "; ".join(sorted(entry.energy.missing | entry.latency.missing)),
            }
            for (place, component), entry in self
        ]
