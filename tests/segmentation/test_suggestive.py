"""Suggestive annotation's mathematics against cases worked by hand and against brute force."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from nvcim.errors import DataError
from nvcim.segmentation.suggestive import (
    SuggestionSettings,
    class_probability,
    cosine_similarity,
    coverage,
    greedy_representatives,
    image_uncertainty,
    mean_descriptor,
    pixel_uncertainty,
    suggest,
    without_outliers,
)


def _random_similarity(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Cosines of random non-negative descriptors, as the networks' pooled activations are."""
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.rand(columns, 5, generator=generator, dtype=torch.float64) ** 3
    return cosine_similarity(descriptors[:rows], descriptors)


def test_pixel_uncertainty_is_the_populations_deviation_over_networks() -> None:
    outputs = torch.tensor([[[0.2, 0.5]], [[0.6, 0.5]], [[1.0, 0.5]]])  # 3 networks, 1x2 pixels
    expected = math.sqrt((0.4**2 + 0.0 + 0.4**2) / 3)  # the mean of the first pixel is 0.6
    torch.testing.assert_close(pixel_uncertainty(outputs), torch.tensor([[expected, 0.0]]))
    assert float(image_uncertainty(outputs)) == pytest.approx(expected / 2)


def test_uncertainty_lies_between_0_and_a_half() -> None:
    outputs = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1)
    assert float(image_uncertainty(outputs)) == 0.5
    assert float(image_uncertainty(torch.ones(4, 2, 2))) == 0.0


def test_uncertainty_of_one_network_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 networks, given 1"):
        pixel_uncertainty(torch.ones(1, 2, 2))


def test_object_probability_leaves_the_contour_out_and_foreground_takes_it_in() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2]).reshape(3, 1, 1)
    assert float(class_probability(probabilities, "object")) == pytest.approx(0.3)
    assert float(class_probability(probabilities, "foreground")) == pytest.approx(0.5)
    two_classes = torch.tensor([0.25, 0.75]).reshape(2, 1, 1)
    assert class_probability(two_classes, "object") == class_probability(two_classes, "foreground")


def test_descriptor_is_the_mean_over_networks() -> None:
    assert mean_descriptor(torch.tensor([[1.0, 0.0], [3.0, 4.0]])).tolist() == [2.0, 2.0]


def test_cosine_of_known_angles_and_of_zeros() -> None:
    left = torch.tensor([[3.0, 0.0], [0.0, 0.0], [1e-30, 1e-30]])
    right = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    expected = [[math.sqrt(0.5), 0.0], [0.0, 0.0], [1.0, math.sqrt(0.5)]]
    torch.testing.assert_close(cosine_similarity(left, right), torch.tensor(expected, dtype=torch.float64))


def test_greedy_choice_worked_by_hand() -> None:
    similarity = torch.tensor(
        [
            [1.0, 0.8, 0.0, 0.1],  # sum 1.9
            [0.8, 1.0, 0.2, 0.1],  # sum 2.1: first; covered 0.8 1.0 0.2 0.1
            [0.0, 0.2, 1.0, 0.6],  # adds 0 + 0 + 0.8 + 0.5 = 1.3: second; the first row would add 0.2
        ]
    )
    chosen = greedy_representatives(similarity, 3)
    assert [row for row, _ in chosen] == [1, 2, 0]
    assert [gain for _, gain in chosen] == pytest.approx([2.1, 1.3, 0.2])
    assert coverage(similarity, [1, 2]) == pytest.approx(3.4)


def test_suggestions_count_all_of_the_pool_not_only_the_candidates() -> None:
    # Candidates a and b are alike in uncertainty; three certain images c, d, e look like b.
    names = ["a", "b", "c", "d", "e"]
    uncertainty = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    descriptors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.1, 1.0], [0.1, 1.0]])
    found = suggest(names, uncertainty, descriptors, SuggestionSettings(k=1, candidates=2))
    assert [suggestion.name for suggestion in found] == ["b"]
    assert found[0].represents == 5
    assert found[0].gain == pytest.approx(1 + 3 / math.sqrt(1.01))
    both = suggest(names, uncertainty, descriptors, SuggestionSettings(k=2, candidates=2))
    assert [(s.name, s.represents) for s in both] == [("b", 4), ("a", 1)]
    assert both[1].gain == pytest.approx(1.0)  # itself only: c, d and e are nearer to b


