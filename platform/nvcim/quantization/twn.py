"""Ternary weight networks (TWN, Li & Liu, 1605.04711): {-a, 0, +a} with one scale a layer.

D = 0.7 E|W|, a = mean of |w| over |w| > D, w_q = a sgn(w) where |w| > D and 0 elsewhere. For the entries it
keeps, a is the scale with the least ||W - a T||^2; D is the paper's rule of thumb for the best choice of
entries, not the exact one. The gradient passes straight through to the float weights.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nvcim.quantization.base import QuantizedWeight, Quantizer, QuantizerSettings, Side, wide
from nvcim.quantization.straight_through import straight_through

THRESHOLD = 0.7
"""Of E|W|: the paper's (1605.04711), between the optima of uniform (2/3) and normal (0.75) weights."""


class TWNSettings(QuantizerSettings):
    """TWN has nothing to choose but float layers; the official code (caffe-twns) ternarizes every layer."""

    kind: Literal["twn"] = "twn"
    bits: Literal[2] = 2


def ternary_codes(weight: Tensor) -> Tensor:
    """Return sgn(w) where |w| > 0.7 E|W| and 0 elsewhere; any shape."""
    magnitude = weight.abs()
    return torch.sign(weight) * (magnitude > THRESHOLD * magnitude.mean())


def ternary_scale(weight: Tensor) -> Tensor:
    """Return the mean of |w| over the entries above the threshold, [1]; 0 for a weight of zeros."""
    magnitude = weight.abs()
    kept = magnitude > THRESHOLD * magnitude.mean()
    return ((magnitude * kept).sum() / kept.sum().clamp(min=1)).view(1)


class TWNWeight(QuantizedWeight):
    """Parametrization of one weight; stateless, threshold and scale follow the trained weight."""

    kind = "twn"

    def forward(self, original: Tensor) -> Tensor:
        """Return the ternary weight, same shape."""
        latent = wide(original.detach())
        held = ternary_codes(latent) * ternary_scale(latent) + 0.0  # + 0.0: no negative zero
        return straight_through(original, held.to(original.dtype))

    def side(self, original: Tensor) -> Side:
        """Return the scale, [1]."""
        return {"scale": ternary_scale(wide(original))}


class TWN(Quantizer):
    """TWN over the weighted layers of a model."""

    settings: TWNSettings

    def __init__(self, settings: TWNSettings | None = None) -> None:
        self.settings = settings or TWNSettings()

    @property
    def kind(self) -> str:
        """`twn`."""
        return "twn"

    @property
    def name(self) -> str:
        """`twn`: its bits cannot be chosen."""
        return self.kind

    def _parametrization(self, weight: Tensor) -> QuantizedWeight:
        return TWNWeight()

    def levels_from(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return {-a, 0, +a}, [3]."""
        scale = side["scale"]
        return torch.cat([-scale, torch.zeros_like(scale), scale]) + 0.0
