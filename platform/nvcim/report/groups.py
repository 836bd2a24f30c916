"""Rows of result tables, grouped and summarised for figures."""

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def distinct(rows: Sequence[Row], column: str) -> list[Any]:
    """Values of a column in the order they first appear."""
    return list(dict.fromkeys(row[column] for row in rows))


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows whose columns equal the wanted values."""
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


def values(rows: Sequence[Row], column: str) -> list[float]:
    """Numbers of a column, without the empty ones."""
    return [float(row[column]) for row in rows if row[column] is not None]


def mean(numbers: Sequence[float]) -> float | None:
    """Mean, or None of nothing."""
    return statistics.fmean(numbers) if numbers else None


def spread(numbers: Sequence[float]) -> float:
    """Sample standard deviation; 0 for fewer than two numbers."""
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def basis_of(rows: Sequence[Row]) -> str:
    """`measured`, `modelled`, or both, as the rows say."""
    return " and ".join(sorted({row["basis"] for row in rows}))
