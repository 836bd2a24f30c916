"""Symmetric uniform quantization with straight-through gradients.

w_q = s * clamp(round(w / s), -Q, Q) with Q = 2^(bits-1) - 1 and s = max|w| / Q per output channel or layer;
the gradient passes unchanged (straight-through estimator, 1308.3432), so quantized weights keep training.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nvcim.errors import ModelError
from nvcim.quantization.base import Quantizer, QuantizerSettings, Stage, parametrization_of


class UniformSettings(QuantizerSettings):
    """Settings of uniform quantization; one scale a channel (of the output) or one a layer."""

    kind: Literal["uniform"] = "uniform"
    granularity: Literal["channel", "layer"] = "channel"


def uniform_scale(weight: Tensor, bits: int, granularity: Literal["channel", "layer"]) -> Tensor:
    """Return the step between levels, shaped to broadcast over the weight.

    weight: [out, ...]; returns [out, 1, ...] for channels, [1, 1, ...] for a layer.
    A channel of zeros gets step 1.
    """
    magnitude = weight.detach().abs()
    if granularity == "channel":
        largest = magnitude.flatten(1).amax(dim=1).view(-1, *[1] * (weight.dim() - 1))
    else:
        largest = magnitude.amax().view([1] * weight.dim())
    step = largest / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, step, torch.ones_like(step))


class _StraightThrough(torch.autograd.Function):
    """Round to the levels forward, identity backward; the forward value is exactly integer * step."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, top: int) -> Tensor:
        return torch.clamp(torch.round(weight / step), -top, top) * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class UniformWeight(nn.Module):
    """Parametrization of one weight; stateless, the step follows the trained weight."""

    def __init__(self, settings: UniformSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, original: Tensor) -> Tensor:
        """Return the quantized weight, same shape."""
        step = uniform_scale(original, self.settings.bits, self.settings.granularity)
        quantized: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            original, step, 2 ** (self.settings.bits - 1) - 1
        )
        return quantized


class Uniform(Quantizer):
    """Uniform levels, quantized throughout training; 2 to 8 bits."""

    settings: UniformSettings

    def __init__(self, settings: UniformSettings | None = None) -> None:
        self.settings = settings or UniformSettings()

    @property
    def kind(self) -> str:
        """`uniform`."""
        return "uniform"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage: everything is quantized from the start, and trains."""
        return (Stage(1.0, trains=True),)

    def _parametrization(self, weight: Tensor) -> nn.Module:
        return UniformWeight(self.settings)

    def levels(self, layer: nn.Module) -> Tensor:
        """Return the layer's levels, ascending, [out_features or 1, 2^bits - 1]."""
        if not isinstance(parametrization_of(layer), UniformWeight):
            raise ModelError("uniform quantization is not attached to this layer")
        original = layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
        assert isinstance(original, Tensor)
        step = uniform_scale(original, self.settings.bits, self.settings.granularity).flatten()
        top = 2 ** (self.settings.bits - 1) - 1
        return torch.arange(-top, top + 1, device=step.device) * step[:, None]

    def _side_bits(self, layer: nn.Module) -> int:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return 32 * (weight.shape[0] if self.settings.granularity == "channel" else 1)
