"""Inference layers whose weights are cells of a crossbar; the bias is added digitally.

The programming draw is made once, when the layer is made. Gradients reach the inputs, straight through the array.
"""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from nvcim.analog.convolution import (
    Convolution,
    read_convolution,
    read_convolution_straight_through,
)
from nvcim.analog.recomputation import Forwards, may_be_recomputed, recomputing
from nvcim.analog.straight_through import Reader, read_straight_through
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.reading import Counts
from nvcim.errors import ConfigError
from nvcim.quantization.computed import computed, computed_weight, in_eval_mode


class AnalogLayer(nn.Module):
    """A crossbar and a digital bias.

    `state_dict` holds both as tensors under `crossbar.`, with the crossbar's settings as the bytes of a JSON text, so
    that torch.save and safetensors take it. Loading restores the device exactly: cells, ADC ranges, reads so far.

    Attributes:
        crossbar: the array.
        bias: [out], or None.
        read: stands in for the array's own reading; `calibrate` puts a recorder here for a while.

    Under activation checkpointing a forward that is recomputed repeats its reads and counts as none (`recomputation`).
    """

    bias: Tensor | None

    def __init__(self, crossbar: Crossbar, bias: Tensor | None) -> None:
        super().__init__()
        self.crossbar = crossbar
        self.read: Reader | None = None
        self._forwards: Forwards[Crossbar] = Forwards()
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """A stand-in without data, [out, ...] as in the digital layer.

        Code that asks a layer's weight for its shape or type gets an answer; code that would compute with it, past the
        converters, fails. What the cells hold is `crossbar.read_weight()`.
        """
        return torch.empty(self._digital_shape(), device="meta")

    def _digital_shape(self) -> tuple[int, ...]:
        return self.crossbar.out_features, self.crossbar.in_features

    @property
    def _moves_on(self) -> bool:
        """Whether one forward reads other than the next."""
        return self.crossbar.config.noisy

    def _array_for(self, x: Tensor) -> Crossbar:
        """What a forward of x reads: the array, or in a forward that is recomputed what it was, to move on alone."""
        if recomputing():
            return _as_it_stands(self._forwards.started_from(x) if self._moves_on else self.crossbar)
        if self._moves_on and may_be_recomputed():
            self._forwards.remember(_as_it_stands(self.crossbar), x)
        return self.crossbar

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module, which setting an attribute to a parameter comes to.

        Raises:
            ConfigError: a weight, as code that ties or resizes layers would set it: it lies in cells.
        """
        if name == "weight":
            raise ConfigError(
                f"the weight of an {type(self).__name__} lies in cells, so it cannot be tied or replaced; tie or "
                "resize before analogize, skip the layer, or write other weights with crossbar.rewrite"
            )
        super().register_parameter(name, param)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.crossbar.state_dict().items():
            destination[f"{prefix}crossbar.{name}"] = value
        text = json.dumps(self.crossbar.config.model_dump(mode="json")).encode("utf-8")
        destination[f"{prefix}crossbar.config"] = torch.tensor(list(text), dtype=torch.uint8)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = f"{prefix}crossbar."
        rest = {name: value for name, value in state_dict.items() if not name.startswith(mine)}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        state = {name.removeprefix(mine): state_dict[name] for name in state_dict if name.startswith(mine)}
        if "config" not in state:
            missing_keys.append(f"{mine}config")
            return
        config = CrossbarConfig.model_validate_json(bytes(state.pop("config").tolist()))
        restored, own = Crossbar.from_state(state, config), self.crossbar.shape
        if restored.shape != own:
            raise ConfigError(f"saved crossbar has shape {tuple(restored.shape)}, this layer {tuple(own)}")
        self.crossbar = restored.to(self.crossbar.location)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.to() reaches the cells this way; only the place follows, since reads compute in float32.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.crossbar = self.crossbar.to(fn(torch.empty(0)).device)
        return self

    def extra_repr(self) -> str:
        """Shape and device, for print(model)."""
        config = self.crossbar.config
        return f"{list(self.crossbar.shape)}, device={config.device}, sigma={config.sigma}"


class AnalogLinear(AnalogLayer):
    """x @ weight.T + bias with the weight in cells."""

    @classmethod
    def from_linear(
        cls, linear: nn.Module, config: CrossbarConfig, generator: Generator | Sequence[Generator]
    ) -> "AnalogLinear":
        """Program a linear layer's weight, as its parametrizations and pre-hooks make it in eval mode.

        Args:
            linear: nn.Linear, or Hugging Face's Conv1D, which holds its weight as [in, out].
            config: of the crossbar.
            generator: of the programming draw.

        Raises:
            ConfigError, DeviceError: as `Crossbar.program`.
            ModelError: as `quantization.computed`.
        """
        with in_eval_mode(linear):
            matrix, bias = linear_matrix(linear).detach(), computed(linear, "bias")
        return cls(Crossbar.program(matrix, config, generator), bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., out_features]."""
        y = (self.read or read_straight_through)(self._array_for(x), x.reshape(-1, x.shape[-1]))
        y = y.reshape(*x.shape[:-1], self.crossbar.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class AnalogConv2d(AnalogLayer):
    """A convolution as reads of a crossbar: one input vector per output position.

    Stride, padding (every padding mode), dilation and groups are those of the digital layer. Each group is a
    crossbar of its own, [kernel height * kernel width * in_channels / groups, out_channels / groups].
    """

    def __init__(self, crossbar: Crossbar, bias: Tensor | None, shape: Convolution) -> None:
        super().__init__(crossbar, bias)
        self.shape = shape

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, config: CrossbarConfig, generator: Generator | Sequence[Generator]
    ) -> "AnalogConv2d":
        """Program a convolution's weight, as its parametrizations and pre-hooks make it in eval mode.

        Raises:
            ConfigError, DeviceError: as `Crossbar.program`.
            ModelError: as `quantization.computed`.
        """
        shape = Convolution.of(conv)
        with in_eval_mode(conv):
            matrix, bias = shape.matrix(computed_weight(conv).detach()), computed(conv, "bias")
        return cls(Crossbar.program(matrix, config, generator), bias, shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, in_channels, height, width] or without batch -> the same with out_channels.

        Raises:
            ConfigError: another number of channels, or an image smaller than the kernel.
        """
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)  # type: ignore[no-any-return]
        padded, array = self.shape.padded(x), self._array_for(x)
        what = self.shape, self.read, array, padded, self.bias, self.shape.layout_for(x)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        return read_convolution_straight_through(*what) if differentiable else read_convolution(*what)

    def _digital_shape(self) -> tuple[int, ...]:
        groups, _, outputs = self.crossbar.shape
        return groups * outputs, self.shape.in_channels // groups, *self.shape.kernel_size


def _as_it_stands(crossbar: Crossbar) -> Crossbar:
    """A copy that reads on by itself; a crossbar replaces its tensors and never changes them, so it costs nothing."""
    held = copy.copy(crossbar)
    held.counts = Counts()
    return held


def linear_matrix(linear: nn.Module) -> Tensor:
    """The weight [in, out] of nn.Linear or Hugging Face's Conv1D."""
    weight = computed_weight(linear)
    return weight.T if isinstance(linear, nn.Linear) else weight
