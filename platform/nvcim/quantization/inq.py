"""Incremental network quantization (INQ, 1702.03044): weights become zero or signed powers of two, in steps.

Each step freezes the largest of the weights still free, rounded to a level; the others keep training and make
up for the error. With s = max|W|, n1 = floor(log2(4s/3)) and n2 = n1 + 1 - 2^(bits-1)/2, the levels are
{0, +-2^n2, ..., +-2^n1}: one bit stands for zero, the others index the signed powers.
That is 2^(bits-2) powers; `exponents` takes fewer (cells with few levels) or more, from the largest down.
Two details differ from the public codes on purpose: the mask is monotone (a frozen weight never thaws,
though both codes recompute the mask from scratch), and a weight that outgrew 1.5 * 2^n1 after n1 was fixed
becomes the top level, where the paper's rule as written would make it zero.
"""

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from nvcim.errors import ModelError
from nvcim.quantization.base import QuantizedWeight, Quantizer, QuantizerSettings, Side, Stage, original_of
from nvcim.quantization.packing import code_bits


class INQSettings(QuantizerSettings):
    """INQ's settings; `schedule` holds the fractions frozen after each step and ends with 1.

    The default schedule is the one of the PyTorch port's example (Mxbonn/INQ-pytorch). The official code
    quantizes every weighted layer, so none stays float.
    """

    kind: Literal["inq"] = "inq"
    bits: int = Field(default=5, ge=2, le=8)
    exponents: int | None = Field(
        default=None, ge=1, le=127, description="how many powers of two; null: 2^(bits-2), the paper's"
    )
    schedule: tuple[float, ...] = (0.5, 0.75, 0.875, 1.0)

    @field_validator("schedule")
    @classmethod
    def _rises_to_one(cls, schedule: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in zip((0.0, *schedule), schedule, strict=False))
        if not schedule or not rising or schedule[-1] != 1.0:
            raise ValueError("must rise from above 0 and end with 1")
        return schedule

    @model_validator(mode="after")
    def _levels_fit_the_bits(self) -> Self:
        most = 2 ** (self.bits - 1) - 1
        if self.powers > most:
            raise ValueError(f"{self.bits} bits hold at most {most} exponents, given: {self.powers}")
        return self

    @property
    def powers(self) -> int:
        """How many powers of two the levels have on each side of zero."""
        return self.exponents if self.exponents is not None else 2 ** (self.bits - 2)


def exponent_range(largest: float, powers: int) -> tuple[int, int]:
    """Return (n2, n1), the smallest and largest of `powers` exponents, for a layer with largest |weight| `largest`.

    A layer of zeros gets n1 = 0: any range holds it.
    """
    if largest <= 0:
        top = 0
    else:
        _, exponent = math.frexp(4.0 * largest / 3.0)  # 4s/3 = m 2^e with 0.5 <= m < 1
        top = exponent - 1
    return top + 1 - powers, top


def power_levels(bottom: int, top: int) -> Tensor:
    """Return {0, +-2^bottom, ..., +-2^top} ascending, float32 [2 * (top - bottom + 1) + 1]."""
    powers = [2.0**exponent for exponent in range(bottom, top + 1)]
    return torch.tensor([-p for p in reversed(powers)] + [0.0] + powers)


def round_to_powers(weight: Tensor, bottom: int, top: int) -> Tensor:
    """Round to {0, +-2^bottom..+-2^top}: a magnitude goes to 2^e where 0.75 * 2^e <= |w| < 1.5 * 2^e.

    Below half the smallest power it becomes zero; between that and the smallest power, the smallest power.
    weight: any shape, float32; returns the same shape.
    """
    magnitude = weight.detach().abs().double()
    _, exponent = torch.frexp(4.0 * magnitude / 3.0)
    index = (exponent - 1).clamp(bottom, top) - bottom
    powers = torch.tensor([2.0**e for e in range(bottom, top + 1)], device=weight.device)
    rounded = torch.sign(weight.detach()) * powers[index.long()]
    return torch.where(magnitude < 2.0 ** (bottom - 1), torch.zeros_like(rounded), rounded)


