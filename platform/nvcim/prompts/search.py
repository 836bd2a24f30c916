"""Scaled search: which stored token set suits a query, by pooled inner products at several scales.

    score_j = sum over L of w_L <P_L(E), P_L(S_j)>,   L = 1, 2, 4,   w = 1, 0.8, 0.6      (NVCiM-PT)

P_L averages over windows of L tokens, stride L. It is linear, so the sum is one inner product with a prepared query,

    score_j = < sum over L of w_L P_L' P_L E, S_j >,

and all scales and all stored sets cost a single matrix product on the array, each set being stored once.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

SCALED_SEARCH: Mapping[int, float] = {1: 1.0, 2: 0.8, 4: 0.6}
MIPS: Mapping[int, float] = {1: 1.0}
"""Plain maximum inner product search: the same without pooling."""


def prepared_query(query: Tensor, scales: Mapping[int, float]) -> Tensor:
    """The vector whose inner product with a stored set is the scaled score.

    Args:
        query: encoded queries [batch, n, code].
        scales: window length -> weight.

    Returns:
        [batch, n * code].
    """
    total = sum((weight * _pooled_back(query, window) for window, weight in scales.items()), query * 0.0)
    return total.flatten(1)


def pooled(x: Tensor, window: int) -> Tensor:
    """Average over windows of tokens: [batch, n, code] -> [batch, ceil(n / window), code]; a last short window counts
    as filled up with zeros."""
    length = x.shape[1]
    filled = functional.pad(x, (0, 0, 0, -length % window))
    return filled.reshape(x.shape[0], -1, window, x.shape[2]).mean(2)


def _pooled_back(x: Tensor, window: int) -> Tensor:
    """P' P x: every token replaced by a `window`-th of its window's mean."""
    return pooled(x, window).repeat_interleave(window, dim=1)[:, : x.shape[1]] / window
