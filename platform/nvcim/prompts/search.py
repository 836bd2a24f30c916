"""Scaled search: which stored token set suits a query, by pooled inner products at several scales.

    score_j = sum over L of w_L <P_L(E), P_L(S_j)>,   L = 1, 2, 4,   w = 1, 0.8, 0.6      (NVCiM-PT)

P_L averages over windows of L tokens, stride L. It is linear, so the sum is one inner product with a prepared query,

    score_j = < sum over L of w_L P_L' P_L E, S_j >,

and all scales and all stored sets cost a single matrix product on the array, each set being stored once. The paper
leaves open which axis is pooled and whether a scale's product is divided by its number of elements: `SearchSettings`.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from nvcim.config import Settings
from nvcim.errors import DataError

SCALED_SEARCH: Mapping[int, float] = {1: 1.0, 2: 0.8, 4: 0.6}
MIPS: Mapping[int, float] = {1: 1.0}
"""Plain maximum inner product search: the same without pooling."""

Axis = Literal["tokens", "features"]
_DIMENSION: Mapping[Axis, int] = {"tokens": 1, "features": 2}


class SearchSettings(Settings):
    """What the paper does not say about its pooled inner products."""

    axis: Axis = Field("tokens", description="windows run over a set's tokens, or over each token's features")
    divisor: Literal["none", "elements"] = Field(
        "none", description="what a scale's inner product is divided by: nothing, or its pooled elements"
    )


def prepared_query(
    query: Tensor, scales: Mapping[int, float], settings: SearchSettings | None = None
) -> Tensor:
    """The vector whose inner product with a stored set is the scaled score.

    Args:
        query: encoded queries [batch, n, code].
        scales: window length -> weight.
        settings: axis and divisor; left out, the defaults.

    Returns:
        [batch, n * code].
    """
    settings = settings or SearchSettings()
    axis = settings.axis
    total = query * 0.0
    for window, weight in scales.items():
        share = weight if settings.divisor == "none" else weight / _pooled_elements(query, window, axis)
        total = total + share * _pooled_back(query, window, axis)
    return total.flatten(1)


def pooled(x: Tensor, window: int, axis: Axis = "tokens") -> Tensor:
    """Average over windows of tokens: [batch, n, code] -> [batch, ceil(n / window), code]; a last short window counts
    as filled up with zeros. Over windows of features likewise: -> [batch, n, ceil(code / window)]."""
    turned = x.movedim(_DIMENSION[axis], 1)
    filled = functional.pad(turned, (0, 0, 0, -turned.shape[1] % window))
    means = filled.reshape(len(turned), -1, window, turned.shape[2]).mean(2)
    return means.movedim(1, _DIMENSION[axis])


def blend(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Weights of the k best stored sets of each query: a softmax over their scores.

    Args:
        scores: [batch, sets], as `PromptMemory.search` gives them; -inf marks a place that holds nothing.
        k: sets to blend; of fewer, all.
        temperature: in units of the query's largest |score|, so that it does not depend on the scores' units.

    Returns:
        [batch, sets], each row adding up to 1, 0 beyond the k best.

    Raises:
        DataError: k below 1, a temperature that is not positive, or a query for which no place holds anything.
    """
    if k < 1:
        raise DataError(f"blend: k is {k}, at least 1 is needed")
    if not temperature > 0:
        raise DataError(f"blend: temperature is {temperature}, it must be above 0")
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    if bool((best.values[:, 0] == -torch.inf).any()):
        raise DataError("blend: no place of the memory holds a token set")
    stored = torch.where(scores == -torch.inf, 0.0, scores)
    unit = stored.abs().amax(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    shares = ((best.values - best.values[:, :1]) / unit / temperature).softmax(1)
    return torch.zeros_like(scores).scatter(1, best.indices, shares)


def _pooled_back(x: Tensor, window: int, axis: Axis) -> Tensor:
    """P' P x: every element replaced by a `window`-th of its window's mean."""
    dimension = _DIMENSION[axis]
    means = pooled(x, window, axis).repeat_interleave(window, dim=dimension)
    return means.narrow(dimension, 0, x.shape[dimension]) / window


def _pooled_elements(x: Tensor, window: int, axis: Axis) -> int:
    """Elements of one set pooled: what its inner product sums over."""
    _, n, code = x.shape
    return -(-n // window) * code if axis == "tokens" else n * -(-code // window)
