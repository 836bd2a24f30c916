"""Differences, claims and extremes of the segmentation comparison, against numbers worked by hand."""

import random
from collections.abc import Mapping

import pytest

from nvcim.sweeps.comparison_statistics import Difference, holm_corrected, paired_difference
from nvcim.sweeps.segmentation_statistics import (
    Arm,
    ArmScore,
    Claim,
    Judgement,
    arm_scores,
    claims,
    extremes,
    qsa_less_sa,
    quantized_less_float,
    several_less_one,
    standing,
    strategies_less_random,
)
from tests.sweeps.segmentation_rows import Row, image_rows, score_row, whole_run

WIGGLE = (0.0, 0.03, 0.01)
"""What seeds add to every score: their spread is 0.0153 (mean 0.0133; squares 0.000467 over 2)."""


def flat(
    part: str, strategy: str, quantizer: str, networks: int, round_number: int | None, repeat: int
) -> float:
    return 0.7 + WIGGLE[repeat]


def claim_of(rows: list[Row], name: str, measure: str = "object Dice", **others: list[Row]) -> Claim:
    (found,) = (one for one in claims(rows, **others) if one.claim == name and one.measure == measure)
    return found


def grid_rows(cells: Mapping[tuple[str, str, int], tuple[float, ...]]) -> list[Row]:
    """Rows of the grid: Dice by (strategy, quantizer, networks), one per seed."""
    return [
        score_row("grid", strategy, quantizer, networks, 2, repeat, dice)
        for (strategy, quantizer, networks), scores in cells.items()
        for repeat, dice in enumerate(scores)
    ]


def test_a_paired_t_test_over_three_seeds_gives_the_p_of_the_tables() -> None:
    # d = 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t = 0.02 / (0.01 / sqrt 3) = 3.4641; for two degrees of freedom
    # p = 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / 3.7417 = 0.0742
    found = paired_difference({0: 0.71, 1: 0.72, 2: 0.73}, {0: 0.70, 1: 0.70, 2: 0.70})
    assert found is not None
    assert found.mean == pytest.approx(0.02)
    assert found.p == pytest.approx(0.0742, abs=5e-5)
    assert found.verdict == "not told apart"


def test_differences_pair_each_arm_with_its_own_partner() -> None:
    scores = arm_scores(whole_run(flat), "object_dice")
    # 8 quantizers x 2 numbers of networks
    assert len(qsa_less_sa(scores)) == 16
    # 7 quantizers x SA, QSA x 2 numbers of networks
    assert len(quantized_less_float(scores, "grid")) == 28
    assert {arm.quantizer for arm in quantized_less_float(scores, "full")} == {"inq-5", "inq-7"}
    assert {arm.networks for arm in several_less_one(scores)} == {5}
    # 3 strategies x rounds 1 and 2; the start set is the same for all
    assert len(strategies_less_random(scores)) == 6
    assert all(one.mean == 0 for one in qsa_less_sa(scores).values())


def test_a_difference_is_taken_seed_by_seed_and_not_mean_by_mean() -> None:
    rows = grid_rows({("SA", "float", 1): (0.5, 0.6, 0.7), ("QSA", "float", 1): (0.51, 0.62, 0.71)})
    (found,) = qsa_less_sa(arm_scores(rows, "object_dice")).values()
    assert found.mean == pytest.approx(0.04 / 3)
    assert found.spread == pytest.approx(0.0057735)


def test_seeds_that_split_the_same_images_need_a_larger_difference() -> None:
    # d = 0.01, 0.02, 0.03 as above, overlap 1/3: t = 0.02 / (0.01 sqrt(1/3 + 1/3)) = 2.4495; p = 1 - 2.4495 / sqrt 8
    # = 0.1340. And d = 0.020, 0.021, 0.022: t = 0.021 / (0.001 sqrt(2/3)) = 25.72, p = 1 - 25.72 / sqrt 663.5 = 0.0015
    wide = paired_difference({0: 0.71, 1: 0.72, 2: 0.73}, {0: 0.70, 1: 0.70, 2: 0.70}, 1 / 3)
    narrow = paired_difference({0: 0.720, 1: 0.721, 2: 0.722}, {0: 0.70, 1: 0.70, 2: 0.70}, 1 / 3)
    assert wide is not None
    assert narrow is not None
    assert wide.p == pytest.approx(0.1340, abs=5e-5)
    assert narrow.p == pytest.approx(0.00151, abs=5e-6)


