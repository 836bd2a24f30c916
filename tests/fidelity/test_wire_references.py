"""Wires against references that share nothing with them: the limits of docs/fidelity.md."""

import pytest

from tests.fidelity import wire_tables
from tests.fidelity.report import committed
from tests.fidelity.tables import same_up_to_rounding
from tests.fidelity.wire_tables import NGSPICE

NEEDS_NGSPICE = pytest.mark.skipif(not NGSPICE, reason="ngspice is not installed")


def test_the_effective_matrix_agrees_with_the_nodal_solve() -> None:
    found = [e for e in wire_tables.exactness() if e.reference == "sparse nodal solve"]
    assert len(found) == 7
    assert max(e.double for e in found) < 1e-9
    assert max(e.single for e in found) < 1e-5


@NEEDS_NGSPICE
def test_currents_agree_with_ngspice() -> None:
    found = [e for e in wire_tables.exactness() if e.reference == "ngspice"]
    assert len(found) == 11
    for one in found:
        assert one.double < (1e-6 if "v0" in one.case else 1e-9)
        assert one.single < 1e-5


def test_the_fast_method_is_far_closer_than_no_wires_at_all() -> None:
    for one in wire_tables.approximations():
        bound = 0.1 if one.kind.startswith(wire_tables.EXTREME) else 0.0065
        assert one.outputs <= 1.1 * one.matrix
        assert one.matrix < bound
        assert one.matrix < one.ignored / 50


def test_the_fast_method_is_closer_for_less_resistance_and_for_smaller_tiles() -> None:
    rows = wire_tables.approximations()
    at = {(row.size, row.kind, row.ohm): row.matrix for row in rows}
    for size, kind, ohm in at:
        assert (size, kind, 5 * ohm) not in at or at[size, kind, ohm] < at[size, kind, 5 * ohm]
        assert (2 * size, kind, ohm) not in at or at[size, kind, ohm] < at[2 * size, kind, ohm]


def test_taking_cells_as_linear_costs_more_for_larger_voltages() -> None:
    found = [row.error for row in wire_tables.linearised()]
    assert found == sorted(found)
    # sinh(a) / a = 1 + a^2 / 6: at a tenth of v0 the largest current is off by 0.17 %, most by less
    assert found[0] < 0.0017
    assert found[-1] > 0.1


@NEEDS_NGSPICE
def test_the_page_holds_this_section() -> None:
    assert same_up_to_rounding(committed(wire_tables), wire_tables.section())
