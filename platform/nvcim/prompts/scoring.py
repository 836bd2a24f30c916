"""Official scores of a task's answers, per answer and over a set.

As in LaMP's own evaluation (repository LaMP-Benchmark/LaMP, `eval/evaluation.py`): accuracy and macro-F1 for LaMP-1, 2
and 2N, MAE and RMSE for LaMP-3, ROUGE-1 and ROUGE-L (F-measure) for LaMP-4, 5 and 7. Labels are compared as written
(case counts) after stripping. ROUGE is Hugging Face evaluate's with its defaults, that is rouge-score WITHOUT its
stemmer; evaluate reports the median of 1000 bootstrap means, here it is the mean itself.

An answer that says no label is never skipped: it is wrong, and counted as unparsed. For LaMP-3, any number is taken as
it is; what is no number counts as the farther of 1 and 5 from the right score (5 for a 3). An empty text scores 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

from rouge_score import rouge_scorer
from sklearn.metrics import f1_score

from nvcim.data.lamp import TASKS
from nvcim.data.lamp_prompts import ANSWER_LABELS, LATER_NEWS_CATEGORIES, labels_of
from nvcim.errors import DataError

RATING_TASK = "LaMP_3"
LABEL_TASKS = tuple(task for task in ANSWER_LABELS if task != RATING_TASK)


@dataclass(frozen=True)
class AnswerScore:
    """What one answer is worth.

    `score` in [0, 1]: right or wrong for labels and ratings, ROUGE-1 for texts. `parsed`: the answer is a label, a
    number, a text that is not empty. `rouge_l` (texts only) in [0, 1]; `error` (ratings only): distance to the right
    rating.
    """

    score: float
    parsed: bool
    rouge_l: float | None = None
    error: float | None = None


def metric_name(task: str) -> str:
    """What `score_answer` gives: `accuracy` or `rouge1`.

    Raises:
        DataError: a task that is not known.
    """
    _require_known(task)
    return "accuracy" if task in ANSWER_LABELS else "rouge1"


def score_answer(task: str, answer: str, gold: str) -> float:
    """Score one answer in [0, 1]: see `AnswerScore.score`.

    Raises:
        DataError: a task that is not known, or a LaMP-3 gold that is no number.
    """
    return grade(task, answer, gold).score


def grade(task: str, answer: str, gold: str, labels: Sequence[str] | None = None) -> AnswerScore:
    """Score one answer.

    `labels` are the labels that the data allows, where they are others than the benchmark's (see
    `nvcim.data.lamp_prompts.labels_in`); they decide what is parsed.

    Raises:
        DataError: a task that is not known, or a LaMP-3 gold that is no number.
    """
    _require_known(task)
    said, right = answer.strip(), gold.strip()
    if task == RATING_TASK:
        error = abs(_rating(said, right) - _gold_rating(right))
        return AnswerScore(float(error == 0), _number(said) is not None, error=error)
    if task in LABEL_TASKS:
        return AnswerScore(float(said == right), said in _allowed(task, labels))
    found = _rouge().score(right, said)
    return AnswerScore(found["rouge1"].fmeasure, bool(said), rouge_l=found["rougeL"].fmeasure)


def task_metrics(
    task: str, answers: Sequence[str], golds: Sequence[str], labels: Sequence[str] | None = None
) -> dict[str, float]:
    """The task's official metrics over a set of answers, and the share of answers that could not be parsed.

    Returns:
        `accuracy`, `macro_f1` (labels); `mae`, `rmse`, `accuracy` (ratings); `rouge1`, `rougeL` (texts); and always
        `unparsed`, in [0, 1]. Macro-F1 is the mean over all allowed labels; one that is neither said nor right
        counts as 0, as LaMP's code has it.

    Raises:
        DataError: a task that is not known, no answers, not as many answers as golds, or a gold that is no allowed
            label or no number.
    """
    _require_known(task)
    if not answers or len(answers) != len(golds):
        raise DataError(
            f"{task}: metrics need as many answers as golds and at least one; "
            f"given: {len(answers)} answers and {len(golds)} golds"
        )
    graded = [grade(task, answer, gold, labels) for answer, gold in zip(answers, golds, strict=True)]
    unparsed = {"unparsed": fmean(not one.parsed for one in graded)}
    score = fmean(one.score for one in graded)
    if task == RATING_TASK:
        errors = [one.error for one in graded if one.error is not None]
        rmse = math.sqrt(fmean(error**2 for error in errors))
        return {"mae": fmean(errors), "rmse": rmse, "accuracy": score} | unparsed
    if task in LABEL_TASKS:
        return {"accuracy": score, "macro_f1": _macro_f1(task, answers, golds, labels)} | unparsed
    return {"rouge1": score, "rougeL": fmean(one.rouge_l or 0.0 for one in graded)} | unparsed


def _macro_f1(task: str, answers: Sequence[str], golds: Sequence[str], labels: Sequence[str] | None) -> float:
    """Mean F1 over the labels; an answer that is no label is -1, which no label is."""
    right = [gold.strip() for gold in golds]
    lists = [tuple(labels)] if labels is not None else _known_lists(task)
    allowed = next((known for known in lists if set(right) <= set(known)), None)
    if allowed is None:
        odd = sorted(set(right) - set(lists[0]))[0]
        raise DataError(f"{task}: gold '{odd}' is no label; allowed: {', '.join(lists[0])}")
    place = {label: i for i, label in enumerate(allowed)}
    said = [place.get(answer.strip(), -1) for answer in answers]
    return float(
        f1_score(
            [place[gold] for gold in right],
            said,
            labels=list(range(len(allowed))),
            average="macro",
            zero_division=0,
        )
    )


def _known_lists(task: str) -> list[tuple[str, ...]]:
    """The official labels, then those of data in the same shape that we know of.

    Both lists of news categories have 15 labels, so golds that fit either get the same macro-F1 from both.
    """
    return [labels_of(task)] + ([LATER_NEWS_CATEGORIES] if task == "LaMP_2N" else [])


def _allowed(task: str, labels: Sequence[str] | None) -> set[str]:
    return set(labels) if labels is not None else {label for known in _known_lists(task) for label in known}


def _number(text: str) -> float | None:
    """The number that a text is; what is not finite is none (LaMP's code would take `nan` for a score)."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _rating(said: str, right: str) -> float:
    number = _number(said)
    if number is not None:
        return number
    gold = _gold_rating(right)
    return 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0


def _gold_rating(right: str) -> float:
    number = _number(right)
    if number is None:
        raise DataError(f"{RATING_TASK}: gold '{right}' is no number; expected 1, 2, 3, 4 or 5")
    return number


def _require_known(task: str) -> None:
    if task not in TASKS:
        raise DataError(f"task '{task}' is not known; allowed: {', '.join(TASKS)}")


@cache
def _rouge() -> Any:
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
