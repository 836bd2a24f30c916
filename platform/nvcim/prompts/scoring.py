"""Scores of a task's answers: accuracy for LaMP-1, 2 and 3, ROUGE-1 (F) for 4, 5 and 7."""

from functools import cache
from typing import Any

from rouge_score import rouge_scorer

EXACT_TASKS = ("LaMP_1", "LaMP_2", "LaMP_2N", "LaMP_3")


def metric_name(task: str) -> str:
    """`accuracy` or `rouge1`."""
    return "accuracy" if task in EXACT_TASKS else "rouge1"


def score_answer(task: str, answer: str, gold: str) -> float:
    """Score one answer in [0, 1].

    Exact tasks compare case-insensitively after stripping; an answer that is no label is wrong, never skipped.
    """
    if task in EXACT_TASKS:
        return float(answer.strip().lower() == gold.strip().lower())
    return float(_rouge().score(gold, answer)["rouge1"].fmeasure)


@cache
def _rouge() -> Any:
    return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
