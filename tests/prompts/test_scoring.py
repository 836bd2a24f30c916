"""Scores of answers, by examples that are worked out by hand."""

import math

import pytest

from nvcim.errors import DataError
from nvcim.prompts.scoring import AnswerScore, grade, metric_name, score_answer, task_metrics


@pytest.mark.parametrize(
    ("task", "answer", "gold", "score"),
    [
        ("LaMP_2", " comedy ", "comedy", 1.0),
        ("LaMP_2", "Comedy", "comedy", 0.0),  # LaMP's evaluation strips, and compares as written
        ("LaMP_2", "dark comedy", "comedy", 0.0),
        ("LaMP_2", "", "comedy", 0.0),
        ("LaMP_3", "5", "5", 1.0),
        ("LaMP_3", "5.0", "5", 1.0),
        ("LaMP_3", "5 stars", "5", 0.0),
        ("LaMP_3", "stars", "1", 0.0),
        ("LaMP_1", "[1]", "[1]", 1.0),
        ("LaMP_1", "1", "[1]", 0.0),
        ("LaMP_2N", "sports", "sports", 1.0),
        # 2 of 3 words said are in the gold's 4: precision 2/3, recall 1/2, F = 4/7
        ("LaMP_5", "the whale sings", "the whale at night", 4 / 7),
        # LaMP's evaluation does not stem: singing and sings are two words
        ("LaMP_5", "singing", "sings", 0.0),
        ("LaMP_5", "The Whale!", "the whale", 1.0),
        # a word counts as often as both have it: 1 of 3 and 1 of 2, F = 0.4
        ("LaMP_7", "lol lol lol", "lol never", 0.4),
        ("LaMP_7", "", "never again", 0.0),
        ("LaMP_4", "a b c", "a b c", 1.0),
    ],
)
def test_scores_by_hand(task: str, answer: str, gold: str, score: float) -> None:
    assert score_answer(task, answer, gold) == pytest.approx(score)
    assert grade(task, answer, gold).score == pytest.approx(score)


def test_metrics_have_their_names() -> None:
    assert [metric_name(task) for task in ("LaMP_1", "LaMP_3", "LaMP_5", "LaMP_7")] == [
        "accuracy", "accuracy", "rouge1", "rouge1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "gold", "error", "parsed"),
    [
        ("4", "5", 1, True),
        ("3.5", "3", 0.5, True),
        ("9", "2", 7, True),  # a number is taken as it is
        ("great", "5", 4, False),  # 1 is farther from 5
        ("great", "4", 3, False),
        ("great", "3", 2, False),  # 1 and 5 are as far: 5
        ("", "2", 3, False),
        ("nan", "1", 4, False),
        ("inf", "4", 3, False),
    ],
)
def test_a_rating_that_is_no_number_is_the_farther_end(
    answer: str, gold: str, error: float, parsed: bool
) -> None:
    assert grade("LaMP_3", answer, gold) == AnswerScore(0.0, parsed, error=error)


def test_labels_and_texts_say_whether_they_were_parsed() -> None:
    assert grade("LaMP_1", "[2]", "[1]") == AnswerScore(0.0, parsed=True)
    assert grade("LaMP_1", "[3]", "[1]") == AnswerScore(0.0, parsed=False)
    # both lists of news categories are known; other labels are given
    assert grade("LaMP_2N", "weird news", "women").parsed
    assert not grade("LaMP_2N", "gossip", "women").parsed
    assert grade("LaMP_2N", "gossip", "weather", labels=("gossip", "weather")).parsed
    # 'night the whale sings' against 'the whale at night': 3 of 4 words, and 2 of 4 in order ('the whale')
    found = grade("LaMP_7", "night the whale sings", "the whale at night")
    assert (found.score, found.rouge_l, found.parsed) == (pytest.approx(0.75), pytest.approx(0.5), True)
    assert grade("LaMP_7", "  ", "x") == AnswerScore(0.0, parsed=False, rouge_l=0.0)


