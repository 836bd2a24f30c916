"""A segmentation comparison as tables of text: verdicts on the paper's claims, scores, differences, budget, memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from nvcim.report.crossbar_tables import TextTable
from nvcim.report.groups import Row, distinct, mean, spread, values, where
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison_statistics import FEWEST_SEEDS, LEVEL, Difference
from nvcim.sweeps.segmentation_settings import BUDGET, EVERYTHING, FLOAT, FULL, GRID
from nvcim.sweeps.segmentation_statistics import (
    MAIN,
    MEASURES,
    Arm,
    Claim,
    Scores,
    arm_scores,
    claims,
    qsa_less_sa,
    quantized_less_float,
    several_less_one,
    strategies_less_random,
    strategy_of,
)

STRATEGY_ORDER = ("QSA", "SA", "uncertainty", "random", EVERYTHING)
_OBJECTS = {
    "object_f1": "F1",
    "object_dice": "Dice",
    "object_hausdorff": "Hausdorff, px",
    "mean_object_f1": "F1 per image",
    "mean_object_dice": "Dice per image",
}
_OTHERS = {"pixel_dice": "pixel Dice", "pixel_iou": "pixel IoU", "aji": "AJI", "pq": "PQ"}
POOLED_NOTE = (
    "F1, Dice and Hausdorff are the GlaS contest's object metrics, pooled over all held-back images of a seed; 'per "
    "image' are means over images. After ±: standard deviation over seeds."
)


OTHERS_NOTE = (
    "Pooled over all held-back images of a seed; after ±: standard deviation over seeds. One side empty: images, over "
    "all seeds, where exactly one of truth and prediction holds no object."
)


def printed_tables(run: RunFolder) -> list[TextTable]:
    """Every table of a finished run, its verdicts last (RunError where it lacks a table)."""
    return [
        *split_tables(run),
        *score_tables(run),
        *crossbar_tables_of(run),
        *level_tables_of(run),
        *task_tables(run),
        *verdict_tables(run),
    ]


def verdict_tables(run: RunFolder) -> list[TextTable]:
    """The paper's claims on this run's data."""
    rows = run.read_table("segmentation_scores").to_pylist()
    found = claims(rows, _rows_of(run, "segmentation_memory"), _rows_of(run, "segmentation_crossbars"))
    return [claim_table(found, len(distinct(rows, "repeat")))] if rows else []


def score_tables(run: RunFolder) -> list[TextTable]:
    """Scores of every part, differences between arms, and memory."""
    rows = run.read_table("segmentation_scores").to_pylist()
    made = [
        *part_tables(rows, FULL, "Networks trained on the whole pool"),
        *part_tables(rows, GRID, "Networks trained on what SA and QSA had annotated"),
        *budget_tables(rows),
        difference_table(rows, qsa_less_sa, "QSA less SA, the same segmentation networks (measured)"),
        difference_table(
            rows,
            lambda scores: {**quantized_less_float(scores, FULL), **quantized_less_float(scores, GRID)},
            "Quantized less float segmentation networks (measured)",
        ),
        difference_table(rows, several_less_one, "Several networks less one (measured)"),
        difference_table(rows, strategies_less_random, "Strategies less random choice, by round (measured)"),
        memory_table(_rows_of(run, "segmentation_memory")),
    ]
    return [table for table in made if table.rows]


def claim_table(found: Sequence[Claim], seeds: int) -> TextTable:
    """Each claim with its verdict and the figures behind it."""
    notes = [
        test_note(seeds),
        f"Claims look at arms fixed beforehand: {MAIN} and float, with one network and with the most. Where a claim "
        "has several, p is Holm's over them; over different claims it is not corrected.",
        "A quantizer does as well as float within one standard deviation (over seeds) of float's score, or better; it "
        "is poor where it is told apart below and further away than that. That spread is over splits, which pairing "
        "takes out: a loss within it may be told apart, which is then said.",
        "Memory is judged on whole files of the paper-sized network; the compact one has relatively more header and "
        "normalisation.",
        "The paper's networks, data and training are others than this run's: a verdict is about the data at hand.",
    ]
    return TextTable(
        "The paper's claims on this data (measured)",
        ("claim", "measure", "verdict", "figures"),
        [(one.claim, one.measure, one.judgement, one.evidence) for one in found],
        notes,
    )


def test_note(seeds: int) -> str:
    """How differences are told apart, and what so few seeds can tell."""
    return (
        f"Told apart: two-sided paired t-test over {seeds} seed{'s' * (seeds != 1)} (all arms of a seed share its "
        f"split, start set and initial weights), p < {LEVEL:g}; its variance is (1/n + scored/trained on) times that "
        "over seeds, because seeds split the same images anew (Nadeau and Bengio 2003); not corrected for the number "
        f"of comparisons; with fewer than {FEWEST_SEEDS} seeds nothing is. A sign-flip permutation test of {seeds} "
        f"pairs cannot go below p = {2 / 2**seeds:.2g}, so a p below that rests on the differences being normal."
    )


def part_tables(rows: Sequence[Row], part: str, about: str) -> list[TextTable]:
    """Mean and spread of the scores by arm: the contest's metrics, then the others."""
    own = where(rows, part=part)
    images = ", ".join(str(count) for count in sorted(distinct(own, "images")))
    scored = f"Held-back images scored per seed: {images}."
    notes = {"object metrics": [POOLED_NOTE, scored], "other metrics": [OTHERS_NOTE, scored]}
    made = []
    for (name, said), shown in zip(notes.items(), (_OBJECTS, _OTHERS), strict=True):
        lines = [
            (
                *_named(arm),
                *(_cell(values(group, column), _digits(column)) for column in shown),
                str(len(group)),
                *((str(sum(row["one_side_empty"] for row in group)),) if shown is _OTHERS else ()),
            )
            for arm, group in by_arm(own)
        ]
        last = ("seeds", "one side empty") if shown is _OTHERS else ("seeds",)
        columns = ("images chosen by", "weights", "networks", *shown.values(), *last)
        made.append(TextTable(f"{about}, {name} (measured)", columns, lines, said))
    return made


