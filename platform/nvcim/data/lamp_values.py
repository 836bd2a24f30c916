"""Values of LaMP-like files as people have them: texts, ids, ratings, dates; what is missing, and what cannot be one.

Files made with pandas hold NaN for what is missing and floats for whole numbers; tweets are cut in the middle of an
emoji; dates come from many clocks.
"""

import datetime
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nvcim.errors import DataError

DATES = "year, year-month, year-month-day, a time as ISO 8601 has it, or seconds since 1970"
"""What a date may be, for messages."""

_log = logging.getLogger(__name__)
_SHOWN = 5
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
# Months and days of one digit, and 00 where bibliographies do not know them: what `fromisoformat` refuses.
_LOOSE = re.compile(
    r"(\d{1,4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ](\d{1,2})(?::(\d{1,2})(?::(\d{1,2})(?:[.,](\d+))?)?)?Z?)?)?)?"
)
_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (float("inf"), 1e9))
"""(below, counts per second): which clock a number since 1970 is of; 1e11 seconds are the year 5138."""


@dataclass
class Notes:
    """What was left out or changed in a file, told once when it is read.

    path: the file.
    """

    path: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, identity: object) -> None:
        """Remember that `what` happened to an item."""
        self.found.setdefault(what, []).append(str(identity))

    def tell(self) -> None:
        """Log a line for each kind of thing that happened, with the ids of the first."""
        for what, items in self.found.items():
            more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
            _tell(f"{self.path}: {what}: {', '.join(items[:_SHOWN])}{more}")


@cache
def _tell(line: str) -> None:
    """Log a line, once a process: a folder is read to check it and read again to use it."""
    _log.warning(line)


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, with a byte order mark or without, or in UTF-16 or UTF-32.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())  # of bytes json finds the encoding itself
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, NaN, or a text of blanks."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def text_of(item: Mapping[str, Any], key: str, notes: Notes, identity: object) -> str | None:
    """The text of an item under a key, None where it is missing; numbers become text, whole ones without a point.

    Half a surrogate pair, what is left of an emoji that was cut through, becomes U+FFFD as Unicode advises.

    Raises:
        DataError: a list, a mapping or a truth value (file, id and key are named).
    """
    value = item[key]
    if is_missing(value):
        return None
    if isinstance(value, str):
        whole = whole_characters(value)
        if whole is not value:
            notes.add("half characters (lone surrogates) read as U+FFFD, in", f"'{identity}'")
        return whole
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{notes.path}: '{identity}' has a {type(value).__name__} as '{key}'; expected a text or a number"
        )
    return _plain_number(value)


def id_of(value: Any) -> str | None:
    """An id as text, None where it is missing or cannot be one (a list, half a surrogate pair)."""
    if is_missing(value) or isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = value if isinstance(value, str) else _plain_number(value)
    return text if whole_characters(text) is text else None


def rating_of(text: str) -> str | None:
    """A rating without the point that a float brings: '4.0' is the label '4'. None for 'nan', which is no rating.

    What is no number, or lies between whole ones, stays as it is: it is the data's own label.
    """
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return None
    return str(int(number)) if number.is_integer() else text


def whole_characters(text: str) -> str:
    """The text itself where it has no surrogates; else with pairs joined and halves replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def date_of(value: Any) -> tuple[int, ...] | None:
    """A date as numbers from the year on, comparable with others; () where it is missing, None where it is no date.

    Times with an offset from UTC are put in UTC, times without one are taken for it. Numbers are years, days written
    20140624, or counts since 1970 in seconds, milli-, micro- or nanoseconds, whichever gives a year of our age.
    """
    if is_missing(value):
        return ()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    if not isinstance(value, str) or _NUMBER.fullmatch(text):
        return _date_of_number(float(text))
    try:
        return _moment(datetime.datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        loose = _LOOSE.fullmatch(text)
    if loose is None:
        return None
    *parts, fraction = loose.groups()
    known = tuple(int(part) for part in parts if part is not None)
    return known if fraction is None else (*known, int(fraction[:6].ljust(6, "0")))


def _date_of_number(number: float) -> tuple[int, ...] | None:
    if number.is_integer() and 1 <= number <= 9999:
        return (int(number),)
    if number.is_integer() and 1900_00_00 <= number < 2100_00_00:
        try:
            return _moment(datetime.datetime.strptime(str(int(number)), "%Y%m%d"))
        except ValueError:
            pass  # no day of the calendar: a count of seconds
    try:
        per_second = next(counts for below, counts in _UNITS if abs(number) < below)
        return _moment(_EPOCH + datetime.timedelta(seconds=number / per_second))
    except (StopIteration, OverflowError, ValueError):
        return None


def _moment(time: datetime.datetime) -> tuple[int, ...]:
    at = time if time.tzinfo is None else time.astimezone(datetime.UTC)
    return (at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond)


def _plain_number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