class INQWeight(QuantizedWeight):
    """Parametrization of one weight: frozen entries read their level, the others the trained value.

    Frozen entries get no gradient, and what momentum or weight decay do to their stored value cannot be read.
    """

    kind = "inq"
    frozen: Tensor
    value: Tensor
    exponents: Tensor

    def __init__(self, weight: Tensor, powers: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("value", torch.zeros_like(weight))
        bottom, top = exponent_range(float(weight.abs().max()), powers)
        # A largest weight just below the end of its type rounds up to a power beyond it.
        excess = max(top - (math.frexp(torch.finfo(weight.dtype).max)[1] - 1), 0)
        bottom, top = bottom - excess, top - excess
        self.register_buffer("exponents", torch.tensor([bottom, top], dtype=torch.int16))

    def forward(self, original: Tensor) -> Tensor:
        """Return the weight as the hardware holds it, same shape."""
        return torch.where(self.frozen, self.value, original)

    def side(self, original: Tensor) -> Side:
        """Return the smallest and the largest exponent, [2]."""
        return {"exponents": self.exponents}

    def settled(self) -> bool:
        """Whether everything is frozen."""
        return bool(self.frozen.all())

    def freeze(self, original: Tensor, fraction: float) -> None:
        """Freeze the largest free entries until `fraction` (0..1) of the weight is frozen.

        Raises:
            ModelError: a weight to freeze is not finite (training diverged).
        """
        if not bool(torch.isfinite(original).all()):
            raise ModelError("INQ: training diverged, weights are not finite; lower the learning rate")
        wanted = round(fraction * original.numel()) - int(self.frozen.sum())
        if wanted <= 0:
            return
        magnitude = original.detach().abs().masked_fill(self.frozen, -1.0).flatten()
        chosen = torch.zeros_like(self.frozen).flatten()
        chosen[magnitude.topk(wanted).indices] = True
        chosen = chosen.view_as(self.frozen)
        bottom, top = (int(e) for e in self.exponents)
        levels = round_to_powers(original, bottom, top).to(original.dtype)
        self.value = torch.where(chosen, levels, self.value)
        self.frozen = self.frozen | chosen


class INQ(Quantizer):
    """INQ over all weighted layers of a model; 2 to 8 bits.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> quantizer = INQ(INQSettings(bits=3))
        >>> quantizer.attach(layer)
        >>> quantizer.advance(layer, 1.0)
        >>> bool(torch.isin(layer.weight, quantizer.levels(layer)).all())
        True
    """

    settings: INQSettings

    def __init__(self, settings: INQSettings | None = None) -> None:
        self.settings = settings or INQSettings()

    @property
    def kind(self) -> str:
        """`inq`."""
        return "inq"

    @property
    def name(self) -> str:
        """`inq-<bits>`, or `inq-<bits>-<exponents>` where the powers are not the 2^(bits-2) of the paper.

        Bits are those that the levels take, whatever more the settings allow: one set of levels has one name.
        """
        powers = self.settings.powers
        bits = code_bits(2 * powers + 1)
        return f"inq-{bits}" if powers == 2 ** (bits - 2) else f"inq-{bits}-{powers}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The schedule; nothing is left to train after its last step."""
        return tuple(Stage(fraction, trains=fraction < 1.0) for fraction in self.settings.schedule)

    def _parametrization(self, weight: Tensor) -> QuantizedWeight:
        return INQWeight(weight, self.settings.powers)

    def levels_from(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return the level set, ascending, [2 * powers + 1]."""
        bottom, top = (int(exponent) for exponent in side["exponents"])
        return power_levels(bottom, top)

    def advance(self, model: nn.Module, fraction: float) -> None:
        """Freeze the largest free weights of every layer until `fraction` of it is frozen.

        Raises:
            ModelError: training diverged, or INQ is not attached to the model.
        """
        for _, layer in self.quantized_layers(model):
            found = self.weight_of(layer)
            if isinstance(found, INQWeight):
                found.freeze(original_of(layer), fraction)

    def frozen_fraction(self, model: nn.Module) -> float:
        """Return the part of all quantized weights that is frozen, 0..1.

        Raises:
            ModelError: INQ is not attached to the model.
        """
        frozen, count = 0, 0
        for _, layer in self.quantized_layers(model):
            found, size = self.weight_of(layer), original_of(layer).numel()
            frozen += int(found.frozen.sum()) if isinstance(found, INQWeight) else size
            count += size
        return frozen / count