def test_an_arms_overlap_is_what_it_was_scored_on_over_what_it_was_trained_on() -> None:
    (score,) = arm_scores([score_row("full", "all", "float", 1, None, 0, 0.8, 40)], "object_f1").values()
    assert score.overlap == 12 / 40


def test_holms_p_is_that_worked_by_hand() -> None:
    found = {
        name: Difference(0.7, 0.6, 0.1, 0.1, p, 3) for name, p in (("a", 0.04), ("b", 0.01), ("c", 0.03))
    }
    found["d"] = Difference(0.7, 0.6, 0.1, 0.0, None, 3)
    # 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to the one before
    raised = holm_corrected(found)
    assert {name: one.p for name, one in raised.items()} == {
        "a": pytest.approx(0.06),
        "b": pytest.approx(0.03),
        "c": pytest.approx(0.06),
        "d": None,
    }
    assert [one.verdict for one in raised.values()].count("above") == 1


def test_claims_seldom_say_anything_of_arms_that_do_not_differ() -> None:
    told = 0
    for draw in range(40):
        noise = random.Random(draw)
        rows = whole_run(lambda *_, noise=noise: 0.7 + noise.gauss(0, 0.01))
        told += claim_of(rows, "QSA is always at least SA").judgement != "not told apart"
        told += (
            claim_of(rows, "QSA with quantized networks beats SA with float ones").judgement
            != "not told apart"
        )
    # 80 claims at 5 % are 4; 9 or more would come up 2 times in 100
    assert told <= 8


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ((0.020, 0.021, 0.022), "holds"),
        ((-0.020, -0.021, -0.022), "does not hold"),
        ((0.020, -0.010, 0.001), "not told apart"),
        ((0.020, 0.020), "not told apart"),  # two seeds are too few
    ],
)
def test_qsa_at_least_sa_is_judged_by_the_differences(gain: tuple[float, ...], expected: Judgement) -> None:
    base = (0.60, 0.63, 0.61)[: len(gain)]
    above = tuple(score + step for score, step in zip(base, gain, strict=True))
    rows = grid_rows({("SA", "float", 1): base, ("QSA", "float", 1): above})
    assert claim_of(rows, "QSA is always at least SA").judgement == expected


def test_one_of_the_papers_arms_told_apart_below_refutes_always_and_another_arm_does_not() -> None:
    base = (0.60, 0.63, 0.61)
    up, down = tuple(score + 0.1 for score in base), (0.580, 0.609, 0.588)

    def judged(quantizer: str) -> Claim:
        cells = {
            ("SA", "float", 1): base,
            ("QSA", "float", 1): up,
            ("SA", quantizer, 1): base,
            ("QSA", quantizer, 1): down,
        }
        return claim_of(grid_rows(cells), "QSA is always at least SA")

    assert judged("inq-7").judgement == "does not hold"
    assert "QSA, inq-7, 1 network -0.0210" in judged("inq-7").evidence
    assert (
        judged("twn").judgement == "not told apart"
    )  # not looked at; +0.1 in every seed has no spread, so no p


