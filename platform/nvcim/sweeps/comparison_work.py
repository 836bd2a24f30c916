"""What a Ray worker does with one point of the comparison: work it off, score it officially, never raise."""

import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from nvcim.crossbar import CrossbarConfig
from nvcim.prompts.comparison import ComparisonPoint
from nvcim.prompts.personaliser import PromptSettings
from nvcim.prompts.scoring import task_metrics

Row = dict[str, Any]
PointTables = dict[str, list[Row]]
"""Rows of a point by table; a failed point has `comparison_points` alone."""

_SAME = ("model", "data", "task", "method", "device", "sigma", "sigma_unit", "buffer", "repeat")
"""Columns that all answers of one method on one device at one point share."""


def work_off(
    part: str,
    point: ComparisonPoint,
    crossbar: CrossbarConfig,
    prompts: PromptSettings,
    seed: int,
    compare: Callable[[ComparisonPoint, CrossbarConfig, PromptSettings, int], tuple[list[Row], list[Row]]],
    threads: int,
) -> PointTables:
    """Tables of one point; a failure becomes a row with its reason, so that the other points go on."""
    import torch

    torch.set_num_threads(threads)  # those that the task has asked Ray for
    started = time.perf_counter()
    try:
        answers, sets = compare(point, crossbar, prompts, seed)
        if not answers:
            raise ValueError("the point has no query that could be answered")
        metrics = metric_rows(answers)
    except Exception as error:  # whatever it is, it is this point's
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        return {"comparison_points": [failed_point(part, point, reason, time.perf_counter() - started)]}
    ended = {
        **failed_point(part, point, None, time.perf_counter() - started),
        "status": "done",
        "answers": len(answers),
    }
    tables = {"comparison": answers, "comparison_sets": sets, "comparison_metrics": metrics}
    return {
        **{name: [{"part": part, **row} for row in rows] for name, rows in tables.items()},
        "comparison_points": [ended],
    }


def metric_rows(answers: list[Row]) -> list[Row]:
    """The official metrics of each method on each device, over all answers of the point."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in answers:
        groups[tuple(row[column] for column in _SAME)].append(row)
    return [
        {
            **dict(zip(_SAME, key, strict=True)),
            "queries": len(own),
            "metric": metric,
            "value": float(value),
            "basis": "measured",
        }
        for key, own in groups.items()
        for metric, value in task_metrics(
            own[0]["task"], [row["output"] for row in own], [row["reference"] for row in own]
        ).items()
    ]


def failed_point(part: str, point: ComparisonPoint, reason: str | None, seconds: float) -> Row:
    """The row of a point without answers."""
    return {
        "point_id": point.point_id,
        "part": part,
        "model": point.model,
        "task": point.task,
        "sigma": point.sigma,
        "buffer": point.buffer,
        "repeat": point.repeat,
        "devices": len(point.devices),
        "methods": len(point.methods),
        "answers": 0,
        "status": "failed",
        "error": reason,
        "seconds": seconds,
        "basis": "measured",
    }
