"""Scores of answers, by examples that are worked out by hand."""

import pytest

from nvcim.prompts.scoring import metric_name, score_answer


@pytest.mark.parametrize(
    ("task", "answer", "gold", "score"),
    [
        ("LaMP_2", " Comedy ", "comedy", 1.0),
        ("LaMP_2", "dark comedy", "comedy", 0.0),
        ("LaMP_2", "", "comedy", 0.0),
        ("LaMP_3", "5", "5", 1.0),
        ("LaMP_3", "5 stars", "5", 0.0),
        ("LaMP_1", "[1]", "[1]", 1.0),
        ("LaMP_2N", "sports", "Sports", 1.0),
        # 2 of 3 words said are in the gold's 4: precision 2/3, recall 1/2, F = 4/7
        ("LaMP_5", "the whale sings", "the whale at night", 4 / 7),
        # stems count: singing and sings are one word
        ("LaMP_5", "singing", "sings", 1.0),
        # a word counts as often as both have it: 1 of 3 and 1 of 2, F = 0.4
        ("LaMP_7", "lol lol lol", "lol never", 0.4),
        ("LaMP_7", "", "never again", 0.0),
        ("LaMP_4", "a b c", "a b c", 1.0),
    ],
)
def test_scores_by_hand(task: str, answer: str, gold: str, score: float) -> None:
    assert score_answer(task, answer, gold) == pytest.approx(score)


def test_metrics_have_their_names() -> None:
    assert [metric_name(task) for task in ("LaMP_1", "LaMP_3", "LaMP_5", "LaMP_7")] == [
        "accuracy", "accuracy", "rouge1", "rouge1",
    ]  # fmt: skip