# Worked by hand.
# LaMP_1: [1] is said twice, right once, missed once: F = 2/(2 + 1 + 1) = 1/2; [2] is said once, rightly, and missed
#   once: F = 2/(2 + 0 + 1) = 2/3; macro = 7/12. '2' is no label.
# LaMP_2: comedy tp 1 fp 0 fn 1: 2/3; action tp 1 fp 1 fn 1: 1/2; classic: 1; romance and the other 11 tags: 0.
#   macro = (2/3 + 1/2 + 1)/15 = 13/90. 'Romance' and 'a farce' are no labels.
# LaMP_2N: crime tp 1 fp 1 fn 0: 2/3; women fn 1: 0; macro = (2/3)/15 = 2/45.
# LaMP_3: errors 1, 2 (5 for 3), 0, 3 (1 for 4), 5: MAE 11/5, MSE (1 + 4 + 0 + 9 + 25)/5 = 39/5.
# LaMP_4, 5, 7: 'night the whale sings' as above: 3/4 and 2/4; nothing said: 0 and 0.
TABLE: list[tuple[str, list[str], list[str], dict[str, float]]] = [
    (
        "LaMP_1",
        ["[1]", "[1]", " [2]", "2"],
        ["[1]", "[2]", "[2]", "[1]"],
        {"accuracy": 1 / 2, "macro_f1": 7 / 12, "unparsed": 1 / 4},
    ),
    (
        "LaMP_2",
        ["comedy", "action", "action", "classic ", "Romance", "a farce"],
        ["comedy", "comedy", "action", "classic", "romance", "action"],
        {"accuracy": 1 / 2, "macro_f1": 13 / 90, "unparsed": 1 / 3},
    ),
    (
        "LaMP_2N",
        ["crime", "crime"],
        ["crime", "women"],
        {"accuracy": 1 / 2, "macro_f1": 2 / 45, "unparsed": 0.0},
    ),
    (
        "LaMP_3",
        ["4", "great", " 1 ", "", "7"],
        ["5", "3", "1", "4", "2"],
        {"mae": 11 / 5, "rmse": math.sqrt(39 / 5), "accuracy": 1 / 5, "unparsed": 2 / 5},
    ),
] + [
    (
        task,
        ["night the whale sings", ""],
        ["the whale at night", "never again"],
        {"rouge1": 3 / 8, "rougeL": 1 / 4, "unparsed": 1 / 2},
    )
    for task in ("LaMP_4", "LaMP_5", "LaMP_7")
]


@pytest.mark.parametrize(("task", "answers", "golds", "metrics"), TABLE)
def test_official_metrics_by_hand(
    task: str, answers: list[str], golds: list[str], metrics: dict[str, float]
) -> None:
    assert task_metrics(task, answers, golds) == pytest.approx(metrics)
    turned = task_metrics(task, answers[::-1], golds[::-1])
    assert turned == pytest.approx(metrics)


def test_labels_of_the_data_are_known_or_given() -> None:
    # media: tp 1, fp 1, fn 0: F = 2/3, over 15 labels of the later list; over the 2 that are given
    answers, golds = ["media", "media"], ["media", "u.s. news"]
    assert task_metrics("LaMP_2N", answers, golds)["macro_f1"] == pytest.approx(2 / 45)
    given = task_metrics("LaMP_2N", answers, golds, labels=("media", "u.s. news"))
    assert given["macro_f1"] == pytest.approx(1 / 3)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match=r"LaMP_2: gold 'gossip' is no label; allowed: sci-fi, .*true story"):
        task_metrics("LaMP_2", ["comedy"], ["gossip"])
    with pytest.raises(DataError, match="LaMP_2N: gold 'media' is no label"):
        task_metrics("LaMP_2N", ["media", "women"], ["media", "women"])
    with pytest.raises(DataError, match="LaMP_3: gold 'good' is no number; expected 1, 2, 3, 4 or 5"):
        score_answer("LaMP_3", "5", "good")
    with pytest.raises(DataError, match="given: 1 answers and 2 golds"):
        task_metrics("LaMP_5", ["a"], ["a", "b"])
    with pytest.raises(DataError, match="given: 0 answers and 0 golds"):
        task_metrics("LaMP_5", [], [])
    for refused in (lambda: metric_name("LaMP_6"), lambda: score_answer("LaMP_6", "a", "a")):
        with pytest.raises(DataError, match="'LaMP_6' is not known; allowed: LaMP_1, LaMP_2"):
            refused()