def budget_tables(rows: Sequence[Row]) -> list[TextTable]:
    """Score by strategy and number of annotated images, a table per measure."""
    own = where(rows, part=BUDGET)
    counts = sorted({row["annotated"] for row in own})
    made = []
    for column, measure in MEASURES.items():
        lines = []
        for strategy in STRATEGY_ORDER:
            of_strategy = [row for row in own if strategy_of(row) == strategy]
            if of_strategy:
                cells = [_cell(values(where(of_strategy, annotated=count), column)) for count in counts]
                lines.append((strategy, *cells))
        shares = {row["annotated"]: row["annotated_share"] for row in own}
        heads = [f"{count} ({shares[count]:.0%})" for count in counts]
        title = f"{capital(measure)} by annotated images: one float network on each round's images (measured)"
        made.append(TextTable(title, ("images chosen by", *heads), lines, [POOLED_NOTE]))
    return made


def difference_table(
    rows: Sequence[Row],
    of: Callable[[Scores], Mapping[Arm, Difference]],
    title: str,
) -> TextTable:
    """Paired differences of both measures by arm, with p and what they tell."""
    found = {measure: of(arm_scores(rows, column)) for column, measure in MEASURES.items()}
    arms = list(dict.fromkeys(arm for differences in found.values() for arm in differences))
    lines = [
        (
            *_named(arm),
            *(cell for differences in found.values() for cell in _difference_cells(differences.get(arm))),
        )
        for arm in sorted(arms, key=_order)
    ]
    columns = [cell for measure in found for cell in (measure, "p", "told apart")]
    seeds = len(distinct(rows, "repeat"))
    return TextTable(title, ("images chosen by", "weights", "networks", *columns), lines, [test_note(seeds)])


