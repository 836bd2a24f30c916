"""When two tensors are the same up to the rounding of float32 sums, which differs between processors."""

import math

import torch
from torch import Tensor


def close(found: Tensor, expected: Tensor, share: float = 2e-6) -> bool:
    """Whether no element is further from the expected one than a share of the largest expected magnitude.

    A sum is as inexact as what it adds up, so that one which cancels to nearly nothing has no relative accuracy of its
    own. The default is about thirty roundings of float32. Nothing is close to what is not finite.
    """
    assert found.shape == expected.shape, f"{tuple(found.shape)} is compared with {tuple(expected.shape)}"
    largest = float(expected.detach().abs().max())
    return math.isfinite(largest) and torch.allclose(found, expected, rtol=0, atol=share * largest)