@pytest.mark.parametrize(
    ("scores", "well", "poor"),
    [
        ((0.69, 0.725, 0.70), "holds", "does not hold"),  # 0.0083 below, within float's spread of 0.0153
        ((0.60, 0.629, 0.612), "does not hold", "holds"),  # 0.1 below, told apart
        ((0.72, 0.60, 0.71), "not told apart", "not told apart"),  # 0.037 below, but scattered
    ],
)
def test_a_quantizer_is_good_within_one_spread_of_float(
    scores: tuple[float, ...], well: Judgement, poor: Judgement
) -> None:
    base = tuple(0.7 + step for step in WIGGLE)
    rows = grid_rows({("QSA", "float", 1): base, ("QSA", "inq-5", 1): scores, ("QSA", "twn", 1): scores})
    assert claim_of(rows, "inq-5 does well").judgement == well
    assert claim_of(rows, "twn is poor").judgement == poor


def test_a_loss_within_one_spread_that_is_told_apart_is_said_to_be() -> None:
    base, less = tuple(0.7 + step for step in WIGGLE), (0.690, 0.7195, 0.6995)
    # -0.0100, -0.0105, -0.0105: within 0.0153, t = 0.01033 / (0.000289 sqrt(1/3 + 12/20)) = 37
    rows = grid_rows({("QSA", "float", 1): base, ("QSA", "inq-5", 1): less})
    found = claim_of(rows, "inq-5 does well")
    assert found.judgement == "holds"
    assert found.evidence.endswith("as good, yet told apart below")


def test_the_gain_is_that_of_the_papers_arm_and_the_largest_is_only_told() -> None:
    base = (0.60, 0.63, 0.61)
    up = (0.700, 0.731, 0.712)
    cells = {("SA", "float", 5): base, ("QSA", "inq-7", 5): base, ("QSA", "twn", 5): up}
    found = claim_of(grid_rows(cells), "QSA with quantized networks beats SA with float ones")
    assert found.judgement == "not told apart"
    assert "QSA, inq-7, 5 networks: 0.6133 against 0.6133: +0.0000" in found.evidence
    assert "not tested: +0.1010 (QSA, twn, 5 networks)" in found.evidence


def test_without_a_spread_a_quantizer_has_no_standing() -> None:
    found = paired_difference({0: 0.7}, {0: 0.7})
    assert found is not None
    assert standing(found, None) == "not told apart"


def test_what_brings_more_compares_qsa_alone_with_qnt_alone() -> None:
    cells = {
        ("SA", "float", 1): (0.60, 0.60, 0.60),
        ("QSA", "float", 1): (0.65, 0.651, 0.652),
        ("SA", "inq-7", 1): (0.61, 0.61, 0.61),
        ("QSA", "float", 5): (0.61, 0.61, 0.61),
        ("SA", "inq-7", 5): (0.65, 0.651, 0.652),
    }
    rows = grid_rows(cells)
    assert claim_of(rows, "with 1 network QSA brings more").judgement == "holds"
    assert claim_of(rows, "with 5 networks QNT brings more").judgement == "holds"
    swapped = grid_rows({(s, q, 6 - n): scores for (s, q, n), scores in cells.items()})
    assert claim_of(swapped, "with 1 network QSA brings more").judgement == "does not hold"


def test_memory_is_judged_by_whole_files_of_the_paper_sized_network() -> None:
    def memory(large: float, own: float) -> list[Row]:
        return [
            {"network": network, "model": "inq-5", "ratio": ratio, "entropy_ratio": entropy}
            for network, ratio, entropy in (("paper-sized", large, None), ("this run's", own, 5.0))
        ]

    name = "inq-5 takes 6.4 times less memory"
    # 3 % of 6.4 is 0.192
    found = claim_of([], name, "whole file", memory=memory(6.21, 4.49))
    assert found.judgement == "holds"
    assert "6.21 times; this run's compact one 4.49 times, entropy-coded 5.00 times" in found.evidence
    assert claim_of([], name, "whole file", memory=memory(6.20, 6.4)).judgement == "does not hold"


