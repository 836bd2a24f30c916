"""Uniform levels, a step apart: symmetric about zero, or affine with a zero point; straight-through gradients.

Symmetric: w_q = s clamp(round(w / s), -Q, Q), Q = 2^(bits-1) - 1, s = max|w| / Q.
Affine (1712.05877): w_q = s (clamp(round(w / s) + z, 0, 2^bits - 1) - z), s = (max - min) / (2^bits - 1) over
the range widened to hold zero, z = round(-min / s); zero itself is always a level.
One step for every output channel or one for the layer.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nvcim.quantization.base import QuantizedWeight, Quantizer, QuantizerSettings, Side, wide
from nvcim.quantization.straight_through import straight_through

Granularity = Literal["channel", "layer"]


class UniformSettings(QuantizerSettings):
    """Settings of uniform quantization; 2 to 8 bits.

    Symmetric is the default: its levels are signed integers times a step, which a pair of crossbar columns or
    an int8 kernel takes without a correction for the zero point. Affine uses all 2^bits codes and fits
    lopsided channels. A reference without a paper of its own: no layer stays float.
    """

    kind: Literal["uniform"] = "uniform"
    bits: int = Field(default=5, ge=2, le=8)
    granularity: Granularity = "channel"
    scheme: Literal["symmetric", "affine"] = "symmetric"


def _extremes(weight: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry with zero counted in, [out] or [1]."""
    rows = wide(weight.detach()).reshape(weight.shape[0] if granularity == "channel" else 1, -1)
    return rows.amin(dim=1).clamp(max=0.0), rows.amax(dim=1).clamp(min=0.0)


def symmetric_step(weight: Tensor, bits: int, granularity: Granularity) -> Tensor:
    """Return the step between symmetric levels, [out] or [1]; a channel of zeros gets step 1."""
    low, high = _extremes(weight, granularity)
    step = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, step, torch.ones_like(step))


def affine_step(weight: Tensor, bits: int, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Return step and zero point (the code of zero), each [out] or [1]; a channel of zeros gets step 1."""
    low, high = _extremes(weight, granularity)
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return step, torch.round(-low / step)


def _beside(weight: Tensor, values: Tensor) -> Tensor:
    """Shape [out] or [1] so that it broadcasts over a weight [out, ...]."""
    return values.view(-1, *[1] * (weight.dim() - 1))


class SymmetricWeight(QuantizedWeight):
    """Parametrization of one weight; stateless, the step follows the trained weight."""

    kind = "uniform"

    def __init__(self, settings: UniformSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, original: Tensor) -> Tensor:
        """Return the quantized weight, same shape."""
        step = _beside(original, symmetric_step(original, self.settings.bits, self.settings.granularity))
        top = 2 ** (self.settings.bits - 1) - 1
        whole = torch.clamp(torch.round(wide(original.detach()) / step), -top, top)
        held = whole * step + 0.0  # + 0.0: no negative zero
        return straight_through(original, held.to(original.dtype))

    def side(self, original: Tensor) -> Side:
        """Return the steps, [out] or [1]."""
        return {"step": symmetric_step(original, self.settings.bits, self.settings.granularity)}


class AffineWeight(QuantizedWeight):
    """Parametrization of one weight; stateless, step and zero point follow the trained weight."""

    kind = "affine"

    def __init__(self, settings: UniformSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, original: Tensor) -> Tensor:
        """Return the quantized weight, same shape."""
        step, zero = affine_step(original, self.settings.bits, self.settings.granularity)
        step, zero = _beside(original, step), _beside(original, zero)
        code = torch.clamp(torch.round(wide(original.detach()) / step) + zero, 0, 2**self.settings.bits - 1)
        return straight_through(original, ((code - zero) * step).to(original.dtype))

    def side(self, original: Tensor) -> Side:
        """Return steps and zero points, each [out] or [1]."""
        step, zero = affine_step(original, self.settings.bits, self.settings.granularity)
        return {"step": step, "zero": zero.to(torch.uint8)}


class Uniform(Quantizer):
    """Uniform levels, quantized throughout training; called `uniform-4` or, with a zero point, `affine-4`."""

    settings: UniformSettings

    def __init__(self, settings: UniformSettings | None = None) -> None:
        self.settings = settings or UniformSettings()

    @property
    def kind(self) -> str:
        """`uniform` for symmetric levels, `affine` for those with a zero point."""
        return "affine" if self.settings.scheme == "affine" else "uniform"

    def _parametrization(self, weight: Tensor) -> QuantizedWeight:
        if self.settings.scheme == "affine":
            return AffineWeight(self.settings)
        return SymmetricWeight(self.settings)

    def levels_from(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return the levels, ascending, [out_features or 1, 2^bits - 1 or, affine, 2^bits]."""
        step = side["step"][:, None]
        if self.settings.scheme == "affine":
            codes = torch.arange(2**self.settings.bits, device=step.device)
            return (codes - side["zero"].to(step)[:, None]) * step
        top = 2 ** (self.settings.bits - 1) - 1
        return torch.arange(-top, top + 1, device=step.device) * step
