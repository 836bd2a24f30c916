"""The page and the way two copies of it are compared."""

import pytest

from tests.fidelity.report import HEAD, PAGE, SECTIONS, committed
from tests.fidelity.tables import decade, decimals, percent, same_up_to_rounding, table


def test_the_page_is_its_head_and_its_sections() -> None:
    assert PAGE.read_text(encoding="utf-8") == "\n".join([HEAD, *map(committed, SECTIONS)])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("sd 0.123 V", "sd 0.124 V", True),
        ("sd 0.123 V", "sd 0.125 V", False),
        ("-0.1 to 3", "0.0 to 3", True),
        ("3 chips", "4 chips", False),
        ("1e-13", "1e-11", True),
        ("1e-13", "1e-10", False),
        ("0", "1e-16", True),
        ("0.1 ohm", "0.1 volt", False),
    ],
)
def test_copies_may_differ_in_a_last_digit_only(one: str, other: str, same: bool) -> None:
    assert same_up_to_rounding(one, other) is same


def test_figures_are_written_plainly() -> None:
    assert decimals(-0.0004, 3) == "0.000"
    assert percent(0.12345) == "12.35 %"
    assert [decade(value) for value in (0.0, 3e-13, 1e-9)] == ["0", "1e-12", "1e-9"]
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
