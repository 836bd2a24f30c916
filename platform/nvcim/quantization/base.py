"""What every quantizer does: attach to a model's weights, quantize them in stages, and say what they cost.

Only the weights of `Conv2d` and `Linear` layers are quantized; biases, normalisation and activations stay in
floating point, as in "Quantization of FCNs for Accurate Biomedical Image Segmentation" (1803.04907).
A quantizer lives on a model as a torch parametrization of each weight, so `layer.weight` always reads the
value that the hardware would hold, whoever reads it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nvcim.config import Settings
from nvcim.errors import ModelError


class QuantizerSettings(Settings):
    """Settings that all quantizers share.

    `float_layers` names layers that stay in floating point: the model's first, its last, both, or none. The
    official INQ code quantizes every layer (the default); DoReFa's and TTQ's keep the first and last float.
    """

    bits: int = Field(default=5, ge=2, le=8)
    float_layers: tuple[Literal["first", "last"], ...] = ()


@dataclass(frozen=True)
class Stage:
    """One step of a quantizer's schedule: quantize `fraction` of every weight, then train if anything can."""

    fraction: float
    trains: bool


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of a model's quantizable weights in float32 and as quantized.

    Modelled, not measured: count x bits / 8 plus the side information of each layer (scales or exponents).
    Layers kept in floating point count 32 bits on both sides; biases and normalisation are left out of both.
    """

    float32_bytes: float
    quantized_bytes: float

    @property
    def ratio(self) -> float:
        """How many times smaller the quantized weights are."""
        return self.float32_bytes / self.quantized_bytes


def weighted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, layer) of every `Conv2d` and `Linear` layer, in the order they were registered."""
    return [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]


def parametrization_of(layer: nn.Module) -> nn.Module | None:
    """Return the quantizer's parametrization of a layer's weight, or None for a float layer."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    parametrizations = layer.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    chain = parametrizations["weight"]
    assert isinstance(chain, nn.ModuleList)
    return chain[0]


class Quantizer(ABC):
    """A way to quantize weights. Stateless: all state is in the parametrizations on the model."""

    settings: QuantizerSettings

    @property
    @abstractmethod
    def kind(self) -> str:
        """The quantizer's short name, as in `inq-5`."""

    @property
    def name(self) -> str:
        """Kind and bits, for example `inq-5`."""
        return f"{self.kind}-{self.settings.bits}"

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The schedule that `train` walks through; after the last stage every weight is on a level."""

    @abstractmethod
    def _parametrization(self, weight: Tensor) -> nn.Module:
        """Return a new parametrization for a weight [out, in, ...]."""

    @abstractmethod
    def levels(self, layer: nn.Module) -> Tensor:
        """Return the values that `layer.weight` may take, ascending: [levels] or [out_features, levels].

        Raises:
            ModelError: this quantizer is not attached to the layer.
        """

    @abstractmethod
    def _side_bits(self, layer: nn.Module) -> int:
        """Bits a layer stores beside its weights (scales, exponents)."""

    def advance(self, model: nn.Module, fraction: float) -> None:  # noqa: B027 - most quantizers have no stages
        """Quantize `fraction` (0..1) of every attached weight. Never takes back what is quantized already."""

    def quantized_layers(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return the layers this quantizer takes, float layers left out.

        Raises:
            ModelError: nothing is left to quantize.
        """
        layers = weighted_layers(model)
        if "first" in self.settings.float_layers:
            layers = layers[1:]
        if "last" in self.settings.float_layers:
            layers = layers[:-1]
        if not layers:
            raise ModelError(f"{self.name}: the model has no Conv2d or Linear weight to quantize")
        return layers

    def attach(self, model: nn.Module) -> None:
        """Put this quantizer on a model's weights, in place.

        Raises:
            ModelError: the model is quantized already, has no weight to quantize, or one is not finite.
        """
        layers = self.quantized_layers(model)
        for name, layer in layers:
            if parametrize.is_parametrized(layer, "weight"):
                raise ModelError(f"{self.name}: layer '{name}' is quantized already")
            if not bool(torch.isfinite(layer.weight).all()):  # type: ignore[arg-type]
                raise ModelError(f"{self.name}: layer '{name}' has weights that are not finite")
        for _, layer in layers:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            parametrize.register_parametrization(layer, "weight", self._parametrization(weight.detach()))

    def memory(self, model: nn.Module) -> WeightMemory:
        """Return the modelled memory of the model's weights under this quantizer."""
        quantized = {name for name, _ in self.quantized_layers(model)}
        plain_bits, quantized_bits = 0, 0
        for name, layer in weighted_layers(model):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            plain_bits += 32 * weight.numel()
            if name in quantized:
                quantized_bits += self.settings.bits * weight.numel() + self._side_bits(layer)
            else:
                quantized_bits += 32 * weight.numel()
        return WeightMemory(plain_bits / 8, quantized_bits / 8)
