"""Rounding that gradients pass through unchanged (straight-through estimator, 1308.3432)."""

from typing import Any

import torch
from torch import Tensor


class _Replace(torch.autograd.Function):
    """Forward: `quantized`, bit for bit. Backward: the gradient goes to `source` as it comes."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(source: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` with the gradient of `source`; both of one shape.

    Unlike `source + (quantized - source).detach()` it is `quantized` to the last bit.
    """
    replaced: Tensor = _Replace.apply(source, quantized.detach())  # type: ignore[no-untyped-call]
    return replaced


def quantize_unit(values: Tensor, bits: int) -> Tensor:
    """DoReFa's quantize_k (1606.06160): round(n x) / n with n = 2^bits - 1 and the gradient of x.

    values: any shape, 0..1; returns the same shape.
    """
    # Divided by a tensor: CUDA turns a division by a number into a product with its reciprocal, an ulp off.
    top = torch.full((), 2**bits - 1, dtype=values.dtype, device=values.device)
    return straight_through(values, torch.round(values.detach() * top) / top)
