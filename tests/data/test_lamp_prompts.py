"""The benchmark's wording and labels."""

import pytest

from nvcim.data.lamp_prompts import (
    LATER_NEWS_CATEGORIES,
    MOVIE_TAGS,
    NEWS_CATEGORIES,
    PAIR_INSTRUCTIONS,
    citation_question,
    labels_in,
    labels_of,
)
from nvcim.errors import DataError


def test_the_questions_list_the_labels_that_count() -> None:
    assert labels_in(PAIR_INSTRUCTIONS["LaMP_2"] + " a film [1999]") == MOVIE_TAGS == labels_of("LaMP_2")
    assert labels_in(PAIR_INSTRUCTIONS["LaMP_2N"] + " news") == NEWS_CATEGORIES == labels_of("LaMP_2N")
    assert labels_in(citation_question("a", "b", "c")) is None
    assert labels_in("categories: [media, u.s. news] article: x") == ("media", "u.s. news")


def test_label_lists_have_fifteen_different_labels() -> None:
    assert {len(set(labels)) for labels in (MOVIE_TAGS, NEWS_CATEGORIES, LATER_NEWS_CATEGORIES)} == {15}
    assert labels_of("LaMP_1") == ("[1]", "[2]")
    assert labels_of("LaMP_3") == ("1", "2", "3", "4", "5")


def test_a_task_without_labels_is_refused() -> None:
    with pytest.raises(
        DataError, match="'LaMP_5' has no labels; those that have: LaMP_1, LaMP_2, LaMP_2N, LaMP_3"
    ):
        labels_of("LaMP_5")


def test_a_citation_question_has_the_official_shape() -> None:
    assert citation_question("On whales", "Krill", "Trains") == (
        'For an author who has written the paper with the title "On whales", which reference is related? '
        'Just answer with [1] or [2] without explanation. [1]: "Krill" [2]: "Trains"'
    )
