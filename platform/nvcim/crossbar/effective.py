"""The wires of an array folded into its cells, as one effective conductance matrix.

With linear cells the array is a linear map from driver voltages to sensed currents, so the wires can be folded
into the cells once, after programming: `currents = voltages @ effective_conductance(conductance, wires)`.
"""

import torch
from torch import Tensor

from nvcim.crossbar.dissection import exact_effective
from nvcim.crossbar.lumped_wires import fast_effective
from nvcim.crossbar.wires import Wires, check_conductance

# Cells solved at once: on a CPU what keeps the caches warm and the calls few, elsewhere a few GiB.
CHUNK_CELLS = {"exact": {"cpu": 1 << 14, "cuda": 1 << 22}, "fast": {"cpu": 1 << 18, "cuda": 1 << 25}}


def effective_conductance(conductance: Tensor, wires: Wires) -> Tensor:
    """The conductances that an array with ideal wires would need to give the same currents.

    Args:
        conductance: [..., rows, cols], siemens, float32 or float64, zero or positive.
        wires: the resistances and the method.

    Returns:
        [..., rows, cols], siemens, same dtype: `currents = voltages @ effective`. Differentiable with respect
        to `conductance` (once).

    Raises:
        ConfigError: a conductance that is negative or not finite, another dtype, or fewer than two dimensions.
    """
    check_conductance(conductance)
    if wires.ideal or conductance.numel() == 0:
        return conductance.clone()
    rows, cols = conductance.shape[-2:]
    flat = conductance.reshape(-1, rows, cols)
    return _Effective.apply(flat, wires).reshape(conductance.shape)  # type: ignore[no-any-return, no-untyped-call]


class _Effective(torch.autograd.Function):
    """Runs the method chunk by chunk; the backward pass repeats a chunk, so memory does not grow with tiles."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, flat: Tensor, wires: Wires) -> Tensor:
        ctx.save_for_backward(flat)
        ctx.wires = wires  # type: ignore[attr-defined]
        return torch.cat([_solve(part, wires) for part in torch.split(flat, _chunk(flat, wires))])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors  # type: ignore[attr-defined]
        wires: Wires = ctx.wires  # type: ignore[attr-defined]
        size = _chunk(flat, wires)
        parts: list[Tensor] = []
        for part, outer in zip(torch.split(flat, size), torch.split(gradient, size), strict=True):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                parts.extend(torch.autograd.grad(_solve(leaf, wires), leaf, outer))
        return torch.cat(parts), None


def _chunk(flat: Tensor, wires: Wires) -> int:
    """How many tiles of `flat` [tiles, rows, cols] to solve at once."""
    limits = CHUNK_CELLS[wires.method]
    return max(1, limits.get(flat.device.type, limits["cuda"]) // flat[0].numel())


def _solve(tiles: Tensor, wires: Wires) -> Tensor:
    """Effective conductance of [tiles, rows, cols], by the method that `wires` names."""
    method = exact_effective if wires.method == "exact" else fast_effective
    return _flip(method(_flip(tiles, wires), wires), wires)


def _flip(tiles: Tensor, wires: Wires) -> Tensor:
    """Turn the tiles so that row 0 is nearest to the sensed end and column 0 to the driven end, or back."""
    turned = [-1] if wires.drive == "right" else []
    if wires.sense != "top":
        turned.append(-2)
    return tiles.flip(turned)
