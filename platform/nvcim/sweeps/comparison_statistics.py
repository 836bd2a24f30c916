"""What a comparison's answers say: means and spreads over seeds, and which differences a paired test can tell apart.

A seed (one repetition) has its own users, tuning and chips, and all methods share them; so methods are compared seed by
seed, by the paired t-test: t = mean(d) / (sd(d) / sqrt(n)) of the n differences d, two-sided, n - 1 degrees of freedom.

A task whose questions mostly do not fit the model's context scores 0 for every method and tells none apart: it is left
out where scores are averaged over tasks.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from scipy.stats import t as student_t

from nvcim.sweeps.comparison_methods import GRID, MITIGATIONS, NO_DEVICE, ONE_FOR_ALL, OURS

Row = dict[str, Any]
Key = TypeVar("Key")

LEVEL = 0.05
"""Two-sided p below which a difference counts; p is not corrected for the number of differences looked at."""
FEWEST_SEEDS = 3
"""With fewer seeds no difference is called."""
ALL_TASKS = "mean"
"""What stands for the task where scores are averaged over tasks."""
MOST_UNANSWERED = 0.5
"""A task with a larger share of questions that do not fit the context is left out of the mean over tasks."""
GENERATED = "generated"
"""As a row's `data`: each seed draws users of its own, whose names are the same."""

Task = tuple[str, str]
"""Model and task."""

Verdict = Literal["above", "below", "not told apart"]


class Place(NamedTuple):
    """What a score belongs to."""

    model: str
    task: str
    device: str
    method: str


@dataclass(frozen=True)
class Score:
    """Mean scores of one place by seed, each over all queries of the seed."""

    place: Place
    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation (n - 1) over seeds; None for one seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


@dataclass(frozen=True)
class Difference:
    """One method's scores less another's, over the seeds that both have.

    Attributes:
        ours: mean of the first over those seeds.
        other: mean of the second.
        mean: of the differences.
        spread: their standard deviation (n - 1); None for one seed.
        p: of the paired t-test; None with fewer than `FEWEST_SEEDS` seeds, and where the differences are the same
            in every seed but not zero: without a spread, the test has nothing to measure them by.
        seeds: how many.
    """

    ours: float
    other: float
    mean: float
    spread: float | None
    p: float | None
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """Whether the first is above or below the second, as far as the seeds tell."""
        if self.p is None or self.p >= LEVEL:
            return "not told apart"
        return "above" if self.mean > 0 else "below"


@dataclass(frozen=True)
class Against:
    """NVCiM-PT against another method: where, and the difference."""

    place: Place
    difference: Difference

    @property
    def gain(self) -> float | None:
        """NVCiM-PT's score relative to the other's, less 1; None where the other scores nothing."""
        found = self.difference
        return found.mean / found.other if found.other > 0 else None


@dataclass(frozen=True)
class Standing:
    """NVCiM-PT against the mitigation baselines on one device.

    Attributes:
        differences: by baseline, in the order of `MITIGATIONS`; without those that the run lacks there.
    """

    model: str
    device: str
    differences: Mapping[str, Difference]

    @property
    def missing(self) -> tuple[str, ...]:
        """Baselines that were not compared here."""
        return tuple(name for name in MITIGATIONS if name not in self.differences)

    @property
    def above(self) -> int:
        """How many baselines NVCiM-PT's mean is above."""
        return sum(found.mean > 0 for found in self.differences.values())

    @property
    def above_all(self) -> bool:
        """Whether NVCiM-PT's mean is above every baseline; a missing one is not beaten."""
        return self.above == len(MITIGATIONS)

    @property
    def below(self) -> tuple[str, ...]:
        """Baselines that NVCiM-PT is told apart below."""
        return tuple(name for name, found in self.differences.items() if found.verdict == "below")


