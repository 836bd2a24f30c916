"""Rows of the segmentation comparison's tables as a run would write them, with scores that a test chooses."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
SHARED = {"basis": "measured"}
POOL = 40
Score = Callable[[str, str, str, int, int | None, int], float]
"""(part, strategy, quantizer, networks, round, repeat) -> object Dice; object F1 is 0.1 lower."""
STRATEGIES = {
    "SA": ("suggestive", "float"),
    "QSA": ("suggestive", "inq-7"),
    "uncertainty": ("uncertainty", "float"),
    "random": ("random", None),
    "all": ("all", None),
}
BITS = {"float": 32, "inq-3": 3, "inq-4": 4, "inq-5": 5, "inq-7": 7, "twn": 2, "ttq": 2, "dorefa-1": 1}


def arm(
    part: str, strategy: str, quantizer: str, networks: int, round_number: int | None, repeat: int
) -> Row:
    """The columns that every table of an arm begins with."""
    rule, suggestive = STRATEGIES[strategy]
    return {
        "part": part,
        "repeat": repeat,
        "rule": rule,
        "suggestive": suggestive,
        "quantizer": quantizer,
        "networks": networks,
        "round": round_number,
    }


def score_row(
    part: str,
    strategy: str,
    quantizer: str,
    networks: int,
    round_number: int | None,
    repeat: int,
    dice: float,
    annotated: int = 20,
) -> Row:
    """A row of `segmentation_scores`; weights take their bits and nothing more."""
    weights = 3200 * networks
    return {
        **arm(part, strategy, quantizer, networks, round_number, repeat),
        "annotated": annotated,
        "annotated_share": annotated / POOL,
        "images": 12,
        "object_f1": dice - 0.1,
        "object_dice": dice,
        "object_hausdorff": 30 * (1 - dice),
        "mean_object_f1": dice - 0.15,
        "mean_object_dice": dice - 0.05,
        "mean_object_hausdorff": 40 * (1 - dice),
        "pixel_dice": dice,
        "pixel_iou": dice / (2 - dice),
        "aji": dice - 0.1,
        "pq": dice - 0.2,
        "one_side_empty": 0,
        "weight_bytes": weights * BITS[quantizer] // 32,
        "float32_bytes": weights,
        "file_bytes": weights * BITS[quantizer] // 32 + 800 * networks,
        "trained_seconds": 10.0 * networks,
        **SHARED,
    }


def whole_run(score: Score, seeds: int = 3) -> list[Row]:
    """Rows of `segmentation_scores` of a run with all parts: 2 rounds, 1 and 5 networks, every quantizer."""
    rows = []
    for repeat in range(seeds):
        rows += [
            score_row("full", "all", q, 1, None, repeat, score("full", "all", q, 1, None, repeat), POOL)
            for q in ("float", "inq-5", "inq-7")
        ]
        rows += [
            score_row(
                "budget", s, "float", 1, n, repeat, score("budget", s, "float", 1, n, repeat), 4 + 8 * n
            )
            for s in ("SA", "QSA", "uncertainty", "random")
            for n in range(3)
        ]
        dice = score("budget", "all", "float", 1, None, repeat)
        rows.append(score_row("budget", "all", "float", 1, None, repeat, dice, POOL))
        rows += [
            score_row("grid", s, q, n, 2, repeat, score("grid", s, q, n, 2, repeat))
            for s in ("SA", "QSA")
            for q in BITS
            for n in (1, 5)
        ]
    return rows


def image_rows(rows: list[Row], images: int = 6) -> list[Row]:
    """Rows of `segmentation_images` for every row of scores: image 0 is best, the last is worst."""
    columns = ("part", "repeat", "rule", "suggestive", "quantizer", "networks", "round")
    return [
        {
            **{name: row[name] for name in columns},
            "image": f"image-{place}",
            "objects_segmented": 5,
            "objects_truth": 5,
            "object_f1": row["object_f1"] - 0.02 * place,
            "object_dice": row["object_dice"] - 0.02 * place,
            "object_hausdorff": row["object_hausdorff"],
            **SHARED,
        }
        for row in rows
        for place in range(images)
    ]


def round_rows(seeds: int = 1) -> list[Row]:
    """Rows of `segmentation_rounds`: a start set of two and one round of one."""
    return [
        {
            "repeat": repeat,
            "rule": rule,
            "suggestive": weights,
            "round": number,
            "image": f"image-{number}-{place}",
            "place": place,
            "uncertainty": None if number == 0 or rule == "random" else 0.1,
            "annotated": 2 + number,
            **SHARED,
        }
        for repeat in range(seeds)
        for rule, weights in (("suggestive", "float"), ("random", None))
        for number, places in ((0, 2), (1, 1))
        for place in range(places)
    ]


def split_rows(seeds: int = 1) -> list[Row]:
    """Rows of `segmentation_split`: three images in the pool, one held back."""
    return [
        {
            "repeat": repeat,
            "image": f"image-{place}",
            "role": "held back" if place == 3 else "pool",
            "height": 64,
            "width": 80,
            "objects": place,
            **SHARED,
        }
        for repeat in range(seeds)
        for place in range(4)
    ]


def task_rows() -> list[Row]:
    """Rows of `segmentation_tasks`: one done, one failed."""
    common = {"repeat": 0, "seconds": 1.5, **SHARED}
    return [
        {"task": "full-0-all-float", "part": "full", "status": "done", "error": None, **common},
        {
            "task": "grid-0-SA-float",
            "part": "grid",
            "status": "failed",
            "error": "its training failed",
            **common,
        },
    ]


def crossbar_rows() -> list[Row]:
    """Rows of `segmentation_crossbars`: two weights, ideal and on two chips along sigma and along bits."""
    rows: list[Row] = []
    for model, base in (("float", 0.8), ("inq-5", 0.79)):
        common = {"repeat": 0, "model": model, "images": 4, **SHARED}
        ideal = {"arithmetic": "ideal", "object_f1": base - 0.1, "object_dice": base, "object_hausdorff": 9.0}
        rows.append({**common, **ideal})
        points = [(sigma, 8) for sigma in (0.0, 0.05, 0.1)] + [(0.1, bits) for bits in (4, 5, 6)]
        for step in ("largest", "by_error"):
            for sigma, bits in points:
                rows += [
                    {
                        **common,
                        "arithmetic": "crossbar",
                        "device": "FeFET2",
                        "technology": "FeFET",
                        "sigma": sigma,
                        "weight_bits": bits,
                        "cell_bits": 2,
                        "step": step,
                        "reference_columns": 0,
                        "chip": chip,
                        "object_f1": base - 0.1 - sigma - 0.1 / bits + 0.01 * chip,
                        "object_dice": base - sigma - 0.1 / bits + 0.01 * chip,
                        "object_hausdorff": 10.0,
                        "weight_error": 0.1 + sigma,
                        "level_error": 0.1,
                        "zeroed": 0.05,
                    }
                    for chip in range(2)
                ]
    return rows