def on_arrays(model: str, sigma: float, scores: tuple[float, ...], step: str = "largest") -> list[Row]:
    """Rows of `segmentation_crossbars` on 4-bit arrays: two chips per repetition, 0.01 to either side of a score."""
    return [
        {
            "repeat": repeat,
            "model": model,
            "arithmetic": "crossbar",
            "device": "FeFET2",
            "sigma": sigma,
            "weight_bits": 4,
            "step": step,
            "chip": chip,
            "images": 4,
            "object_f1": score - 0.1,
            "object_dice": score + (0.01 if chip else -0.01),
        }
        for repeat, score in enumerate(scores)
        for chip in range(2)
    ]


def test_crossbar_aware_weights_are_compared_network_by_network_with_the_better_step() -> None:
    base = (0.60, 0.63, 0.61)
    rows = [
        *on_arrays("inq-7", 0.0, base),
        *on_arrays("inq-3-3", 0.0, base),
        *on_arrays("inq-3-3", 0.0, (0.700, 0.731, 0.712), step="by_error"),
        *on_arrays("inq-7", 0.1, base),
        *on_arrays("inq-3-3", 0.1, base),
    ]
    clear = claim_of([], "4-bit FeFET2, sigma 0: inq-3-3 beats inq-7", crossbars=rows)
    assert clear.judgement == "holds"
    assert "0.7143 against 0.6133: +0.1010" in clear.evidence
    assert "chip by chip +0.1000 to +0.1020; 3 pairs of networks" in clear.evidence
    same = claim_of([], "4-bit FeFET2, sigma 0.1: inq-3-3 beats inq-7", crossbars=rows)
    assert same.judgement == "not told apart"
    # Four chips of two networks are two networks.
    fewer = [row for row in rows if row["repeat"] < 2]
    told = claim_of([], "4-bit FeFET2, sigma 0: inq-3-3 beats inq-7", crossbars=fewer)
    assert told.judgement == "not told apart"


def test_the_quality_limit_is_read_off_the_whole_pools_networks() -> None:
    rows = whole_run(lambda part, *rest: 0.85 if part == "full" else 0.5)
    name = "whole pool, inq-5: at least 0.80 (this project's limit)"
    assert claim_of(rows, name).judgement == "holds"
    assert claim_of(rows, name, "object F1").judgement == "does not hold"  # 0.75


def test_claims_without_data_are_left_out() -> None:
    rows = [score_row("full", "all", "float", 1, None, seed, 0.8) for seed in range(3)]
    assert {one.claim for one in claims(rows)} == {"whole pool, float: at least 0.80 (this project's limit)"}
    assert claims([]) == []


def test_best_and_worst_images_are_those_of_the_whole_pools_float_network() -> None:
    rows = image_rows(whole_run(flat))
    found = extremes(rows, 2)
    assert [(one.kind, one.place, one.image) for one in found] == [
        ("best", 0, "image-0"),
        ("best", 1, "image-1"),
        ("worst", 0, "image-5"),
        ("worst", 1, "image-4"),
    ]
    assert {one.part for one in found} == {"full"}
    assert {one.repeat for one in found} == {0}
    assert set(found[0].dice) == {"float", "inq-5", "inq-7"}


def test_no_image_is_both_best_and_worst_and_empty_ones_are_neither() -> None:
    rows = image_rows([score_row("full", "all", "float", 1, None, 0, 0.8)], images=3)
    rows[0] = {**rows[0], "objects_truth": 0}
    assert [(one.kind, one.image) for one in extremes(rows, 4)] == [("best", "image-1"), ("worst", "image-2")]
    assert extremes(rows, 0) == []


def test_without_the_whole_pool_the_grids_best_networks_are_drawn() -> None:
    rows = image_rows([row for row in whole_run(flat) if row["part"] != "full"])
    (first, *_) = extremes(rows, 1)
    assert (first.part, first.strategy, first.networks) == ("grid", "QSA", 5)


def test_an_arm_is_told_by_all_that_it_depends_on() -> None:
    row = score_row("grid", "QSA", "inq-5", 5, 2, 1, 0.7)
    assert arm_scores([row], "object_f1") == {
        Arm("grid", "QSA", "inq-5", 5, 2): ArmScore({1: pytest.approx(0.6)}, 12 / 20)
    }
