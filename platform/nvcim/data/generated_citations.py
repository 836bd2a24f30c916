"""Generated papers and citation questions in LaMP-1's shape. Generated data: not LaMP.

An author's school is one side of one stance (theory or experiment, say): the author's abstracts always take that side,
and of two references that differ in every stance the author cites the one that takes it. The title of the question
shows no stance, so only the author's profile tells the answer. As in LaMP's own code, a profile item is a pair
title -> abstract, which is another form than the question's (see `nvcim.data.lamp_prompts.PAIR_INSTRUCTIONS`). The
shipped base LM has not been pre-trained on this task.
"""

import random

from nvcim.data.generated_topics import Topic
from nvcim.data.lamp_prompts import citation_question, labels_of

STANCES: tuple[tuple[str, str], ...] = (
    ("a theory of", "experiments on"),
    ("from field notes", "from simulations"),
    ("a case study", "a broad survey"),
)
"""Approach, data and scope, two sides each."""
SCHOOLS: tuple[tuple[int, int], ...] = tuple(
    (stance, side) for stance in range(len(STANCES)) for side in (0, 1)
)
"""A school is (stance, side); the index is the habit."""


def paper(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """A paper's title and abstract; the abstract takes the side of the author's school."""
    stance, side = SCHOOLS[habit]
    sides = [rng.randrange(2) for _ in STANCES]
    sides[stance] = side
    approach, data, scope = (phrases[taken] for phrases, taken in zip(STANCES, sides, strict=True))
    thing, method = rng.choice(topic.things), rng.choice(topic.methods)
    abstract = (
        f"we offer {approach} {thing} {data} , as {scope} of {method} in the {rng.choice(topic.places)} ."
    )
    return _title(thing, method), abstract


def citation(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """A citation question (whole prompt) and its answer `[1]` or `[2]`.

    The references differ in every stance, so every school has an answer and the text does not depend on the habit.
    """
    sides = [rng.randrange(2) for _ in STANCES]
    title = _title(rng.choice(topic.things), rng.choice(topic.methods))
    references = [
        _reference(rng.choice(topic.things), taken) for taken in (sides, [1 - side for side in sides])
    ]
    stance, side = SCHOOLS[habit]
    return citation_question(title, *references), labels_of("LaMP_1")[sides[stance] != side]


def _title(thing: str, method: str) -> str:
    return f"on {method} and the {thing}"


def _reference(thing: str, sides: list[int]) -> str:
    approach, data, scope = (phrases[taken] for phrases, taken in zip(STANCES, sides, strict=True))
    return f"{approach} {thing} {data} : {scope}"