def test_only_the_most_uncertain_are_candidates() -> None:
    names = ["a", "b", "c"]
    descriptors = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # b stands for all best
    settings = SuggestionSettings(k=1, candidates=2)
    found = suggest(names, torch.tensor([0.3, 0.1, 0.2]), descriptors, settings)
    assert [suggestion.name for suggestion in found] == ["a"]
    assert suggest(names, None, descriptors, settings)[0].name == "b"  # no uncertainty: all are candidates


def test_uncertainty_rule_takes_the_most_uncertain_and_ties_go_by_name() -> None:
    settings = SuggestionSettings(rule="uncertainty", k=3)
    found = suggest(["d", "a", "c", "b"], torch.tensor([0.2, 0.2, 0.5, 0.1]), None, settings)
    assert [suggestion.name for suggestion in found] == ["c", "a", "d"]
    assert [suggestion.uncertainty for suggestion in found] == pytest.approx([0.5, 0.2, 0.2])


def test_random_rule_draws_by_seed_and_reaches_every_image() -> None:
    names = [f"{index:02d}" for index in range(20)]
    settings = SuggestionSettings(rule="random", k=5)

    def drawn(seed: int) -> list[str]:
        return [suggestion.name for suggestion in suggest(names, None, None, settings, seed)]

    assert drawn(1) == drawn(1)
    assert len(set(drawn(1))) == 5
    assert {name for seed in range(40) for name in drawn(seed)} == set(names)


@pytest.mark.parametrize("rule", ["suggestive", "uncertainty", "random"])
def test_suggestions_do_not_depend_on_the_pools_order(rule: str) -> None:
    generator = torch.Generator().manual_seed(3)
    names = [f"image {index}" for index in range(30)]
    uncertainty = torch.rand(30, generator=generator)
    descriptors = torch.rand(30, 6, generator=generator)
    uncertainty[4:9] = uncertainty[3]  # ties
    descriptors[10:14] = descriptors[9]
    settings = SuggestionSettings.model_validate({"rule": rule, "k": 6, "candidates": 12})
    expected = suggest(names, uncertainty, descriptors, settings, seed=5)
    for _ in range(10):
        order = torch.randperm(30, generator=generator)
        shuffled = [names[index] for index in order]
        found = suggest(shuffled, uncertainty[order], descriptors[order], settings, seed=5)
        assert [(s.name, s.represents) for s in found] == [(s.name, s.represents) for s in expected]


@pytest.mark.parametrize("seed", range(25))
def test_greedy_reaches_its_guarantee_against_brute_force(seed: int) -> None:
    similarity = _random_similarity(seed, rows=9, columns=14)
    for k in (1, 2, 4):
        found = coverage(similarity, [row for row, _ in greedy_representatives(similarity, k)])
        best = max(coverage(similarity, rows) for rows in itertools.combinations(range(9), k))
        assert (1 - 1 / math.e) * best <= found <= best + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_every_greedy_step_takes_the_greatest_gain_and_reports_it(seed: int) -> None:
    similarity = _random_similarity(100 + seed, rows=10, columns=25)
    chosen: list[int] = []
    for row, gain in greedy_representatives(similarity, 10):
        before = coverage(similarity, chosen)
        gains = [
            coverage(similarity, [*chosen, other]) - before for other in range(10) if other not in chosen
        ]
        assert gain == pytest.approx(max(gains), abs=1e-8)
        assert gain == pytest.approx(coverage(similarity, [*chosen, row]) - before, abs=1e-8)
        chosen.append(row)
    assert sorted(chosen) == list(range(10))


