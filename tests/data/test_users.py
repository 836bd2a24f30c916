"""Generated users: reproducible, with domains that shift and habits that conflict."""

import random
from collections import Counter
from typing import Any

import pytest

from nvcim.config import parse_settings
from nvcim.data.users import (
    GENERATED_TASKS,
    HABITS,
    INSTRUCTIONS,
    TAGS,
    TOPICS,
    UserSettings,
    generate_users,
    persona,
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


@pytest.mark.parametrize("task", GENERATED_TASKS)
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


def test_users_have_different_habits_in_their_domains() -> None:
    """Tweets show their habit: endings of two domains of a user differ more often than within a domain."""
    users = generate_users(6, UserSettings(tasks=("LaMP_7",), period=4, slips=0, stray=0), seed=9)
    for user in users:
        said = {query.domain: " ".join(query.output.split()[-5:]) for query in user.queries}
        assert len(set(said.values())) == len(said)


def test_answers_are_valid_labels() -> None:
    for user in generate_users(8, UserSettings(period=10), seed=5):
        for sample in user.history:
            if user.task == "LaMP_2":
                assert sample.output in TAGS
            if user.task == "LaMP_3":
                assert sample.output in {"1", "2", "3", "4", "5"}


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
    for task, count in HABITS.items():
        assert len({persona(task, habit) for habit in range(count)}) == count


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="'stray'"):
        parse_settings({"stray": 1.0}, UserSettings, "users")
    with pytest.raises(ConfigError, match=r"'tasks\.0'"):
        parse_settings({"tasks": ["LaMP_1"]}, UserSettings, "users")
