"""Dates of every kind that LaMP-like files hold, as one order."""

from typing import Any

import pytest

from nvcim.data.lamp_values import date_of, whole_characters

NOON = (2014, 7, 4, 0, 0, 0, 0)  # 1404432000 seconds since 1970, by `date -u -d @1404432000`


@pytest.mark.parametrize(
    ("value", "date"),
    [
        (2014, (2014,)),
        (2014.0, (2014,)),
        ("2014", (2014,)),
        ("2014-06", (2014, 6)),
        ("2014-6-4", (2014, 6, 4)),
        ("2014-00-00", (2014, 0, 0)),
        ("2014-06-24", (2014, 6, 24, 0, 0, 0, 0)),
        ("2014-06-24T10:00:00Z", (2014, 6, 24, 10, 0, 0, 0)),
        ("2014-06-24T10:00:00.5", (2014, 6, 24, 10, 0, 0, 500_000)),
        ("2014-06-24T10:00:00+00:00", (2014, 6, 24, 10, 0, 0, 0)),
        ("2014-06-24T01:30:00+05:30", (2014, 6, 23, 20, 0, 0, 0)),
        ("2014-06-24 23:00:00-0700", (2014, 6, 25, 6, 0, 0, 0)),
        ("2014-6-4 9:05:00.25", (2014, 6, 4, 9, 5, 0, 250_000)),
        (20140704, NOON),
        ("20140704", NOON),
        (1404432000, NOON),
        (1404432000.0, NOON),
        ("1404432000.0", NOON),
        (1404432000000, NOON),
        (1404432000000000, NOON),
        (1404432000000000000, NOON),
        (-86400, (1969, 12, 31, 0, 0, 0, 0)),
        (None, ()),
        (float("nan"), ()),
        ("", ()),
        ("  ", ()),
    ],
)
def test_a_date_is_numbers_from_the_year_on(value: Any, date: tuple[int, ...]) -> None:
    assert date_of(value) == date


@pytest.mark.parametrize(
    "value",
    [
        "06/24/2014",
        "in May",
        "Mon Apr 06 22:19:45 PDT 2009",
        True,
        [2014],
        {"year": 2014},
        float("inf"),
        1e30,
    ],
)
def test_what_is_no_date_or_has_two_readings_is_none(value: Any) -> None:
    assert date_of(value) is None


def test_text_without_surrogates_is_left_as_it_is() -> None:
    text = "naïve 😀"
    assert whole_characters(text) is text
    assert whole_characters("a\ud83d\ude00b\ud83d") == "a😀b\ufffd"
