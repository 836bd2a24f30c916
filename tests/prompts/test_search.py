"""Scaled search: one inner product with a prepared query is the weighted sum over all scales."""

import math
import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nvcim.errors import DataError
from nvcim.prompts.search import MIPS, SCALED_SEARCH, SearchSettings, blend, pooled, prepared_query


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


def looped_score(
    query: Tensor, stored: Tensor, scales: Mapping[int, float], settings: SearchSettings
) -> float:
    """Element by element, along either axis, divided by the pooled elements or not. query, stored: [n, code]."""
    if settings.axis == "features":
        query, stored = query.T, stored.T
    total = 0.0
    for window, weight in scales.items():
        own, elements = 0.0, 0
        for start in range(0, query.shape[0], window):
            for column in range(query.shape[1]):
                one = (
                    sum(float(query[i, column]) for i in range(start, min(start + window, len(query))))
                    / window
                )
                other = (
                    sum(float(stored[i, column]) for i in range(start, min(start + window, len(query))))
                    / window
                )
                own += one * other
                elements += 1
        total += weight * (own / elements if settings.divisor == "elements" else own)
    return total


@pytest.mark.parametrize("divisor", ["none", "elements"])
@pytest.mark.parametrize("axis", ["tokens", "features"])
@pytest.mark.parametrize(("n", "code"), [(5, 6), (4, 7), (1, 3)])
def test_either_axis_and_divisor_give_the_looped_sum(n: int, code: int, axis: str, divisor: str) -> None:
    settings = SearchSettings.model_validate({"axis": axis, "divisor": divisor})
    generator = torch.Generator().manual_seed(n)
    queries = torch.randn(2, n, code, generator=generator, dtype=torch.float64)
    stored = torch.randn(3, n, code, generator=generator, dtype=torch.float64)
    scores = prepared_query(queries, SCALED_SEARCH, settings) @ stored.flatten(1).T
    for i, query in enumerate(queries):
        for j, one in enumerate(stored):
            expected = looped_score(query, one, SCALED_SEARCH, settings)
            assert float(scores[i, j]) == pytest.approx(expected, abs=1e-10)


def test_a_blend_weighs_the_best_by_softmax() -> None:
    scores = torch.tensor([[4.0, 1.0, 2.0, -torch.inf], [-1.0, -2.0, -4.0, -torch.inf]])
    weights = blend(scores, k=2, temperature=0.5)
    # Largest |score| is 4 in both: differences of 2 and 1 are 1/2 and 1/4, over the temperature 1 and 1/2.
    first, second = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.5))
    expected = [[first, 0.0, 1 - first, 0.0], [second, 1 - second, 0.0, 0.0]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_a_blend_of_one_is_the_best_alone_and_does_not_know_the_scores_unit() -> None:
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend(scores, 1, 0.1), functional.one_hot(scores.argmax(1), 9).float())
    torch.testing.assert_close(blend(1000 * scores, 4, 0.1), blend(scores, 4, 0.1))
    assert torch.equal(blend(torch.zeros(1, 2), 5, 0.1), torch.full((1, 2), 0.5))


def test_free_places_get_no_weight_even_where_fewer_than_k_are_stored() -> None:
    weights = blend(torch.tensor([[-torch.inf, 2.0, -torch.inf]]), k=3, temperature=1.0)
    assert weights.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("scores", "k", "temperature", "message"),
    [
        (torch.zeros(1, 2), 0, 1.0, "k is 0"),
        (torch.zeros(1, 2), 1, 0.0, "temperature is 0.0, it must be above 0"),
        (torch.full((1, 2), -torch.inf), 1, 1.0, "no place of the memory holds a token set"),
    ],
)
def test_blends_of_nothing_are_refused(scores: Tensor, k: int, temperature: float, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        blend(scores, k, temperature)
