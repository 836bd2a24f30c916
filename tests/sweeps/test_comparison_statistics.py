"""Means, spreads and verdicts of a comparison, against tables computed by hand."""

from typing import Any

import pytest
from scipy.stats import ttest_rel

from nvcim.sweeps.comparison_methods import in_table_order
from nvcim.sweeps.comparison_statistics import (
    Against,
    Difference,
    Place,
    Score,
    best,
    difference,
    grid_rows,
    largest_gain,
    losses,
    mostly_unanswered,
    over_tasks,
    scores,
    shared_users,
    silent_shares,
    standings,
    unanswered_shares,
    verdicts,
    widest,
)


def answers(
    by_seed: dict[int, list[float]],
    method: str = "nvcim-pt",
    device: str = "RRAM1",
    task: str = "LaMP_2",
    domains: int = 3,
) -> list[dict[str, Any]]:
    shared = {
        "part": "grid",
        "model": "m",
        "task": task,
        "device": device,
        "method": method,
        "domains": domains,
    }
    return [{**shared, "repeat": seed, "score": s} for seed, own in by_seed.items() for s in own]


def score(by_seed: list[float], method: str = "nvcim-pt") -> Score:
    return Score(Place("m", "t", "d", method), dict(enumerate(by_seed)))


def test_a_score_is_the_mean_over_seeds_of_the_seeds_means() -> None:
    # Seed 0: (1 + 0 + 0 + 1) / 4 = 0.5; seed 1: 1; seed 2: 0. Mean 0.5, sd sqrt((0 + .25 + .25) / 2) = 0.5.
    (found,) = scores(answers({0: [1, 0, 0, 1], 1: [1], 2: [0, 0]})).values()
    assert found.by_seed == {0: 0.5, 1: 1.0, 2: 0.0}
    assert found.mean == pytest.approx(0.5)
    assert found.spread == pytest.approx(0.5)
    assert scores(answers({7: [1.0]}))[found.place].spread is None


def test_the_mean_over_tasks_counts_only_seeds_and_methods_that_have_every_task() -> None:
    rows = [
        *answers({0: [0.2], 1: [0.4], 2: [1.0]}, task="LaMP_2"),
        *answers({0: [0.6], 1: [0.0]}, task="LaMP_5"),
        *answers({0: [1.0]}, task="LaMP_5", method="swv"),
    ]
    found = over_tasks(scores(rows))
    assert list(found) == [Place("m", "mean", "RRAM1", "nvcim-pt")]
    (only,) = found.values()
    assert only.by_seed == {0: pytest.approx(0.4), 1: pytest.approx(0.2)}


def test_a_difference_is_paired_by_seed() -> None:
    # d = 0.1, 0.3, 0.2: mean 0.2, sd 0.1, t = 0.2 / (0.1 / sqrt 3) = 2 sqrt 3 = 3.4641 with 2 degrees of freedom,
    # where p = 1 - t / sqrt(2 + t^2) = 1 - 3.4641 / 3.7417 = 0.074180.
    ours, other = score([0.5, 0.9, 0.4]), score([0.4, 0.6, 0.2])
    found = difference(ours, other)
    assert found is not None
    assert (found.mean, found.spread, found.seeds) == (pytest.approx(0.2), pytest.approx(0.1), 3)
    assert found.p == pytest.approx(0.0741799, rel=1e-5)
    assert found.verdict == "not told apart"


def test_seeds_that_cancel_are_no_difference() -> None:
    # d = 0.7, -0.8, 0.1, whose sum is 0 but for the last digit of the binary fractions
    found = difference(score([0.7, 0.1, 0.3]), score([0.0, 0.9, 0.2]))
    assert found is not None
    assert found.mean == 0
    assert losses([Against(Place("m", "t", "d", "swv"), found)]) == []


def test_p_is_that_of_scipys_paired_test() -> None:
    ours, other = [0.51, 0.62, 0.55, 0.7, 0.58], [0.5, 0.52, 0.49, 0.56, 0.5]
    found = difference(score(ours), score(other))
    assert found is not None
    assert found.p == pytest.approx(ttest_rel(ours, other).pvalue, rel=1e-9)
    assert found.verdict == "above"


