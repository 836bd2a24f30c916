"""Reads of a crossbar in a backward pass: converters, quantisation and programming count as the identity.

    y = read(x)        dL/dx = dL/dy @ W^T        dL/dW = x^T @ dL/dy

W is what the cells hold, without read noise, and inputs and weights that a converter or a cell clips keep their
gradient (Bengio et al., arXiv:1308.3432). Cells solved as a circuit get the gradient of the same cells with Ohm's law.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvcim.crossbar import Crossbar

Reader = Callable[[Crossbar, Tensor], Tensor]
"""How a layer reads: (crossbar, x [*devices, vectors, in]) -> [*devices, vectors, out]."""


def read_straight_through(crossbar: Crossbar, x: Tensor) -> Tensor:
    """`crossbar.matmul(x)`, with a gradient to x.

    Args:
        crossbar: written already.
        x: as `Crossbar.matmul`.

    Raises:
        ConfigError: as `Crossbar.matmul`.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return crossbar.matmul(x)
    return _Read.apply(x, None, crossbar)  # type: ignore[no-any-return, no-untyped-call]


def read_trained(crossbar: Crossbar, x: Tensor, master: Tensor) -> Tensor:
    """`crossbar.matmul(x)`, with gradients to x and to the float weights that the cells were written from.

    Args:
        crossbar: written already, from `master` or an earlier state of it.
        x: as `Crossbar.matmul`.
        master: of the crossbar's shape.

    Raises:
        ConfigError: as `Crossbar.matmul`.
    """
    return _Read.apply(x, master, crossbar)  # type: ignore[no-any-return, no-untyped-call]


def held_weight(crossbar: Crossbar) -> Callable[[], Tensor]:
    """A function that gives the weight which the cells hold now, also after they are rewritten or age.

    A crossbar replaces its tensors and never changes them, so a shallow copy keeps them at no cost.
    """
    return copy.copy(crossbar).read_weight


def summed_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: sum over the dimensions that `shape` lacks or holds as 1."""
    extra = gradient.dim() - len(shape)
    if extra:
        gradient = gradient.sum(dim=tuple(range(extra)))
    stretched = [i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1]
    return gradient.sum(dim=stretched, keepdim=True) if stretched else gradient


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, master: Tensor | None, crossbar: Crossbar) -> Tensor:
        """Read, and remember what was written."""
        ctx.save_for_backward(x if master is not None and master.requires_grad else None)
        ctx.held, ctx.shape = held_weight(crossbar), x.shape
        ctx.dtypes = x.dtype, None if master is None else master.dtype
        return crossbar.matmul(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The formulas above."""
        (x,), to_x, to_master = ctx.saved_tensors, None, None
        gradient = gradients[0].to(torch.promote_types(gradients[0].dtype, torch.float32))
        if ctx.needs_input_grad[0]:
            held = ctx.held().to(gradient.dtype)
            to_x = summed_to(gradient @ held.mT, ctx.shape).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            to_master = (x.to(gradient.dtype).mT @ gradient).to(ctx.dtypes[1])
        return to_x, to_master, None
