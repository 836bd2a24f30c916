"""What every quantizer does: attach to a model's weights, quantize them in stages, and say what they cost.

Only the weights of `Conv2d` and `Linear` layers are quantized; biases and normalisation stay in floating
point, as in "Quantization of FCNs for Accurate Biomedical Image Segmentation" (1803.04907). A quantizer lives
on a model as a torch parametrization of each weight, so `layer.weight` always reads the value that the
hardware would hold, whoever reads it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nvcim.config import Settings
from nvcim.errors import ModelError
from nvcim.quantization.computed import computed_weight, what_computes
from nvcim.quantization.packing import PackedTensor, pack_weight

Side = dict[str, Tensor]
"""What a layer stores beside its codes so that its levels can be made anew: scales, exponents, zero points."""


class QuantizerSettings(Settings):
    """Settings that all quantizers share.

    `float_layers` says which layers stay in floating point: `first` and `last` (in the order the model
    registered them), a layer's name, or a pattern of names such as `head*`. Each quantizer's default is its
    paper's own.
    """

    bits: int = Field(default=5, ge=1, le=8)
    float_layers: tuple[str, ...] = ()

    @field_validator("float_layers")
    @classmethod
    def _patterns_are_not_empty(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not all(patterns):
            raise ValueError("an empty name matches no layer")
        return patterns


@dataclass(frozen=True)
class Stage:
    """One step of a quantizer's schedule: quantize `fraction` of every weight, then train if anything can."""

    fraction: float
    trains: bool


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of the weights of a model's `Conv2d` and `Linear` layers, in float32 and packed.

    Measured: the bytes that the packed arrays hold, scales and exponents included. Layers in floating point
    count 32 bits on both sides; biases and normalisation are left out of both.
    """

    float32_bytes: int
    quantized_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the quantized weights are."""
        return self.float32_bytes / self.quantized_bytes


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32, in which levels are computed before a weight's own type rounds them."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def weighted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, layer) of every `Conv2d` and `Linear` layer, in the order they were registered."""
    return [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]


def parametrization_of(layer: nn.Module) -> nn.Module | None:
    """Return the quantizer's parametrization of a layer's weight, or None for a float layer."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return _chain(layer)[0]


def original_of(layer: nn.Module) -> Tensor:
    """Return the stored tensor behind a parametrized weight: what training moves, [out, in, ...]."""
    original = _chain(layer).original
    assert isinstance(original, Tensor)
    return original


def _chain(layer: nn.Module) -> nn.ModuleList:
    """The parametrizations of a layer's weight."""
    parametrizations = layer.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    chain = parametrizations["weight"]
    assert isinstance(chain, nn.ModuleList)
    return chain


class QuantizedWeight(nn.Module, ABC):
    """A quantizer's parametrization of one weight."""

    kind: str

    @abstractmethod
    def forward(self, original: Tensor) -> Tensor:
        """Return the weight as the hardware holds it, same shape."""

    @abstractmethod
    def side(self, original: Tensor) -> Side:
        """Return what the levels of this weight are made from."""

    def settled(self) -> bool:
        """Whether every weight is on a level."""
        return True