@pytest.mark.parametrize("seed", range(10))
def test_coverage_never_falls_and_gains_diminish(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.rand(8, 12, generator=generator) - 1  # cosines of any descriptors
    order = torch.randperm(8, generator=generator).tolist()
    values = [coverage(similarity, order[:count]) for count in range(9)]
    assert values[0] == 0.0
    assert values == sorted(values)
    gains = [gain for _, gain in greedy_representatives(similarity, 8)]
    assert gains == sorted(gains, reverse=True)


def test_ties_go_to_the_first_row() -> None:
    chosen = greedy_representatives(torch.ones(4, 6), 3)
    assert [row for row, _ in chosen] == [0, 1, 2]
    assert [gain for _, gain in chosen] == [6.0, 0.0, 0.0]


def test_descriptors_of_zeros_are_chosen_by_name() -> None:
    settings = SuggestionSettings(k=2)
    found = suggest(["b", "c", "a"], torch.tensor([0.1, 0.1, 0.1]), torch.zeros(3, 4), settings)
    assert [(s.name, s.gain) for s in found] == [("a", 0.0), ("b", 0.0)]


def test_one_image_represents_itself() -> None:
    found = suggest(["a"], torch.tensor([0.1]), torch.tensor([[1.0, 2.0]]), SuggestionSettings(k=1))
    assert (found[0].name, found[0].represents) == ("a", 1)
    assert found[0].gain == pytest.approx(1.0)


def test_more_candidates_than_images_means_all_of_them() -> None:
    names = ["a", "b"]
    found = suggest(names, torch.tensor([0.1, 0.2]), torch.eye(2), SuggestionSettings(k=2, candidates=500))
    assert sorted(s.name for s in found) == names


@pytest.mark.parametrize(
    ("names", "uncertainty", "descriptors", "rule", "message"),
    [
        ([], None, None, "random", "2 images cannot be suggested; 0 are not annotated yet"),
        (["a"], None, None, "random", "2 images cannot be suggested; 1 are not annotated yet"),
        (["a", "a", "b"], None, None, "random", "image 'a' is in the pool twice"),
        (["a", "b"], None, None, "uncertainty", "needs the uncertainty of every image"),
        (["a", "b"], torch.ones(2), None, "suggestive", "needs an image descriptor"),
        (["a", "b"], torch.ones(3), None, "uncertainty", "3 uncertainties given for 2 images"),
        (["a", "b"], torch.ones(2), torch.ones(1, 2), "suggestive", "1 descriptors given for 2 images"),
        (["a", "b"], torch.tensor([1.0, math.nan]), None, "uncertainty", "not all finite"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(
    names: list[str],
    uncertainty: torch.Tensor | None,
    descriptors: torch.Tensor | None,
    rule: str,
    message: str,
) -> None:
    settings = SuggestionSettings.model_validate({"rule": rule, "k": 2})
    with pytest.raises(DataError, match=message):
        suggest(names, uncertainty, descriptors, settings)


def test_more_suggestions_than_candidates_are_refused() -> None:
    with pytest.raises(ValidationError, match="k = 17 images cannot be chosen among candidates = 16"):
        SuggestionSettings(k=17)
    assert SuggestionSettings(rule="uncertainty", k=17).k == 17


def test_outliers_are_those_least_like_their_third_nearest() -> None:
    # Unit vectors in a plane: ten together, two (10 and 11) near each other only, one (12) alone.
    degrees = torch.tensor([*range(10), 60.0, 61.0, 150.0], dtype=torch.float64).deg2rad()
    similarity = torch.cos(degrees[:, None] - degrees)
    assert without_outliers(similarity, 0.0) == list(range(13))
    assert without_outliers(similarity, 0.15) == list(range(12))  # 1.95 of 13
    assert without_outliers(similarity, 0.16) == list(range(11))
    assert without_outliers(similarity, 0.24) == list(range(10))
    assert without_outliers(similarity, 0.5, keep=12) == list(range(12))
    assert without_outliers(similarity, 0.5, keep=20) == list(range(13))
    assert without_outliers(similarity[:2, :2], 0.5) == [0]
    assert without_outliers(similarity[:1, :1], 0.5) == [0]


def test_many_rows_are_chosen_from_as_all_at_once() -> None:
    similarity = torch.rand(700, 700, generator=torch.Generator().manual_seed(5)) - 0.2
    covered, chosen = torch.zeros(700), []
    for _ in range(4):
        gains = [float((row - covered).clamp(min=0).sum()) for row in similarity]
        chosen.append(gains.index(max(gains)))
        covered = torch.maximum(covered, similarity[chosen[-1]])
    assert [row for row, _ in greedy_representatives(similarity, 4)] == chosen


def test_outliers_stay_in_what_is_represented_and_matter_only_without_uncertainty() -> None:
    degrees = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 90]).deg2rad()
    descriptors = torch.stack([degrees.cos(), degrees.sin()], dim=1)
    names = [f"{index}" for index in range(10)]
    settings = SuggestionSettings(k=2, candidates=10, outliers=0.1)
    cold = suggest(names, None, descriptors, settings)
    assert "9" not in {suggestion.name for suggestion in cold}
    assert sum(suggestion.represents or 0 for suggestion in cold) == 10
    warm = suggest(names, torch.full((10,), 0.1), descriptors, settings)
    assert "9" in {suggestion.name for suggestion in warm}
