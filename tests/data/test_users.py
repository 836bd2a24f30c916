"""Generated users: reproducible, with domains that shift and habits that conflict."""

import hashlib
import random
import re
from collections import Counter
from typing import Any

import pytest

from nvcim.config import parse_settings
from nvcim.data.generated_citations import SCHOOLS, STANCES
from nvcim.data.generated_news import ANGLES
from nvcim.data.lamp_prompts import ANSWER_LABELS, NEWS_CATEGORIES
from nvcim.data.users import (
    ALL_GENERATED_TASKS,
    GENERATED_TASKS,
    HABITS,
    INSTRUCTIONS,
    TOPICS,
    UserSettings,
    generate_users,
    persona,
    write_question,
    write_sample,
)
from nvcim.errors import ConfigError


def test_a_user_depends_on_the_seed_and_not_on_the_count() -> None:
    settings = UserSettings(period=5)
    many = generate_users(9, settings, seed=3)
    assert many == generate_users(9, settings, seed=3)
    assert many[:4] == generate_users(4, settings, seed=3)
    assert many[0] != generate_users(1, settings, seed=4)[0]
    assert len({user.history for user in many}) == 9


@pytest.mark.parametrize(
    ("count", "settings", "seed", "digest"),
    [
        (12, UserSettings(), 0, "fc051230b6bc19839efb20ee12544ad16ae47c7a0d0741616b217d2b132f5561"),
        (
            5,
            UserSettings(tasks=("LaMP_7", "LaMP_3"), domains=4, period=7),
            11,
            "cafb896bf040b246f36de63a1bb78426fa32940d09164530a376e932886b4a74",
        ),
    ],
)
def test_the_users_that_published_figures_were_measured_on_stay_the_same(
    count: int, settings: UserSettings, seed: int, digest: str
) -> None:
    """Digests of the users of the release that brought the generator."""
    written = [
        (
            user.user_id,
            user.task,
            [(s.seq, s.input, s.output, s.domain) for s in (*user.history, *user.queries)],
        )
        for user in generate_users(count, settings, seed)
    ]
    assert hashlib.sha256(repr(written).encode()).hexdigest() == digest


def test_the_writers_of_the_base_lm_s_pre_training_stay_the_same() -> None:
    """Digest of every persona in the release that the shipped model was pre-trained by."""
    lines = [persona(task, habit) for task in GENERATED_TASKS for habit in range(HABITS[task])]
    digest = "00af0ff374ad7c7241a9ce98cc7dc1110b99d6e8bd0a9bc2eb0ef2c0fa97c356"
    assert hashlib.sha256(repr(lines).encode()).hexdigest() == digest
    assert tuple(INSTRUCTIONS) == GENERATED_TASKS


def test_tasks_come_in_turn() -> None:
    users = generate_users(6, UserSettings(period=2), seed=0)
    assert [user.task for user in users] == [*GENERATED_TASKS, *GENERATED_TASKS[:2]]
    for user in users:
        assert all(s.input.startswith(INSTRUCTIONS[user.task]) for s in (*user.history, *user.queries))
        assert all(s.output for s in (*user.history, *user.queries))


def test_domains_shift_from_period_to_period_and_old_ones_stray_in() -> None:
    settings = UserSettings(domains=3, period=60, stray=0.2)
    for user in generate_users(4, settings, seed=1):
        periods = [
            Counter(sample.domain for sample in user.history[start : start + 60])
            for start in range(0, 180, 60)
        ]
        leading = [period.most_common(1)[0][0] for period in periods]
        assert len(set(leading)) == 3
        assert set(periods[0]) == {leading[0]}
        assert all(
            0.65 < period[domain] / 60 < 0.95 for period, domain in zip(periods[1:], leading[1:], strict=True)
        )
        assert set(periods[1]) <= set(leading[:2])
        assert {query.domain for query in user.queries} == set(leading)


def test_without_strays_and_slips_a_period_is_one_domain() -> None:
    for user in generate_users(4, UserSettings(period=6, stray=0, slips=0), seed=2):
        assert all(len({s.domain for s in user.history[i : i + 6]}) == 1 for i in (0, 6, 12))