def test_only_seeds_that_both_have_are_compared() -> None:
    place = Place("m", "t", "d", "x")
    found = difference(Score(place, {0: 0.9, 1: 0.5, 3: 0.1}), Score(place, {1: 0.4, 2: 0.9, 3: 0.2}))
    assert found is not None
    assert (found.seeds, found.ours, found.other, found.mean) == (
        2,
        0.3,
        pytest.approx(0.3),
        pytest.approx(0),
    )
    assert found.p is None
    assert difference(Score(place, {0: 1.0}), Score(place, {1: 1.0})) is None


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "not told apart"),
        ([0.6, 0.7, 0.8], [0.5, 0.6, 0.7], "not told apart"),  # 0.1 in each seed: nothing to measure it by
        ([0.5, 0.6, 0.7], [0.6, 0.7, 0.8], "not told apart"),
        ([0.9, 0.9], [0.1, 0.1], "not told apart"),  # two seeds tell nothing
    ],
)
def test_verdicts_without_spread_or_seeds(ours: list[float], other: list[float], verdict: str) -> None:
    found = difference(score(ours), score(other))
    assert found is not None
    assert found.verdict == verdict


def test_differences_without_spread_have_no_p_unless_they_are_zero() -> None:
    same, shifted = (
        difference(score([0.6, 0.7, 0.8]), score(other)) for other in ([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])
    )
    assert same is not None
    assert shifted is not None
    assert (same.p, shifted.p, shifted.spread) == (1.0, None, 0.0)


def test_the_best_is_told_apart_from_every_competitor_and_not_from_the_runner_up_alone() -> None:
    # Against b, the runner-up: d = 0.20, 0.21, 0.19, p < 0.01. Against c, lower on the mean: d = 0, 0.1, 0.8, whose
    # t = 0.3 / (0.4359 / sqrt 3) = 1.19 tells nothing.
    a, b, c = score([0.8, 0.81, 0.9], "a"), score([0.6, 0.6, 0.71], "b"), score([0.8, 0.71, 0.1], "c")
    assert best([b, a]) == a.place
    assert best([a, b, c]) is None
    assert best([c, a]) is None


def test_the_best_is_marked_only_where_it_is_told_apart() -> None:
    clear = [score([0.8, 0.9, 0.85], "a"), score([0.5, 0.61, 0.54], "b"), score([0.1, 0.2, 0.1], "c")]
    marked = best(clear)
    assert marked is not None
    assert marked.method == "a"
    close = [*clear, score([0.7, 0.99, 0.85], "d")]  # d = 0.1, -0.09, 0 against a
    assert best(close) is None
    assert best([score([0.9, 0.9], "a"), score([0.1, 0.1], "b")]) is None
    assert best(clear[:1]) is None
    assert best([]) is None


def test_each_device_is_judged_with_the_methods_on_it_and_those_without_a_crossbar() -> None:
    rows = [
        *answers({0: [0.9], 1: [0.8], 2: [0.9]}, device="RRAM1"),
        *answers({0: [0.3], 1: [0.4], 2: [0.2]}, device="RRAM4"),
        *answers({0: [0.5], 1: [0.5], 2: [0.4]}, "swv", "RRAM1"),
        *answers({0: [0.5], 1: [0.6], 2: [0.5]}, "swv", "RRAM4"),
        *answers({0: [0.6], 1: [0.5], 2: [0.6]}, "lora", "none"),
    ]
    found = {(one.place.device, one.place.method): one.difference for one in verdicts(rows)}
    assert set(found) == {("RRAM1", "swv"), ("RRAM4", "swv"), ("RRAM1", "lora"), ("RRAM4", "lora")}
    assert found["RRAM1", "swv"].mean == pytest.approx(0.4)
    assert found["RRAM4", "lora"].mean == pytest.approx((0.3 + 0.4 + 0.2 - 0.6 - 0.5 - 0.6) / 3)


