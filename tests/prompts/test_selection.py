"""Representative selection: k clusters, and of each the member nearest its centre by cosine."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nvcim.errors import DataError
from nvcim.prompts.selection import select_representatives


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
        assert similarity == pytest.approx(float(cosine.max()), abs=1e-6)
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
