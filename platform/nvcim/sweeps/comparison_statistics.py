"""What a comparison's answers say: means and spreads over seeds, and which differences a paired test can tell apart.

A seed (one repetition) has its own users, tuning and chips, and all methods share them; so methods are compared seed by
seed, by the paired t-test: t = mean(d) / (sd(d) / sqrt(n)) of the n differences d, two-sided, n - 1 degrees of freedom.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from scipy.stats import t as student_t

from nvcim.sweeps.comparison_methods import GRID, MITIGATIONS, NO_DEVICE, ONE_FOR_ALL, OURS

Row = dict[str, Any]

LEVEL = 0.05
"""Two-sided p below which a difference counts; p is not corrected for the number of differences looked at."""
FEWEST_SEEDS = 3
"""With fewer seeds no difference is called."""
ALL_TASKS = "mean"
"""What stands for the task where scores are averaged over tasks."""

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
        p: of the paired t-test; None with fewer than `FEWEST_SEEDS` seeds.
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


def over_tasks(found: Mapping[Place, Score]) -> dict[Place, Score]:
    """Mean over tasks of every (model, device, method), seed by seed.

    A seed counts only where the method has every task of its model: a mean over fewer is no match for one over all.
    """
    tasks: dict[str, set[str]] = defaultdict(set)
    parts: dict[Place, dict[str, Score]] = defaultdict(dict)
    for place, score in found.items():
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
    seeds = sorted(set(ours.by_seed) & set(other.by_seed))
    if not seeds:
        return None
    # Rounded: sums of the same scores in another order may differ in the last digits.
    steps = [round(ours.by_seed[seed] - other.by_seed[seed], 12) for seed in seeds]
    return Difference(
        ours=statistics.fmean(ours.by_seed[seed] for seed in seeds),
        other=statistics.fmean(other.by_seed[seed] for seed in seeds),
        mean=statistics.fmean(steps),
        spread=statistics.stdev(steps) if len(steps) > 1 else None,
        p=_paired_p(steps) if len(steps) >= FEWEST_SEEDS else None,
        seeds=len(seeds),
    )


def best(competitors: Sequence[Score]) -> Place | None:
    """The place with the highest mean, if it is told apart from the runner-up; else None.

    Nothing is best alone: a single competitor has no runner-up.
    """
    ordered = sorted(competitors, key=lambda score: score.mean, reverse=True)
    if len(ordered) < 2:
        return None
    lead = difference(ordered[0], ordered[1])
    return ordered[0].place if lead is not None and lead.verdict == "above" else None


def verdicts(answers: Sequence[Row]) -> list[Against]:
    """NVCiM-PT against every other method, per model, task (and their mean) and device of NVCiM-PT.

    A method without a crossbar is compared with every device. One-for-all is compared over users with more than one
    domain: with a single domain there is nothing to shift.
    """
    found = _with_mean(answers)
    shifting = _with_mean([row for row in answers if row["domains"] > 1])
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


def grid_rows(answers: Iterable[Row]) -> list[Row]:
    """Answers of the grid alone, without the sweeps'."""
    return [row for row in answers if row["part"] == GRID]


def _with_mean(answers: Iterable[Row]) -> dict[Place, Score]:
    """Scores by task, and over tasks where there is more than one."""
    found = scores(answers)
    several = len({place.task for place in found}) > 1
    return {**found, **over_tasks(found)} if several else found


def _paired_p(steps: Sequence[float]) -> float:
    """Two-sided p of differences under the hypothesis that their mean is 0."""
    middle, spread = statistics.fmean(steps), statistics.stdev(steps)
    if spread == 0:
        return 1.0 if middle == 0 else 0.0  # the limits of the formula, which divides by the spread
    t = middle / (spread / math.sqrt(len(steps)))
    return float(2 * student_t.sf(abs(t), len(steps) - 1))