def test_one_for_all_is_judged_over_users_with_several_domains_alone() -> None:
    rows = [
        *answers({0: [1.0], 1: [0.8]}),
        *answers({0: [0.0], 1: [0.0]}, domains=1),
        *answers({0: [0.4], 1: [0.5]}, "one-for-all"),
        *answers({0: [1.0], 1: [1.0]}, "one-for-all", domains=1),
        *answers({0: [0.0], 1: [0.0]}, "swv"),
    ]
    found = {one.place.method: one.difference for one in verdicts(rows)}
    assert found["one-for-all"].mean == pytest.approx((0.6 + 0.3) / 2)
    assert found["swv"].mean == pytest.approx((0.5 + 0.4) / 2)
    unknown = [{**row, "domains": 0} for row in rows]
    assert {one.place.method for one in verdicts(unknown)} == {"swv"}


def test_verdicts_over_several_tasks_include_their_mean() -> None:
    rows = [
        row
        for task, shift in (("LaMP_2", 0.0), ("LaMP_5", 0.2))
        for row in (
            *answers({0: [0.5 + shift], 1: [0.6]}, task=task),
            *answers({0: [0.4], 1: [0.4]}, "swv", task=task),
        )
    ]
    found = {one.place.task: one.difference.mean for one in verdicts(rows)}
    # LaMP_2: 0.1, 0.2; LaMP_5: 0.3, 0.2; their mean by seed: 0.2, 0.2
    assert found == {
        "LaMP_2": pytest.approx(0.15),
        "LaMP_5": pytest.approx(0.25),
        "mean": pytest.approx(0.2),
    }


def test_the_mean_over_tasks_leaves_out_what_it_is_told_to() -> None:
    rows = [
        row
        for task, by_seed in (("LaMP_2", [0.6, 0.8]), ("LaMP_4", [0.0, 0.0]), ("LaMP_5", [0.2, 0.4]))
        for row in (
            *answers({seed: [own] for seed, own in enumerate(by_seed)}, task=task),
            *answers({0: [0.1], 1: [0.1]}, "swv", task=task),
        )
    ]
    left_out = [("m", "LaMP_4")]
    place = Place("m", "mean", "RRAM1", "nvcim-pt")
    assert over_tasks(scores(rows), left_out)[place].by_seed == {0: pytest.approx(0.4), 1: pytest.approx(0.6)}
    found = {one.place.task: one.difference.ours for one in verdicts(rows, left_out)}
    assert found == {"LaMP_2": 0.7, "LaMP_4": 0.0, "LaMP_5": pytest.approx(0.3), "mean": pytest.approx(0.5)}
    assert over_tasks(scores(rows), [("other", "LaMP_4")])[place].mean == pytest.approx(1 / 3)


def asked(task: str, user: str, outputs: dict[str, list[str]], repeat: int = 0) -> list[dict[str, Any]]:
    """Answers of one user by method."""
    shared = {"model": "m", "task": task, "repeat": repeat, "user_id": user, "data": "lamp_like"}
    return [
        {**shared, "method": method, "query": query, "output": output}
        for method, own in outputs.items()
        for query, output in enumerate(own)
    ]


def kept(task: str, user: str, unanswered: int, methods: int = 2, repeat: int = 0) -> list[dict[str, Any]]:
    row = {"model": "m", "task": task, "repeat": repeat, "user_id": user, "unanswered": unanswered}
    return [row] * methods


def test_a_question_that_did_not_fit_counts_once_for_all_methods() -> None:
    # LaMP_4: 3 of 4 questions of u, 0 of 1 of v: 3 of 5. LaMP_2: 1 of 2, which is not more than half.
    rows = [
        *asked("LaMP_4", "u", {"nvcim-pt": ["", "", "", "x"], "swv": ["", "", "", ""]}),
        *asked("LaMP_4", "v", {"nvcim-pt": ["y"]}),
        *asked("LaMP_2", "u", {"nvcim-pt": ["", "x"], "swv": ["", "y"]}),
    ]
    sets = [*kept("LaMP_4", "u", 3), *kept("LaMP_4", "v", 0, 1), *kept("LaMP_2", "u", 1)]
    shares = unanswered_shares(rows, sets)
    assert shares == {("m", "LaMP_4"): 0.6, ("m", "LaMP_2"): 0.5}
    assert mostly_unanswered(shares) == [("m", "LaMP_4")]
    assert silent_shares(rows) == shares