def scores(answers: Iterable[Row]) -> dict[Place, Score]:
    """Mean score of every (model, task, device, method) by seed; rows as in the table `comparison`."""
    pooled: dict[Place, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in answers:
        place = Place(row["model"], row["task"], row["device"], row["method"])
        pooled[place][row["repeat"]].append(row["score"])
    return {
        place: Score(place, {seed: statistics.fmean(own) for seed, own in sorted(by_seed.items())})
        for place, by_seed in pooled.items()
    }


def over_tasks(found: Mapping[Place, Score], left_out: Collection[Task] = ()) -> dict[Place, Score]:
    """Mean over tasks of every (model, device, method), seed by seed; without the tasks `left_out`.

    A seed counts only where the method has every task of its model: a mean over fewer is no match for one over all.
    """
    tasks: dict[str, set[str]] = defaultdict(set)
    parts: dict[Place, dict[str, Score]] = defaultdict(dict)
    for place, score in found.items():
        if (place.model, place.task) in left_out:
            continue
        tasks[place.model].add(place.task)
        parts[place._replace(task=ALL_TASKS)][place.task] = score
    made = {}
    for place, by_task in parts.items():
        if set(by_task) != tasks[place.model]:
            continue
        seeds = set.intersection(*(set(score.by_seed) for score in by_task.values()))
        if seeds:
            by_seed = {
                seed: statistics.fmean(by_task[task].by_seed[seed] for task in sorted(by_task))
                for seed in sorted(seeds)
            }
            made[place] = Score(place, by_seed)
    return made


def difference(ours: Score, other: Score) -> Difference | None:
    """Compare two scores over the seeds that both have; None where they share none."""
    return paired_difference(ours.by_seed, other.by_seed)


def paired_difference(
    ours: Mapping[int, float], other: Mapping[int, float], overlap: float = 0.0
) -> Difference | None:
    """Compare scores by seed over the seeds that both have; None where they share none.

    overlap: 0 for seeds with data of their own. Seeds that split the same data into n_train and n_test are not
    independent: for them n_test / n_train, by which the variance of the mean grows from 1/n to 1/n + overlap times
    the variance over seeds (Nadeau and Bengio 2003, Inference for the generalization error, section 3).
    """
    seeds = sorted(set(ours) & set(other))
    if not seeds:
        return None
    # Rounded: sums of the same scores in another order may differ in the last digits.
    steps = [round(ours[seed] - other[seed], 12) for seed in seeds]
    return Difference(
        ours=statistics.fmean(ours[seed] for seed in seeds),
        other=statistics.fmean(other[seed] for seed in seeds),
        mean=round(statistics.fmean(steps), 12),
        spread=statistics.stdev(steps) if len(steps) > 1 else None,
        p=_paired_p(steps, overlap) if len(steps) >= FEWEST_SEEDS else None,
        seeds=len(seeds),
    )


def holm_corrected(found: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The differences of one family with p raised so that calling any of them falsely stays below `LEVEL` (Holm 1979).

    The k-th smallest of m values of p, k from 0, is multiplied by m - k, and none falls below a smaller one's.
    """
    made, least = dict(found), 0.0
    tested = sorted((one.p, place) for place, one in enumerate(found.values()) if one.p is not None)
    keys = list(found)
    for rank, (p, place) in enumerate(tested):
        least = max(least, min((len(tested) - rank) * p, 1.0))
        made[keys[place]] = replace(found[keys[place]], p=least)
    return made


def best(competitors: Sequence[Score]) -> Place | None:
    """The place with the highest mean, if it is told apart above every other; else None.

    Every other and not the runner-up alone: one with a lower mean and a wider spread may be the one that it is not
    told apart from. Nothing is best alone.
    """
    if len(competitors) < 2:
        return None
    leader = max(competitors, key=lambda score: score.mean)
    leads = [difference(leader, other) for other in competitors if other is not leader]
    return leader.place if all(lead is not None and lead.verdict == "above" for lead in leads) else None


def verdicts(answers: Sequence[Row], left_out: Collection[Task] = ()) -> list[Against]:
    """NVCiM-PT against every other method, per model, task (and their mean, without `left_out`) and device of NVCiM-PT.

    A method without a crossbar is compared with every device. One-for-all is compared over users with more than one
    domain: with a single domain there is nothing to shift.
    """
    found = _with_mean(answers, left_out)
    shifting = _with_mean([row for row in answers if row["domains"] > 1], left_out)
    made = []
    for place, ours in found.items():
        if place.method != OURS:
            continue
        for other_place, other in found.items():
            same = other_place.model == place.model and other_place.task == place.task
            if not same or other_place.method == OURS or other_place.device not in (place.device, NO_DEVICE):
                continue
            if other_place.method == ONE_FOR_ALL:
                if place not in shifting or other_place not in shifting:
                    continue
                found_difference = difference(shifting[place], shifting[other_place])
            else:
                found_difference = difference(ours, other)
            if found_difference is not None:
                made.append(Against(other_place._replace(device=place.device), found_difference))
    return made


def losses(against: Sequence[Against]) -> list[Against]:
    """Where NVCiM-PT's mean is below another method's: significant ones first, then by size."""
    lost = [one for one in against if one.difference.mean < 0]
    return sorted(lost, key=lambda one: (one.difference.verdict != "below", one.difference.mean))


def largest_gain(against: Sequence[Against]) -> Against | None:
    """The largest relative gain over a mitigation baseline, of single tasks and of their mean; None without any."""
    gains = [
        one
        for one in against
        if one.place.method in MITIGATIONS and one.gain is not None and one.difference.mean > 0
    ]
    return max(gains, key=lambda one: one.gain or 0.0, default=None)


def widest(against: Sequence[Against]) -> list[Against]:
    """The verdicts over all tasks, model by model; of the one task where a model has only one."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for one in against:
        tasks[one.place.model].add(one.place.task)
    return [
        one for one in against if one.place.task == ALL_TASKS or tasks[one.place.model] == {one.place.task}
    ]


def standings(against: Sequence[Against]) -> list[Standing]:
    """NVCiM-PT against the mitigation baselines over all tasks, per model and device in order of appearance."""
    found: dict[tuple[str, str], dict[str, Difference]] = {}
    for one in widest(against):
        # A device without any baseline has a standing too: there none is beaten.
        own = found.setdefault((one.place.model, one.place.device), {})
        if one.place.method in MITIGATIONS:
            own[one.place.method] = one.difference
    return [
        Standing(model, device, {name: own[name] for name in MITIGATIONS if name in own})
        for (model, device), own in found.items()
    ]


def unanswered_shares(answers: Iterable[Row], sets: Iterable[Row]) -> dict[Task, float]:
    """Share of each task's questions that did not fit the model's context, each question counted once.

    Args:
        answers: rows as in the table `comparison`; they tell how many questions each user has.
        sets: rows as in the table `comparison_sets`; their `unanswered` is the same for all methods of a user.
    """
    asked: dict[Task, set[tuple[int, str, int]]] = defaultdict(set)
    for row in answers:
        asked[row["model"], row["task"]].add((row["repeat"], row["user_id"], row["query"]))
    too_long: dict[Task, dict[tuple[int, str], int]] = defaultdict(dict)
    for row in sets:
        too_long[row["model"], row["task"]][row["repeat"], row["user_id"]] = row["unanswered"]
    return {task: sum(too_long[task].values()) / len(questions) for task, questions in asked.items()}


def silent_shares(answers: Iterable[Row]) -> dict[Task, float]:
    """Share of each task's questions that every method left without an answer, from the answers alone.

    A question that does not fit the context is one of them; so would be one that all methods answer with nothing.
    """
    spoken: dict[Task, dict[tuple[int, str, int], bool]] = defaultdict(lambda: defaultdict(bool))
    for row in answers:
        spoken[row["model"], row["task"]][row["repeat"], row["user_id"], row["query"]] |= row["output"] != ""
    return {
        task: sum(not heard for heard in questions.values()) / len(questions)
        for task, questions in spoken.items()
    }


def mostly_unanswered(shares: Mapping[Task, float]) -> list[Task]:
    """Tasks with more than `MOST_UNANSWERED` of their questions unanswered, by name."""
    return sorted(task for task, share in shares.items() if share > MOST_UNANSWERED)


def shared_users(answers: Iterable[Row]) -> int:
    """How many users (counted per task) of read data answer in more than one seed.

    Seeds that share users are not independent of each other, as the paired t-test has them.
    """
    seeds: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for row in answers:
        if row["data"] != GENERATED:
            seeds[row["data"], row["task"], row["user_id"]].add(row["repeat"])
    return sum(len(own) > 1 for own in seeds.values())


def grid_rows(answers: Iterable[Row]) -> list[Row]:
    """Answers of the grid alone, without the sweeps'."""
    return [row for row in answers if row["part"] == GRID]


def _with_mean(answers: Iterable[Row], left_out: Collection[Task]) -> dict[Place, Score]:
    """Scores by task, and over tasks where there is more than one."""
    found = scores(answers)
    several = len({place.task for place in found}) > 1
    return {**found, **over_tasks(found, left_out)} if several else found


def _paired_p(steps: Sequence[float], overlap: float) -> float | None:
    """Two-sided p of differences under the hypothesis that their mean is 0; None where it cannot be had."""
    middle, spread = statistics.fmean(steps), statistics.stdev(steps)
    if spread == 0:
        # The formula divides by the spread. Its limit, p = 0, would call three equal differences of one question
        # certain.
        return 1.0 if middle == 0 else None
    t = middle / (spread * math.sqrt(1 / len(steps) + overlap))
    return float(2 * student_t.sf(abs(t), len(steps) - 1))