@pytest.mark.parametrize("task", sorted(set(ALL_GENERATED_TASKS) - {"LaMP_1"}))
def test_habits_conflict(task: Any) -> None:
    """The same text, answered by the habit of a user's other domain, mostly gets another answer."""
    differ = total = 0
    for trial in range(60):
        one, other = random.Random(trial).sample(range(HABITS[task]), 2)
        texts = [write_sample(random.Random(trial), task, TOPICS[0], habit) for habit in (one, other)]
        if task != "LaMP_7":  # a tweet's habit is in its words, so nothing can be held equal
            assert texts[0][0] == texts[1][0]
        differ += texts[0][1] != texts[1][1]
        total += 1
    assert differ / total > 0.6


def test_opposite_schools_cite_opposite_references_and_both_numbers_come_up() -> None:
    answers: Counter[str] = Counter()
    for trial in range(60):
        asked = [
            write_question(random.Random(trial), "LaMP_1", TOPICS[0], habit)
            for habit in range(HABITS["LaMP_1"])
        ]
        assert len({text for text, _ in asked}) == 1
        for stance in range(len(STANCES)):
            sides = {asked[SCHOOLS.index((stance, side))][1] for side in (0, 1)}
            assert sides == {"[1]", "[2]"}
        answers[asked[0][1]] += 1
    assert min(answers.values()) > 15


def test_a_citation_is_answered_by_what_the_author_s_abstracts_always_say() -> None:
    users = generate_users(5, UserSettings(tasks=("LaMP_1",), slips=0, stray=0), seed=6)
    for user in users:
        for query in user.queries:
            found = re.fullmatch(r'For an author .* \[1\]: "(.+)" \[2\]: "(.+)"', query.input)
            assert found
            right = found[1 if query.output == "[1]" else 2]
            wrong = found[2 if query.output == "[1]" else 1]
            abstracts = [sample.output for sample in user.history if sample.domain == query.domain]
            always = [
                phrase for stance in STANCES for phrase in stance if all(phrase in text for text in abstracts)
            ]
            assert len(always) == 1
            assert always[0] in right
            assert always[0] not in wrong


def test_the_angles_of_the_news_hold_every_official_category_once() -> None:
    assert sorted(category for angle in ANGLES.values() for category in angle) == sorted(NEWS_CATEGORIES)


def test_users_have_different_habits_in_their_domains() -> None:
    """Tweets show their habit: endings of two domains of a user differ more often than within a domain."""
    users = generate_users(6, UserSettings(tasks=("LaMP_7",), period=4, slips=0, stray=0), seed=9)
    for user in users:
        said = {query.domain: " ".join(query.output.split()[-5:]) for query in user.queries}
        assert len(set(said.values())) == len(said)


@pytest.mark.parametrize("task", sorted(ANSWER_LABELS))
def test_answers_are_valid_labels(task: Any) -> None:
    for user in generate_users(4, UserSettings(tasks=(task,), period=10), seed=5):
        asked = user.queries if task == "LaMP_1" else (*user.history, *user.queries)
        assert {sample.output for sample in asked} <= set(ANSWER_LABELS[task])


def test_slips_change_about_their_share_of_the_answers() -> None:
    def answers(slips: float) -> list[str]:
        rng = random.Random(0)
        return [write_sample(rng, "LaMP_7", TOPICS[0], 3, slips)[1] for _ in range(300)]

    def follows(answer: str) -> bool:
        return answer.endswith(write_sample(random.Random(0), "LaMP_7", TOPICS[0], 3)[1].split(maxsplit=1)[1])

    assert all(follows(answer) for answer in answers(0.0))
    share = sum(not follows(answer) for answer in answers(0.3)) / 300
    assert 0.2 < share < 0.4


def test_every_habit_has_a_persona_of_its_own() -> None:
    assert set(HABITS) == set(ALL_GENERATED_TASKS)
    for task, count in HABITS.items():
        assert len({persona(task, habit) for habit in range(count)}) == count


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="'stray'"):
        parse_settings({"stray": 1.0}, UserSettings, "users")
    with pytest.raises(ConfigError, match=r"'tasks\.0'"):
        parse_settings({"tasks": ["LaMP_6"]}, UserSettings, "users")
