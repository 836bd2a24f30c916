"""The ledger: sums that do not depend on order, grouping or packing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcim.crossbar.cost_table import CostRow, CostTable, Figure
from nvcim.crossbar.ledger import Ledger
from nvcim.errors import ConfigError

AMOUNTS = st.one_of(
    st.floats(min_value=0, max_value=1e12, allow_nan=False).map(Figure),
    st.sampled_from(["no source", "ideal"]).map(Figure.unknown),
)
ROWS = st.builds(
    CostRow,
    component=st.sampled_from(["array", "adc", "dac"]),
    energy=AMOUNTS,
    latency=AMOUNTS,
    area=AMOUNTS,
    operations=st.integers(0, 10**12),
    moved_bytes=st.integers(0, 10**12),
)
TABLES = st.lists(ROWS, max_size=3, unique_by=lambda row: row.component).map(
    lambda rows: CostTable(tuple(rows))
)
PLACES = st.lists(st.sampled_from(["a", "b"]), max_size=2)
LEDGERS = st.builds(
    lambda table, place, times: Ledger.of(table, *place, times=times), TABLES, PLACES, st.integers(0, 5)
)


def table(energy: float, component: str = "adc") -> CostTable:
    return CostTable((CostRow(component, Figure(energy), Figure(1.0), Figure(9.0), 10, 4),))


@given(LEDGERS, LEDGERS, LEDGERS)
def test_grouping_does_not_matter(first: Ledger, second: Ledger, third: Ledger) -> None:
    assert (first + second) + third == first + (second + third)


@given(LEDGERS, LEDGERS)
def test_order_does_not_matter_and_nothing_is_changed(first: Ledger, second: Ledger) -> None:
    before = dict(first.entries)
    assert first + second == second + first
    assert hash(first + second) == hash(second + first)
    assert first.entries == before


@given(st.lists(LEDGERS, max_size=4))
def test_merged_places_keep_the_total(ledgers: list[Ledger]) -> None:
    whole = sum(ledgers, start=Ledger())
    assert whole.to_depth(1).total() == whole.total() == whole.under("node").to_depth(0).total()


@given(LEDGERS)
def test_an_empty_ledger_adds_nothing(ledger: Ledger) -> None:
    assert ledger + Ledger() == ledger


def test_many_small_sums_are_exact_where_floats_are_not() -> None:
    tenth = Ledger.of(table(0.1))
    assert sum([0.1] * 10) != 1.0
    assert sum([tenth] * 10, start=Ledger()) == Ledger.of(table(0.1), times=10)


def test_uses_multiply_what_is_booked() -> None:
    entry = Ledger.of(table(2.0), "layer", times=3).total()
    assert (entry.energy.value, entry.latency.value) == (6.0, 3.0)
    assert (entry.operations, entry.moved_bytes) == (30, 12)


def test_layers_add_up_over_models_and_nodes() -> None:
    model = Ledger.of(table(1.0), "first") + Ledger.of(table(2.0), "second")
    fleet = model.under("model").under("node-1") + model.under("model").under("node-2")
    assert [record["place"] for record in fleet.as_records()] == [
        "node-1/model/first", "node-1/model/second", "node-2/model/first", "node-2/model/second",
    ]  # fmt: skip
    assert [record["energy_j"] for record in fleet.to_depth(1).as_records()] == [3.0, 3.0]


def test_an_unknown_part_leaves_the_sum_unknown_with_its_reason_and_a_lower_bound() -> None:
    gone = CostTable((CostRow("adc", Figure.unknown("no source"), Figure(1.0), Figure(1.0), 1),))
    ledger = Ledger.of(table(5.0)) + Ledger.of(gone)
    (record,) = ledger.as_records()
    assert (record["energy_j"], record["missing"], record["basis"]) == (None, "no source", "modelled")
    assert ledger.total().energy.known == 5
    assert record["latency_s"] == 2.0


def test_a_negative_count_or_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1 times"):
        Ledger.of(table(1.0), times=-1)
    with pytest.raises(ConfigError, match="depth is -1"):
        Ledger().to_depth(-1)
    with pytest.raises(ConfigError, match="repeated -1 times"):
        table(1.0).repeated(-1)


def test_a_repeated_table_books_like_a_table_booked_repeatedly() -> None:
    assert Ledger.of(table(2.0).repeated(4)) == Ledger.of(table(2.0), times=4)