def memory_table(rows: Sequence[Row]) -> TextTable:
    """Whole files by weights against float32; rows of `segmentation_memory`."""
    lines = [
        (
            row["network"],
            row["model"],
            f"{row['weights']:,}",
            f"{row['float32_file_bytes'] / 1024:.1f}",
            f"{row['file_bytes'] / 1024:.1f}",
            f"{row['ratio']:.2f}",
            "" if row["entropy_ratio"] is None else f"{row['entropy_ratio']:.2f}",
        )
        for row in sorted(rows, key=lambda row: (row["network"], row["model"] != FLOAT, row["model"]))
    ]
    notes = [
        "Whole files as saved: header, scales, exponents, normalisation and layers left float included. The "
        "paper-sized network has initial weights: plain codes take the same whatever the values; entropy-coded ones "
        "do not, and are measured on this run's trained networks alone."
    ]
    columns = (
        "network",
        "weights",
        "numbers",
        "float32 file, KiB",
        "file, KiB",
        "times less",
        "entropy-coded",
    )
    return TextTable("Memory of one network, whole files (measured)", columns, lines, notes)


def split_tables(run: RunFolder) -> list[TextTable]:
    """How each seed's images were split; the names are in the table `segmentation_split`."""
    rows = run.read_table("segmentation_split").to_pylist()
    lines = []
    for repeat in distinct(rows, "repeat"):
        cells = [str(repeat)]
        for role in ("pool", "held back"):
            own = where(rows, repeat=repeat, role=role)
            cells += [str(len(own)), str(sum(row["objects"] for row in own))]
        lines.append(tuple(cells))
    columns = ("seed", "images in the pool", "their objects", "held back", "their objects")
    notes = ["Split by image; the names are in segmentation_split.parquet."]
    return [TextTable("Images (counted)", columns, lines, notes)]


def crossbar_tables_of(run: RunFolder) -> list[TextTable]:
    """Scores of the whole pool's networks on crossbars, mean and spread over chips and seeds."""
    rows = _rows_of(run, "segmentation_crossbars")
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "arithmetic", "device", "sigma", "weight_bits", "step"))
        groups.setdefault(key, []).append(row)
    lines = [
        (
            *("" if part is None else f"{part:g}" if isinstance(part, float) else str(part) for part in key),
            *(
                _cell(values(own, column), _digits(column))
                for column in ("object_f1", "object_dice", "object_hausdorff")
            ),
            _cell(values(own, "weight_error")),
            _cell(values(own, "zeroed")),
        )
        for key, own in groups.items()
    ]
    columns = ("weights", "arithmetic", "device", "sigma", "bits", "step", "F1", "Dice", "Hausdorff, px")
    images = ", ".join(str(count) for count in sorted(distinct(rows, "images")))
    notes = [
        f"Images scored: {images}. After ±: standard deviation over chips and seeds. Weight error: RMS of the weights "
        "as cells hold them less the digital ones, relative. Zeroed: share of nonzero weights that become zero."
    ]
    title = "The whole pool's networks on crossbars (measured, crossbars simulated)"
    return [TextTable(title, (*columns, "weight error", "zeroed"), lines, notes)] if lines else []


