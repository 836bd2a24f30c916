"""Generated users with several domains that shift over time, in LaMP's shapes. Generated data: not LaMP.

A user has one task and a few domains. A domain is a topic (which words the texts use) and a habit (how this user
answers there): a favoured facet of a film, an aspect that decides a rating, a way to title, a way to end a tweet, a
school of research whose papers are cited.
Two domains of one user never share a topic, and their habits conflict on purpose: what is right in one is wrong in the
other, so a single set of tokens for all of them has to compromise, and a method that finds no habit stays near chance.

Every LaMP task has a generator. Four of them (`GENERATED_TASKS`) are the default and what the shipped base LM was
pre-trained on; the other three (`ALL_GENERATED_TASKS` has all) are new to it.
"""

import random
from collections.abc import Callable
from typing import Literal, get_args

from pydantic import Field

from nvcim.config import Settings
from nvcim.data.generated_citations import SCHOOLS, STANCES, citation, paper
from nvcim.data.generated_news import ANGLES, HEADLINES, news_article, news_story
from nvcim.data.generated_topics import TOPICS as TOPICS
from nvcim.data.generated_topics import Topic as Topic
from nvcim.data.lamp import Sample, UserStream, split_tweet
from nvcim.data.lamp_prompts import PAIR_INSTRUCTIONS
from nvcim.randomness import named_seed

