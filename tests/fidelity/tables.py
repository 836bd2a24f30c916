"""Markdown tables, how figures are written in them, and how two copies of a page are compared."""

import math
import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    align = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, align, *rows))


def decimals(value: float, places: int) -> str:
    """A figure with a fixed number of decimals; no minus before zero."""
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text


def percent(value: float, places: int = 2) -> str:
    """A fraction as a percentage."""
    return f"{decimals(100 * value, places)} %"


def decade(value: float) -> str:
    """A rounding error, rounded up to a power of ten: its digits differ from one processor to the next."""
    return "0" if value == 0 else f"1e{math.ceil(math.log10(value))}"


def same_up_to_rounding(one: str, other: str) -> bool:
    """Whether two texts differ at most in the last digit of figures, or in powers of ten by two decades."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    return all(map(_close, NUMBER.findall(one), NUMBER.findall(other)))


def _close(one: str, other: str) -> bool:
    if "e" in one or "e" in other:
        if not float(one) or not float(other):
            return abs(float(one) - float(other)) < 1e-9
        return abs(math.log10(float(one) / float(other))) <= 2.01
    places = len(one.partition(".")[2])
    return abs(float(one) - float(other)) <= 1.01 * 10.0**-places * (places > 0)