class FixedWeight(QuantizedWeight):
    """A weight whose stored tensor holds levels already, as packed files give it back; it does not train."""

    def __init__(self, kind: str, side: Side) -> None:
        super().__init__()
        self.kind = kind
        self._names = tuple(side)
        for name, tensor in side.items():
            self.register_buffer(name, tensor)

    def forward(self, original: Tensor) -> Tensor:
        """Return the stored tensor, without gradient."""
        return original.detach()

    def side(self, original: Tensor) -> Side:
        """Return what was stored."""
        return {name: self.get_buffer(name) for name in self._names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.to() and half() come this way; scales keep their type, or the levels would be others.
        for name in self._names:
            buffer = self.get_buffer(name)
            setattr(self, name, buffer.to(fn(buffer).device))
        return self


def fix_weight(layer: nn.Module, weight: Tensor, side: Side) -> None:
    """Make a layer under a quantizer hold these quantized values for good; weight: as the layer's own."""
    chain = _chain(layer)
    found = chain[0]
    assert isinstance(found, QuantizedWeight)
    original = original_of(layer)
    # A parameter of its own: another layer that shares the old one, an embedding say, keeps its values and trains on.
    chain.original = nn.Parameter(weight.to(original).clone(), requires_grad=False)
    chain[0] = FixedWeight(found.kind, {name: tensor.to(original.device) for name, tensor in side.items()})


class Quantizer(ABC):
    """A way to quantize weights. Stateless: all state is in the parametrizations on the model."""

    settings: QuantizerSettings

    @property
    @abstractmethod
    def kind(self) -> str:
        """The quantizer's short name, as in `inq-5`."""

    @property
    def name(self) -> str:
        """Kind and bits, for example `inq-5`; `quantizer_named` knows it."""
        return f"{self.kind}-{self.settings.bits}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The schedule that `train` walks through; after the last stage every weight is on a level.

        Unless a quantizer says otherwise: everything is quantized from the start, and trains.
        """
        return (Stage(1.0, trains=True),)

    @abstractmethod
    def _parametrization(self, weight: Tensor) -> QuantizedWeight:
        """Return a new parametrization, of this kind, for a weight [out, in, ...]."""

    @abstractmethod
    def levels_from(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return the levels that a layer's side information stands for, ascending.

        Returns: [levels] or [out_features or 1, levels], float32 or, of float64 weights, float64: the very values
        `layer.weight` takes once its own type has rounded them.

        Raises:
            KeyError, ValueError: side information of another quantizer.
        """

    def levels(self, layer: nn.Module) -> Tensor:
        """Return the values that `layer.weight` may take, ascending: [levels] or [out_features, levels].

        Raises:
            ModelError: this quantizer is not attached to the layer.
        """
        return self.levels_from(self.side(layer))

    def side(self, layer: nn.Module) -> Side:
        """Return what a layer stores beside its codes; `levels_from` makes the levels of it.

        Raises:
            ModelError: this quantizer is not attached to the layer.
        """
        found = self.weight_of(layer)
        return {
            name: wide(tensor.detach()) for name, tensor in found.side(original_of(layer).detach()).items()
        }

    def weight_of(self, layer: nn.Module) -> QuantizedWeight:
        """Return this quantizer's parametrization of a layer.

        Raises:
            ModelError: this quantizer is not attached to the layer.
        """
        found = parametrization_of(layer)
        if not isinstance(found, QuantizedWeight) or found.kind != self.kind:
            raise ModelError(f"{self.name} is not attached to this layer")
        return found

    def advance(self, model: nn.Module, fraction: float) -> None:  # noqa: B027 - most quantizers have no stages
        """Quantize `fraction` (0..1) of every attached weight. Never takes back what is quantized already."""

    def quantized_layers(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return the layers this quantizer takes, float layers left out.

        Raises:
            ModelError: nothing is left to quantize, or `float_layers` names a layer that does not exist.
        """
        layers = weighted_layers(model)
        if not layers:
            raise ModelError(f"{self.name}: the model has no Conv2d or Linear weight to quantize")
        names = [name for name, _ in layers]
        float_names: set[str] = set()
        for pattern in self.settings.float_layers:
            matched = _matching(pattern, names)
            if not matched:
                known = ", ".join(names)
                raise ModelError(
                    f"{self.name}: float_layers '{pattern}' matches no layer; allowed: first, last, {known}"
                )
            float_names.update(matched)
        kept = [(name, layer) for name, layer in layers if name not in float_names]
        if not kept:
            stay = ", ".join(self.settings.float_layers)
            raise ModelError(
                f"{self.name}: the model has no Conv2d or Linear weight to quantize beside float_layers {stay}"
            )
        return kept

    def attach(self, model: nn.Module) -> None:
        """Put this quantizer on a model's weights, in place.

        Raises:
            ModelError: the model is quantized already, has no weight to quantize, or one is not finite, or is computed
                by something else (pruning, weight or spectral normalisation).
        """
        layers = self.quantized_layers(model)
        for name, layer in layers:
            reason = _why_not(layer)
            if reason is not None:
                raise ModelError(f"{self.name}: layer '{name}' {reason}")
        shared: dict[int, QuantizedWeight] = {}  # layers that share a weight share its levels
        for _, layer in layers:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            if id(weight) not in shared:
                shared[id(weight)] = self._parametrization(weight.detach())
            parametrize.register_parametrization(layer, "weight", shared[id(weight)])

    def pack(self, layer: nn.Module) -> PackedTensor:
        """Return a layer's weight as it is held in packed memory.

        Raises:
            ModelError: not attached, or a weight is not on a level (INQ before its last stage).
        """
        side = self.side(layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        levels = wide(self.levels_from(side).to(weight.dtype)).cpu()
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in side.items()}
        return pack_weight(
            wide(weight.detach()).cpu().numpy(), levels.view(-1, levels.shape[-1]).numpy(), arrays
        )

    def memory(self, model: nn.Module) -> WeightMemory:
        """Return the memory of the model's weights under this quantizer, by packing them.

        Raises:
            ModelError: this quantizer is not attached to the model.
        """
        quantized = {name for name, _ in self.quantized_layers(model)}
        plain_bytes, packed_bytes = 0, 0
        for name, layer in weighted_layers(model):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            plain = 4 * weight.numel()
            plain_bytes += plain
            packs = name in quantized and self.weight_of(layer).settled()
            packed_bytes += self.pack(layer).nbytes if packs else plain
        return WeightMemory(plain_bytes, packed_bytes)


def _why_not(layer: nn.Module) -> str | None:
    """Why no quantizer can take a layer's weight; None if one can."""
    if parametrize.is_parametrized(layer, "weight"):
        found = _chain(layer)[0]
        if isinstance(found, QuantizedWeight):
            return "is quantized already"
        kind = type(found).__name__.lstrip("_")
        return (
            f"has its weight parametrized by {kind}; make it permanent: parametrize.remove_parametrizations"
        )
    hook = what_computes(layer)
    if hook is not None:
        return f"has its weight computed by {hook[0]} before each forward; make it permanent: {hook[1]}"
    try:
        weight = computed_weight(layer)
    except ModelError as error:
        return f"cannot be quantized: {error}"
    if not isinstance(weight, nn.Parameter):
        return "has a weight that is not a parameter"
    if weight.numel() == 0:
        return f"has no weights: its shape is {tuple(weight.shape)}"
    return None if bool(torch.isfinite(weight).all()) else "has weights that are not finite"


def _matching(pattern: str, names: list[str]) -> list[str]:
    """Names of layers that one entry of `float_layers` means."""
    if pattern == "first":
        return names[:1]
    if pattern == "last":
        return names[-1:]
    return [name for name in names if fnmatchcase(name, pattern)]
