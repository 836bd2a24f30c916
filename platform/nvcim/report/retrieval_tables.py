"""What a search over stored token sets costs, as tables of text: time, energy, ratios, and what they rest on."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nvcim.prompts.retrieval_cost import NOT_A_REPRODUCTION
from nvcim.report.crossbar_tables import TextTable
from nvcim.report.groups import Row, distinct
from nvcim.report.units import engineering

CROSSBAR = "crossbar"


def retrieval_tables(rows: Sequence[Row]) -> list[TextTable]:
    """Latency, energy and ratios with a column per processor, then every assumption; rows of `retrieval_cost`."""
    single = one_per_processor(rows)
    made = [
        _table("Time of one search", single, lambda row: engineering(row["latency_s"], "s")),
        _table(
            "Energy of one search",
            [row for row in single if row["energy_j"] is not None],
            lambda row: engineering(row["energy_j"], "J"),
        ),
    ]
    made += [_ratio_table(rows, device) for device in distinct(rows, "device")]
    return [table for table in [*made, _assumptions(single)] if table.rows]


def _ratio_table(rows: Sequence[Row], device: str) -> TextTable:
    """How many times a crossbar's time and energy each processor takes."""
    own = [row for row in rows if row["device"] == device and row["what"] != CROSSBAR]
    # A column per processor and quantity, in the form that `_table` takes.
    ratios = [
        {**row, "processor": f"{quantity}: {row['processor']}", "ratio": row[column]}
        for quantity, column in (("time", "time_ratio"), ("energy", "energy_ratio"))
        for row in own
        if row[column] is not None
    ]
    table = _table(
        f"Time and energy of one search over those of crossbars of {device}",
        ratios,
        lambda row: times(row["ratio"]),
    )
    return replace(table, notes=(f"{NOT_A_REPRODUCTION}.",))


def times(ratio: float) -> str:
    """Three digits of a ratio, without an exponent: 182,345.6 is `182,000x`."""
    rounded = float(f"{ratio:.3g}")
    return f"{rounded:,.0f}x" if rounded >= 100 else f"{rounded:g}x"


def one_per_processor(rows: Sequence[Row]) -> list[Row]:
    """Each processor once per number of sets (it is in the table once per crossbar that it is compared with).

    The processor's name of a crossbar is made to name all devices that it stands for.
    """
    found: dict[tuple[int, str], Row] = {}
    crossbars_first = sorted(rows, key=lambda row: row["what"] != CROSSBAR)
    for row in crossbars_first:
        name = f"crossbar of {row['device']}" if row["what"] == CROSSBAR else row["processor"]
        found.setdefault((row["ovts"], name), {**row, "processor": name})
    return list(found.values())


def _table(title: str, rows: Sequence[Row], cell: Callable[[Row], str]) -> TextTable:
    """Rows are numbers of sets, columns processors with the basis of their figures."""
    processors = distinct(rows, "processor")
    columns = {name: _basis([row for row in rows if row["processor"] == name]) for name in processors}
    by_place = {(row["ovts"], row["processor"]): row for row in rows}
    lines = []
    for ovts in sorted(distinct(rows, "ovts")):
        cells = []
        for name in processors:
            row = by_place.get((ovts, name))
            # Where a column mixes measured and modelled figures, each says which it is.
            mark = f" {row['basis']}" if row is not None and " and " in columns[name] else ""
            cells.append("" if row is None else f"{cell(row)}{mark}")
        lines.append((f"{ovts:,}", *cells))
    headings = (f"{name} ({columns[name]})" for name in processors)
    return TextTable(title, ("stored sets", *headings), lines)


def _basis(rows: Sequence[Row]) -> str:
    return " and ".join(sorted({row["basis"] for row in rows}))


def _assumptions(rows: Sequence[Row]) -> TextTable:
    """What each processor's figures rest on, with the numbers of sets that it holds for."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        key = (row["processor"], row["basis"], row["assumption"])
        sets.setdefault(key, []).append(f"{row['ovts']:,}")
    order = distinct(rows, "processor")
    lines = [
        (processor, basis, "; ".join(found), assumption)
        for (processor, basis, assumption), found in sorted(
            sets.items(), key=lambda item: order.index(item[0][0])
        )
    ]
    return TextTable("What these figures rest on", ("processor", "basis", "stored sets", "assumption"), lines)