def level_tables_of(run: RunFolder) -> list[TextTable]:
    """What weights alone lose on the cells' levels, by closed forms, at each device, sigma and number of bits."""
    rows = _rows_of(run, "segmentation_levels")
    groups: dict[tuple[str, str, float, int], dict[str, list[Row]]] = {}
    for row in rows:
        key = (row["model"], row["device"], row["sigma"], row["weight_bits"])
        groups.setdefault(key, {}).setdefault(row["step"], []).append(row)
    lines = [
        (
            model,
            device,
            f"{sigma:g}",
            str(bits),
            *(
                cell
                for step in ("largest", "power_of_two")
                for cell in (
                    _cell(values(by_step.get(step, []), column))
                    for column in ("level_error", "expected_error", "zeroed")
                )
            ),
        )
        for (model, device, sigma, bits), by_step in groups.items()
    ]
    sides = [f"{what}, {step}" for step in ("largest", "power") for what in ("levels", "expected", "zeroed")]
    notes = [
        "RMS error of all convolutions' weights as cells hold them, over the weights' RMS; mean over seeds. Levels: "
        "rounding and leakage alone; expected: with programming variation; zeroed: share of nonzero weights that "
        "become zero. An array's step is its largest weight's share (largest) or the next power of two (power)."
    ]
    title = "What weights lose on crossbars (modelled: closed forms, no chip and no image)"
    return [TextTable(title, ("weights", "device", "sigma", "bits", *sides), lines, notes)] if lines else []


def task_tables(run: RunFolder) -> list[TextTable]:
    """How many tasks of each part were done and failed, with the first reason."""
    rows = run.read_table("segmentation_tasks").to_pylist()
    lines = []
    for part in distinct(rows, "part"):
        own = where(rows, part=part)
        failed = where(own, status="failed")
        reason = failed[0]["error"] if failed else ""
        seconds = sum(row["seconds"] for row in own)
        lines.append((part, str(len(own) - len(failed)), str(len(failed)), f"{seconds:.0f}", reason))
    columns = ("part", "done", "failed", "seconds on workers", "first reason")
    notes = ["Without trainings, whose seconds stand with the scores; waiting for networks of rounds counts."]
    return [TextTable("Tasks (measured)", columns, lines, notes)]


def _rows_of(run: RunFolder, table: str) -> list[Row]:
    """Rows of a table that a run may lack."""
    if table not in run.tables():
        return []
    rows: list[Row] = run.read_table(table).to_pylist()
    return rows


def by_arm(rows: Sequence[Row]) -> list[tuple[Arm, list[Row]]]:
    """Rows of each arm, in the tables' order."""
    groups: dict[Arm, list[Row]] = {}
    for row in rows:
        arm = Arm(row["part"], strategy_of(row), row["quantizer"], row["networks"], row["round"])
        groups.setdefault(arm, []).append(row)
    return sorted(groups.items(), key=lambda item: _order(item[0]))


def capital(text: str) -> str:
    """A text with its first letter large, for a title."""
    return text[:1].upper() + text[1:]


def in_quantizer_order(names: Iterable[str]) -> list[str]:
    """Float first, then by kind, each from few bits to many."""
    return sorted(set(names), key=lambda name: (name != FLOAT, name))


def _order(arm: Arm) -> tuple[object, ...]:
    strategy = STRATEGY_ORDER.index(arm.strategy)
    return (arm.part, arm.round or 0, arm.networks, arm.quantizer != FLOAT, arm.quantizer, strategy)


def _named(arm: Arm) -> tuple[str, str, str]:
    who = "whole pool" if arm.strategy == EVERYTHING else arm.strategy
    if arm.part == BUDGET and arm.round is not None:
        who += f", round {arm.round}"
    return who, arm.quantizer, str(arm.networks)


def _difference_cells(found: Difference | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    shown = f"{found.mean:+.4f}" + (f" ± {found.spread:.4f}" if found.spread is not None else "")
    return (
        shown,
        "" if found.p is None else f"{found.p:.2g}",
        found.verdict if found.p is not None else "too few seeds",
    )


def _digits(column: str) -> int:
    """Digits behind the point: one for pixels, three for shares."""
    return 1 if column.endswith("hausdorff") else 3


def _cell(numbers: Sequence[float], digits: int = 3) -> str:
    """`mean` or `mean ± standard deviation`."""
    middle = mean(numbers)
    if middle is None:
        return ""
    return (
        f"{middle:.{digits}f} ± {spread(numbers):.{digits}f}" if len(numbers) > 1 else f"{middle:.{digits}f}"
    )
