"""The LaMP benchmark's prompts and labels: how a question is worded and which answers it allows.

Wording and labels are the benchmark's own (repository LaMP-Benchmark/LaMP: `PEFT/data/datasets.py` for the
instructions of profile pairs and the labels, `eval/evaluation.py` for the labels that scoring counts).
"""

import re

from nvcim.errors import DataError

MOVIE_TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
NEWS_CATEGORIES = (
    "women",
    "religion",
    "politics",
    "style & beauty",
    "entertainment",
    "culture & arts",
    "sports",
    "science & technology",
    "travel",
    "business",
    "crime",
    "education",
    "healthy living",
    "parents",
    "food & drink",
)
LATER_NEWS_CATEGORIES = (
    "black voices",
    "comedy",
    "crime",
    "entertainment",
    "environment",
    "home & living",
    "media",
    "parenting",
    "politics",
    "sports",
    "style & beauty",
    "u.s. news",
    "weird news",
    "wellness",
    "world news",
)
"""Categories of LaMP-shaped data made from version 3 of the News Category Dataset; not the benchmark's."""

ANSWER_LABELS: dict[str, tuple[str, ...]] = {
    "LaMP_1": ("[1]", "[2]"),
    "LaMP_2": MOVIE_TAGS,
    "LaMP_2N": NEWS_CATEGORIES,
    "LaMP_3": ("1", "2", "3", "4", "5"),
}
"""The official labels of the tasks that have labels."""

PAIR_INSTRUCTIONS: dict[str, str] = {
    "LaMP_1": "Write an abstract for this title:",
    "LaMP_2": "Which tag does this movie relate to among the following tags? Just answer with the tag name without "
    f"further explanation. tags: [{', '.join(MOVIE_TAGS)}] description:",
    "LaMP_2N": "Which category does this article relate to among the following categories? Just answer with the "
    f"category name without further explanation. categories: [{', '.join(NEWS_CATEGORIES)}] article:",
    "LaMP_3": "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 "
    "without further explanation. review:",
    "LaMP_4": "Generate a headline for the following article:",
    "LaMP_5": "Generate a title for the following abstract of a paper:",
    "LaMP_7": "Complete the following tweet:",
}
"""What LaMP's own code asks when it makes a training pair of a profile item.

For LaMP-2 to 5 a question of the task opens with the same words. For LaMP-1 and 7 it does not: the pairs of LaMP-1
teach to write an abstract while its question asks which of two references is related, and the pairs of LaMP-7 teach
to finish a tweet while its question asks to paraphrase one. Tokens tuned on those pairs carry the user's subjects and
words, but have never seen the question's form.
"""
TWEET_QUESTION = "Paraphrase the following tweet without any explanation before or after it:"

_LISTED = re.compile(r"(?:tags|categories): \[([^\]]+)\]")


def labels_of(task: str) -> tuple[str, ...]:
    """The official labels of a task.

    Raises:
        DataError: a task without labels.
    """
    if task not in ANSWER_LABELS:
        raise DataError(f"task '{task}' has no labels; those that have: {', '.join(ANSWER_LABELS)}")
    return ANSWER_LABELS[task]


def labels_in(question: str) -> tuple[str, ...] | None:
    """The labels that a question of LaMP-2 or 2N lists (`tags: [...]`, `categories: [...]`), or None."""
    found = _LISTED.search(question)
    return tuple(label.strip() for label in found[1].split(",")) if found else None


def citation_question(title: str, first: str, second: str) -> str:
    """A question of LaMP-1: which of two references the author of `title` cites."""
    return (
        f'For an author who has written the paper with the title "{title}", which reference is related? Just answer '
        f'with [1] or [2] without explanation. [1]: "{first}" [2]: "{second}"'
    )