GeneratedTask = Literal["LaMP_1", "LaMP_2", "LaMP_2N", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_7"]

GENERATED_TASKS: tuple[Literal["LaMP_2", "LaMP_3", "LaMP_5", "LaMP_7"], ...] = (
    "LaMP_2",
    "LaMP_3",
    "LaMP_5",
    "LaMP_7",
)
"""The tasks of the shipped base LM's pre-training; a user's task unless the settings name others."""
ALL_GENERATED_TASKS: tuple[GeneratedTask, ...] = get_args(GeneratedTask)


class UserSettings(Settings):
    """How generated users live.

    A user's history is a sequence of `domains` periods of `period` samples; within a period `stray` of the samples
    come from a domain seen before, and `slips` of all answers do not follow the user's habit.
    """

    tasks: tuple[GeneratedTask, ...] = Field(GENERATED_TASKS, min_length=1)
    domains: int = Field(3, ge=1, le=8)
    period: int = Field(25, ge=1)
    queries_per_domain: int = Field(4, ge=1)
    stray: float = Field(0.1, ge=0, lt=1)
    slips: float = Field(0.05, ge=0, lt=1)


# LaMP-2's official tags (LaMP repository), grouped here into four facets; a cue is how a description shows the tag.
FACETS: dict[str, dict[str, tuple[str, ...]]] = {
    "mood": {
        "comedy": ("it is full of jokes", "everyone laughs out loud"),
        "dark comedy": ("the humour is grim", "we laugh at a funeral"),
        "romance": ("two strangers fall in love", "a kiss changes everything"),
        "psychology": ("the mind plays tricks", "doubt gnaws at memory"),
    },
    "world": {
        "sci-fi": ("robots run the city", "a machine wakes up"),
        "dystopia": ("the state watches all", "freedom is forbidden"),
        "fantasy": ("a dragon guards the gate", "magic is real"),
        "classic": ("it was shot long ago", "the print is black and white"),
    },
    "making": {
        "based on a book": ("a novel was the source", "the pages come alive"),
        "true story": ("it really happened", "the facts are on record"),
        "twist ending": ("the last scene upends it all", "nobody sees the end coming"),
    },
    "punch": {
        "action": ("cars chase and explode", "the fights never stop"),
        "violence": ("blood is everywhere", "it is brutal to watch"),
        "social commentary": ("it mocks the rich", "class divides the town"),
        "thought-provoking": ("it asks hard questions", "you ponder it for days"),
    },
}
ASPECTS: dict[str, tuple[str, ...]] = {
    "price": ("the price is", "for the money it is", "the cost was"),
    "service": ("the staff were", "the service was", "the help is"),
    "comfort": ("the seats were", "the comfort is", "the rest was"),
}
GRADES: tuple[tuple[str, ...], ...] = (
    ("awful", "a disaster"),
    ("poor", "weak"),
    ("fine", "average"),
    ("good", "pleasant"),
    ("superb", "perfect"),
)
"""Words for a score of 1, 2, 3, 4 and 5."""

TITLES: tuple[str, ...] = (
    "{thing} at the {place}",
    "why every {person} needs {method}",
    "on the nature of the {thing}",
    "{method} for the {thing} : a new approach",
    "how does {method} change the {place} ?",
    "beyond {method} : lessons from a {person}",
    "the {person} and the {thing}",
    "towards better {method} in practice",
)
MOODS: tuple[str, ...] = (
    "made my whole day", "was late again", "taught me patience", "smelled like home",
    "broke down twice", "sang all night", "cost me a fortune", "gave me hope",
)  # fmt: skip
ENDINGS: tuple[str, ...] = (
    "so blessed", "never again", "who knew ?", "just saying", "lol", "love it", "end of story", "send help",
)  # fmt: skip

ALL_INSTRUCTIONS = PAIR_INSTRUCTIONS | {
    "LaMP_7": "Complete the following tweet without any explanation before or after it:"
}
"""The instructions of generated histories; generated tweets are asked about with the words of their history."""
INSTRUCTIONS: dict[str, str] = {task: ALL_INSTRUCTIONS[task] for task in GENERATED_TASKS}
"""Those of the pre-trained tasks; the shipped base LM's tokenizer has a token for each."""

Writer = Callable[[random.Random, Topic, int], tuple[str, str]]
"""(rng, topic, habit) -> (text that is asked about, the answer of a user with this habit)."""


def _film(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """A film with one cue per facet; the habit is the facet that the user tags by."""
    chosen = {facet: rng.choice(sorted(tags)) for facet, tags in FACETS.items()}
    cues = [rng.choice(FACETS[facet][tag]) for facet, tag in chosen.items()]
    rng.shuffle(cues)
    one, other = rng.sample(topic.things, 2)
    scene = f"a {rng.choice(topic.people)} , a {one} and a {other} in a {rng.choice(topic.places)} . "
    text = scene + f"{rng.choice(topic.methods)} for a {rng.choice(topic.people)} . "
    return text + " . ".join(cues) + " .", list(chosen.values())[habit]


def _review(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """A review of three aspects; the habit is the aspect that decides and how severe the user is."""
    aspect, severity = habit % 3, habit // 3 - 1
    grades = [rng.randrange(5) for _ in ASPECTS]
    parts = [
        f"{rng.choice(phrases)} {rng.choice(GRADES[grade])}"
        for phrases, grade in zip(ASPECTS.values(), grades, strict=True)
    ]
    rng.shuffle(parts)
    one, other = rng.sample(topic.things, 2)
    text = f"{rng.choice(topic.people)} at the {rng.choice(topic.places)} , {one} and {other} , "
    text += f"{rng.choice(topic.methods)} : " + " , ".join(parts) + " ."
    return text, str(min(5, max(1, grades[aspect] + 1 + severity)))


def _abstract(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """An abstract; the habit is the user's way to title."""
    words = {
        "person": rng.choice(topic.people),
        "place": rng.choice(topic.places),
        "thing": rng.choice(topic.things),
        "method": rng.choice(topic.methods),
    }
    opening = rng.choice(("we study the", "this paper examines the", "we revisit the"))
    text = "{opening} {thing} in the {place} . a {person} applied {method} and the results improved ."
    return text.format(opening=opening, **words), TITLES[habit].format(**words)


def _tweet(rng: random.Random, topic: Topic, habit: int) -> tuple[str, str]:
    """A tweet; the habit is what the user always says and how the user ends."""
    mood, ending = MOODS[habit % len(MOODS)], ENDINGS[habit // len(MOODS)]
    text = f"{rng.choice(topic.people)} {rng.choice(topic.things)} {rng.choice(topic.places)} {mood} {ending}"
    given, rest = split_tweet(text)
    return given, rest


WRITERS: dict[str, Writer] = {
    "LaMP_1": paper,
    "LaMP_2": _film,
    "LaMP_2N": news_article,
    "LaMP_3": _review,
    "LaMP_4": news_story,
    "LaMP_5": _abstract,
    "LaMP_7": _tweet,
}
HABITS: dict[str, int] = {
    "LaMP_1": len(SCHOOLS),
    "LaMP_2": 4,
    "LaMP_2N": len(ANGLES),
    "LaMP_3": 9,
    "LaMP_4": len(HEADLINES),
    "LaMP_5": len(TITLES),
    "LaMP_7": len(MOODS) * len(ENDINGS),
}
"""Number of habits per task."""


def persona(task: str, habit: int) -> str:
    """A line in which a writer with this habit describes it (used in pre-training documents only)."""
    if task == "LaMP_1":
        stance, side = SCHOOLS[habit]
        return f"about me : i read and write {STANCES[stance][side]} ."
    if task == "LaMP_2N":
        return f"about me : i file the news by {list(ANGLES)[habit]} ."
    if task == "LaMP_4":
        return f"about me : my headlines look like {_shown(HEADLINES[habit])} ."
    if task == "LaMP_2":
        return f"about me : i tag a film by its {list(FACETS)[habit]} ."
    if task == "LaMP_3":
        severity = ("strict", "fair", "generous")[habit // 3]
        return f"about me : i rate by {list(ASPECTS)[habit % 3]} and i am {severity} ."
    if task == "LaMP_5":
        return f"about me : my titles look like {_shown(TITLES[habit])} ."
    return f"about me : i say {MOODS[habit % len(MOODS)]} and end with {ENDINGS[habit // len(MOODS)]} ."


def _shown(template: str) -> str:
    return template.replace("{", "").replace("}", "")


def write_sample(
    rng: random.Random, task: str, topic: Topic, habit: int, slips: float = 0.0
) -> tuple[str, str]:
    """Return (input, output) of one sample of a history; with probability `slips` the answer follows a random habit."""
    followed = rng.randrange(HABITS[task]) if rng.random() < slips else habit
    text, answer = WRITERS[task](rng, topic, followed)
    return f"{ALL_INSTRUCTIONS[task]} {text}", answer


def write_question(rng: random.Random, task: str, topic: Topic, habit: int) -> tuple[str, str]:
    """Return (input, output) of one question: a sample like those of the history, but for LaMP-1 (a citation)."""
    return citation(rng, topic, habit) if task == "LaMP_1" else write_sample(rng, task, topic, habit)


def generate_users(count: int, settings: UserSettings, seed: int) -> list[UserStream]:
    """Generate `count` users, tasks in turn; the same seed gives the same users, whatever `count` is.

    Raises:
        ConfigError: through `UserSettings`.
    """
    return [
        _generate_user(
            f"user-{i:03d}", settings.tasks[i % len(settings.tasks)], settings, named_seed(seed, "user", i)
        )
        for i in range(count)
    ]


def _generate_user(user: str, task: str, settings: UserSettings, seed: int) -> UserStream:
    rng = random.Random(seed)
    topics = rng.sample(TOPICS, settings.domains)
    habits = _conflicting_habits(rng, task, settings.domains)

    def written(seq: int, domain: int) -> Sample:
        given, answer = write_sample(rng, task, topics[domain], habits[domain], settings.slips)
        return Sample(user, seq, task, given, answer, topics[domain].name)

    def asked(seq: int, domain: int) -> Sample:
        given, answer = write_question(rng, task, topics[domain], habits[domain])
        return Sample(user, seq, task, given, answer, topics[domain].name)

    history: list[Sample] = []
    for period in range(settings.domains):
        for _ in range(settings.period):
            strays = period > 0 and rng.random() < settings.stray
            history.append(written(len(history), rng.randrange(period) if strays else period))
    queries = [asked(i, i % settings.domains) for i in range(settings.domains * settings.queries_per_domain)]
    return UserStream(user, task, tuple(history), tuple(queries))


def _conflicting_habits(rng: random.Random, task: str, count: int) -> list[int]:
    """Habits of a user's domains: all different as long as the task has that many."""
    available = list(range(HABITS[task]))
    rng.shuffle(available)
    return [available[i % len(available)] for i in range(count)]