def test_users_that_answer_in_several_seeds_are_counted_in_read_data_alone() -> None:
    said = {"nvcim-pt": ["x", "y"], "swv": ["x", "y"]}
    rows = [
        *asked("LaMP_2", "u", said, 0),
        *asked("LaMP_2", "u", said, 3),
        *asked("LaMP_2", "v", said, 0),
        *asked("LaMP_4", "v", said, 1),  # another task has its own draw of users
    ]
    assert shared_users(rows) == 1
    # Generated users are drawn anew in every seed and have the same names.
    assert shared_users([{**row, "data": "generated"} for row in rows]) == 0


def test_a_standing_counts_a_missing_baseline_as_not_beaten() -> None:
    every = ("no-mitigation", "swv", "cxdnn", "correctnet")
    found = standings(
        [
            *(on("RRAM1", method, 0.5, 0.4, 0.3) for method in every),
            *(on("RRAM4", method, 0.5, 0.4, 0.3) for method in every[:3]),
            *(on("FeFET2", method, 0.5, 0.4 if method == "swv" else 0.6, 0.01) for method in every),
            on("FeFET3", "one-for-all", 0.5, 0.4, 0.3),
        ]
    )
    assert [(one.device, one.above, one.above_all, one.missing, one.below) for one in found] == [
        ("RRAM1", 4, True, (), ()),
        ("RRAM4", 3, False, ("correctnet",), ()),
        ("FeFET2", 1, False, (), ("no-mitigation", "cxdnn", "correctnet")),
        ("FeFET3", 0, False, every, ()),
    ]


def on(device: str, method: str, ours: float, other: float, p: float) -> Against:
    found = against(method, ours, other, p)
    return Against(found.place._replace(device=device), found.difference)


def test_the_widest_verdicts_are_those_over_tasks_or_of_the_only_task() -> None:
    of_one, of_other, over_all = (against("swv", 0.5, 0.4, 0.1, task) for task in ("a", "b", "mean"))
    assert widest([of_one, of_other, over_all]) == [over_all]
    assert widest([of_one]) == [of_one]
    assert widest([of_one, of_other]) == []  # neither stands for both


def against(method: str, ours: float, other: float, p: float | None, task: str = "t") -> Against:
    return Against(Place("m", task, "d", method), Difference(ours, other, round(ours - other, 9), 0.1, p, 5))


def test_losses_list_significant_ones_first() -> None:
    small, large, sure = (
        against("swv", 0.5, 0.6, 0.3),
        against("cxdnn", 0.2, 0.6, 0.2),
        against("lora", 0.5, 0.55, 0.01),
    )
    assert losses([small, against("swv", 0.7, 0.6, 0.01), large, sure]) == [sure, large, small]


def test_the_largest_gain_is_relative_and_over_mitigation_baselines() -> None:
    half = against("swv", 0.3, 0.2, 0.5)
    found = largest_gain(
        [
            against("correctnet", 0.9, 0.7, 0.01),  # more in absolute terms, less in relative ones
            half,
            against("zero-shot", 0.9, 0.1, 0.01),  # no mitigation baseline
            against("cxdnn", 0.2, 0.0, 0.01),  # no ratio to nothing
        ]
    )
    assert found is half
    assert half.gain == pytest.approx(0.5)
    assert largest_gain([against("swv", 0.2, 0.3, 0.5)]) is None


def test_the_sweeps_rows_are_not_the_grids() -> None:
    rows = answers({0: [1.0]})
    assert grid_rows([*rows, {**rows[0], "part": "sigma sweep"}]) == rows


def test_methods_keep_the_tables_order() -> None:
    assert in_table_order({"lora", "zz", "swv", "nvcim-pt"}) == ["nvcim-pt", "swv", "lora", "zz"]
