"""DoReFa-Net (Zhou et al., 1606.06160): weights of k bits through tanh, optional activations of k bits.

k > 1: w_q = 2 quantize_k(tanh(w) / (2 max|tanh w|) + 1/2) - 1, levels (2i / (2^k - 1) - 1) with no zero among
them; the gradient flows through tanh and the maximum, and straight through the rounding.
k = 1: w_q = sgn(w) E|w| with sgn(0) = +1, the gradient passes as it is.
Activations: quantize_k(clip(x, 0, 1)), here of the input of every quantized layer, where the paper's code
quantizes the output of the activation before it: the same where layers read one ReLU each, and it holds for
any model, functional ReLUs included. Sums around a layer (shortcuts) stay float.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nvcim.quantization.base import QuantizedWeight, Quantizer, QuantizerSettings, Side, wide
from nvcim.quantization.straight_through import quantize_unit, straight_through


class DoReFaSettings(QuantizerSettings):
    """DoReFa's settings; the official code (tensorpack) keeps the first and the last layer float.

    `activation_bits` null leaves activations in floating point, which is the segmentation paper's case.
    """

    kind: Literal["dorefa"] = "dorefa"
    bits: int = Field(default=2, ge=1, le=8)
    float_layers: tuple[str, ...] = ("first", "last")
    activation_bits: int | None = Field(default=None, ge=1, le=8)


class BinaryWeight(QuantizedWeight):
    """One bit: the sign times the mean magnitude."""

    kind = "dorefa"

    def forward(self, original: Tensor) -> Tensor:
        """Return the binary weight, same shape."""
        latent = wide(original.detach())
        scale = latent.abs().mean()
        held = torch.where(latent >= 0, scale, -scale) + 0.0
        return straight_through(original, held.to(original.dtype))

    def side(self, original: Tensor) -> Side:
        """Return the mean magnitude, [1]."""
        return {"scale": wide(original).abs().mean().view(1)}


class TanhWeight(QuantizedWeight):
    """Two bits and more: fixed levels in -1..1."""

    kind = "dorefa"

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, original: Tensor) -> Tensor:
        """Return the quantized weight, same shape; a weight of zeros gets the smallest level."""
        bent = torch.tanh(wide(original))
        largest = bent.abs().amax()
        unit = bent / (2 * torch.where(largest > 0, largest, 1.0)) + 0.5
        # Levels are the same for every layer, and those of float32 for every type.
        return (2 * quantize_unit(unit.float(), self.bits) - 1).to(original.dtype)

    def side(self, original: Tensor) -> Side:
        """Return nothing: the levels are the same for every layer."""
        return {}


class QuantizedInput:
    """Forward pre-hook: the first input of a layer, clipped to 0..1 and rounded to `bits` bits."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the inputs with the first quantized; its gradient is zero outside 0..1."""
        return quantize_unit(inputs[0].clamp(0, 1), self.bits), *inputs[1:]


class DoReFa(Quantizer):
    """DoReFa over the weighted layers of a model; 1 to 8 bits."""

    settings: DoReFaSettings

    def __init__(self, settings: DoReFaSettings | None = None) -> None:
        self.settings = settings or DoReFaSettings()

    @property
    def kind(self) -> str:
        """`dorefa`."""
        return "dorefa"

    def attach(self, model: nn.Module) -> None:
        """Put weights, and activations where asked, under DoReFa, in place; errors as for any quantizer."""
        super().attach(model)
        if self.settings.activation_bits is not None:
            for _, layer in self.quantized_layers(model):
                layer.register_forward_pre_hook(QuantizedInput(self.settings.activation_bits))

    def _parametrization(self, weight: Tensor) -> QuantizedWeight:
        return BinaryWeight() if self.settings.bits == 1 else TanhWeight(self.settings.bits)

    def levels_from(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return the levels, ascending, [2^bits]."""
        if self.settings.bits == 1:
            return torch.cat([-side["scale"], side["scale"]]) + 0.0
        top = 2**self.settings.bits - 1
        levels: Tensor = 2 * (torch.arange(top + 1, dtype=torch.float32) / top) - 1
        return levels
