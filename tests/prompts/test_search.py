"""Scaled search: one inner product with a prepared query is the weighted sum over all scales."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from nvcim.prompts.search import MIPS, SCALED_SEARCH, pooled, prepared_query


def explicit_score(query: Tensor, stored: Tensor, scales: Mapping[int, float]) -> float:
    """The sum as the paper writes it, with loops. query, stored: [n, code]."""
    total = 0.0
    for window, weight in scales.items():
        for start in range(0, len(query), window):
            stretch = slice(start, start + window)
            one = query[stretch].sum(0) / window
            other = stored[stretch].sum(0) / window
            total += weight * float(one @ other)
    return total


@pytest.mark.parametrize("scales", [SCALED_SEARCH, MIPS, {3: 1.0}])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 7, 8])
def test_the_prepared_query_gives_the_explicit_sum(n: int, scales: Mapping[int, float]) -> None:
    generator = torch.Generator().manual_seed(n)
    queries = torch.randn(3, n, 6, generator=generator, dtype=torch.float64)
    stored = torch.randn(4, n, 6, generator=generator, dtype=torch.float64)
    scores = prepared_query(queries, scales) @ stored.flatten(1).T
    for i, query in enumerate(queries):
        for j, one in enumerate(stored):
            assert float(scores[i, j]) == pytest.approx(explicit_score(query, one, scales), abs=1e-10)


def test_the_papers_scales_and_weights() -> None:
    assert dict(SCALED_SEARCH) == {1: 1.0, 2: 0.8, 4: 0.6}
    assert dict(MIPS) == {1: 1.0}


def test_plain_search_is_the_inner_product() -> None:
    query = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prepared_query(query, MIPS), query.flatten(1))


def test_a_short_last_window_is_filled_with_zeros() -> None:
    x = torch.tensor([[[2.0], [4.0], [6.0]]])
    assert pooled(x, 2).flatten().tolist() == [3.0, 3.0]
    assert pooled(x, 4).flatten().tolist() == [3.0]


def test_pooled_scales_forgive_the_order_of_neighbouring_tokens() -> None:
    """What the scales are for: swapped tokens still match at scale 2, and not at scale 1."""
    stored = torch.eye(4)[None]
    swapped = stored[:, [1, 0, 3, 2]]
    assert float(prepared_query(swapped, MIPS) @ stored.flatten()) == 0
    assert float(prepared_query(swapped, SCALED_SEARCH) @ stored.flatten()) > 0
