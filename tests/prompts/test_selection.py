"""Representative selection: k clusters, and of each the member nearest its centre by cosine."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from nvcim.errors import DataError
from nvcim.prompts.selection import SelectionSettings, select_representatives


def clusters(sizes: tuple[int, ...], spread: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around orthogonal directions, and whose each is."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    points = torch.eye(16)[owner] + spread * torch.randn(len(owner), 16, generator=generator)
    return points * torch.rand(len(owner), 1, generator=generator).add(0.5), owner


def test_each_cluster_gives_one_representative_largest_first() -> None:
    points, owner = clusters((5, 9, 7))
    found = select_representatives(points, 3, seed=0)
    assert [int(owner[i]) for i in found.representatives] == [1, 2, 0]
    for i, near in zip(found.representatives, found.neighbours, strict=True):
        assert sorted(near) == torch.nonzero(owner == owner[i]).flatten().tolist()
        assert near[0] == i


def test_the_representative_is_the_member_nearest_the_centre_by_cosine() -> None:
    points, _ = clusters((6, 8), spread=0.3)
    found = select_representatives(points, 2, seed=0)
    unit = functional.normalize(points.double(), dim=1)
    for i, similarity, near in zip(found.representatives, found.similarity, found.neighbours, strict=True):
        members = torch.tensor(sorted(near))
        centre = unit[members].mean(0)
        cosine = functional.cosine_similarity(unit[members], centre[None])
        assert int(members[cosine.argmax()]) == i
        assert similarity == pytest.approx(float(cosine.max()), rel=5e-6)
        towards = unit[list(near)] @ unit[i]
        assert torch.equal(towards, towards.sort(descending=True).values)


def test_only_the_direction_of_an_embedding_counts() -> None:
    points, _ = clusters((4, 6))
    scaled = points * torch.linspace(0.1, 20, len(points))[:, None]
    assert select_representatives(points, 2, 0).neighbours == select_representatives(scaled, 2, 0).neighbours


def test_more_clusters_than_samples_select_every_sample() -> None:
    points, _ = clusters((1, 1, 1))
    found = select_representatives(points, 8, seed=0)
    assert sorted(found.representatives) == [0, 1, 2]
    assert all(near == (i,) for i, near in zip(found.representatives, found.neighbours, strict=True))


@pytest.mark.parametrize("jitter", [0.0, 1e-15, 1e-9])
def test_samples_that_coincide_make_fewer_clusters(jitter: float) -> None:
    base = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64).repeat_interleave(5, 0)
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = select_representatives(base + jitter * noise, 4, seed=0)
    assert {i // 5 for i in found.representatives} == {0, 1}
    assert sorted(i for near in found.neighbours for i in near) == list(range(10))
    if jitter < 1e-9:
        assert len(found.representatives) == 2


def test_embeddings_of_nothing_but_zeros_are_one_cluster() -> None:
    found = select_representatives(torch.zeros(4, 8), 3, seed=0)
    assert len(found.representatives) == 1


def test_one_sample_represents_itself() -> None:
    assert select_representatives(torch.ones(1, 4), 3, seed=0).representatives == (0,)


def test_selection_is_reproducible() -> None:
    points = torch.randn(25, 32, generator=torch.Generator().manual_seed(1))
    assert select_representatives(points, 4, 9) == select_representatives(points, 4, 9)


def test_an_empty_buffer_is_refused() -> None:
    with pytest.raises(DataError, match="data buffer is empty"):
        select_representatives(torch.zeros(0, 4), 2, 0)


def test_no_clusters_are_refused() -> None:
    with pytest.raises(DataError, match="k is 0"):
        select_representatives(torch.ones(2, 4), 0, 0)


@pytest.mark.parametrize(
    ("ratio", "samples", "k"), [(0.12, 25, 3), (0.28, 25, 7), (0.1, 25, 3), (0.01, 25, 1), (1, 6, 6)]
)
def test_a_ratio_gives_a_share_of_the_buffer_rounded_up(ratio: float, samples: int, k: int) -> None:
    points = torch.randn(samples, 8, generator=torch.Generator().manual_seed(2))
    found = select_representatives(points, SelectionSettings(rule="ratio", ratio=ratio), 0)
    assert (found.k, found.rule, found.scores) == (k, "ratio", {})


@pytest.mark.parametrize("sizes", [(9, 7), (8, 9, 8), (6, 7, 6, 6), (5, 5, 5, 5, 5)])
def test_silhouettes_find_the_number_of_domains(sizes: tuple[int, ...]) -> None:
    points, owner = clusters(sizes)
    found = select_representatives(points, SelectionSettings(rule="silhouette"), 0)
    assert sorted(int(owner[i]) for i in found.representatives) == list(range(len(sizes)))
    assert sorted(found.scores) == list(range(2, math.isqrt(len(points)) + 1))
    assert max(found.scores, key=lambda k: found.scores[k]) == found.k == len(sizes)


def test_a_silhouette_is_the_mean_over_samples_of_how_much_nearer_the_own_cluster_is() -> None:
    angles = torch.tensor([0.0, 20.0, 90.0, 100.0, 95.0]).deg2rad()
    found = select_representatives(
        torch.stack([angles.cos(), angles.sin()], dim=1), SelectionSettings(rule="silhouette"), 0
    )
    # by hand: distances 1 - cos of the angle between; clusters {0, 20} and {90, 100, 95} degrees
    degrees, groups = [0, 20, 90, 100, 95], [0, 0, 1, 1, 1]
    each = []
    for i, own in enumerate(groups):
        far = {
            group: [
                1 - math.cos(math.radians(degrees[i] - degrees[j]))
                for j in range(5)
                if j != i and groups[j] == group
            ]
            for group in (0, 1)
        }
        inside, outside = (sum(far[g]) / len(far[g]) for g in (own, 1 - own))
        each.append((outside - inside) / max(inside, outside))
    assert found.scores == {2: pytest.approx(sum(each) / 5, abs=1e-5)}


def test_one_silhouette_to_try_is_still_logged_and_the_largest_k_holds() -> None:
    points, _ = clusters((5, 5, 5, 5))
    found = select_representatives(points, SelectionSettings(rule="silhouette", largest=2), 0)
    assert list(found.scores) == [2]
    assert select_representatives(points, SelectionSettings(rule="silhouette", largest=1), 0).k == 1
    assert select_representatives(points, SelectionSettings(k=4, largest=3), 0).k == 3


@pytest.mark.parametrize(("samples", "k"), [(1, 1), (2, 2), (3, 2)])
def test_too_few_samples_to_compare_silhouettes_make_at_most_two_clusters(samples: int, k: int) -> None:
    found = select_representatives(torch.eye(4)[:samples], SelectionSettings(rule="silhouette"), 0)
    assert (found.k, found.scores) == (k, {})


@pytest.mark.parametrize("rule", ["fixed", "ratio", "silhouette"])
def test_identical_samples_are_one_cluster_by_every_rule(rule: str) -> None:
    settings = SelectionSettings.model_validate({"rule": rule, "ratio": 0.5})
    found = select_representatives(torch.ones(9, 4), settings, 0)
    assert found.representatives == (0,)
    assert found.neighbours == (tuple(range(9)),)


def test_the_log_has_a_row_per_representative_with_the_scores_of_its_choice() -> None:
    points, _ = clusters((4, 8, 6))
    found = select_representatives(points, SelectionSettings(rule="silhouette"), 0)
    rows = found.log_rows()
    assert [row["index"] for row in rows] == list(found.representatives)
    assert [row["cluster_size"] for row in rows] == [8, 6, 4]
    assert [row["cosine"] for row in rows] == list(found.similarity)
    assert {(row["buffer"], row["rule"], row["k"], row["silhouette"]) for row in rows} == {
        (18, "silhouette", 3, found.scores[3])
    }
    fixed = select_representatives(points, 2, 0).log_rows()
    assert [(row["rule"], row["k"], row["silhouette"]) for row in fixed] == [("fixed", 2, None)] * 2


def test_a_number_is_a_fixed_k() -> None:
    points = torch.randn(25, 8, generator=torch.Generator().manual_seed(3))
    assert select_representatives(points, 4, 1) == select_representatives(points, SelectionSettings(k=4), 1)


def test_an_embedding_that_is_not_finite_is_named() -> None:
    points = torch.ones(5, 3)
    points[3, 1] = float("nan")
    with pytest.raises(DataError, match="embedding of sample 3 is not finite"):
        select_representatives(points, 2, 0)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"ratio": 0}, {"ratio": 1.5}, {"rule": "elbow"}, {"largest": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SelectionSettings.model_validate(wrong)
