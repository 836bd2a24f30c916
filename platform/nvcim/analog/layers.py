"""Inference layers whose weights are cells of a crossbar; the bias is added digitally.

The programming draw is made once, when the layer is made. Nothing here is differentiable.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError

# Patches of a convolution unfolded at once: bounds memory on large images and keeps them in the cache.
_PATCH_ELEMENTS = 2**18


class AnalogLayer(nn.Module):
    """A crossbar and a digital bias. `state_dict` holds both, the crossbar as extra state with its config."""

    bias: Tensor | None

    def __init__(self, crossbar: Crossbar, bias: Tensor | None) -> None:
        super().__init__()
        self.crossbar = crossbar
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def get_extra_state(self) -> dict[str, Any]:
        """The crossbar as plain tensors and settings."""
        return {
            "crossbar": self.crossbar.state_dict(),
            "config": self.crossbar.config.model_dump(mode="json"),
        }

    def set_extra_state(self, state: Any) -> None:
        """Restore the crossbar.

        Raises:
            ConfigError: the state is that of a layer of another shape.
        """
        restored = Crossbar.from_state(state["crossbar"], CrossbarConfig.model_validate(state["config"]))
        own = self.crossbar.shape
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
        cls, linear: nn.Linear, config: CrossbarConfig, generator: Generator | Sequence[Generator]
    ) -> "AnalogLinear":
        """Program a linear layer's weight, as its parametrizations make it.

        Raises:
            ConfigError, DeviceError: as `Crossbar.program`.
        """
        return cls(Crossbar.program(linear.weight.detach().T, config, generator), linear.bias)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., out_features]."""
        flat = x.reshape(-1, x.shape[-1])
        y = self.crossbar.matmul(flat).reshape(*x.shape[:-1], self.crossbar.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class AnalogConv2d(AnalogLayer):
    """A convolution as reads of a crossbar: one input vector per output position.

    Stride, padding (every padding mode), dilation and groups are those of the digital layer. Each group is a
    crossbar of its own, [in_channels / groups * kernel height * kernel width, out_channels / groups].
    """

    def __init__(self, crossbar: Crossbar, conv: nn.Conv2d) -> None:
        super().__init__(crossbar, conv.bias)
        self.in_channels = conv.in_channels
        self.kernel_size = (conv.kernel_size[0], conv.kernel_size[1])
        self.stride = (conv.stride[0], conv.stride[1])
        self.dilation = (conv.dilation[0], conv.dilation[1])
        self.padding = _padding(conv)
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, config: CrossbarConfig, generator: Generator | Sequence[Generator]
    ) -> "AnalogConv2d":
        """Program a convolution's weight, as its parametrizations make it.

        Raises:
            ConfigError, DeviceError: as `Crossbar.program`.
        """
        weight = conv.weight.detach()  # [out, in / groups, kernel height, kernel width]
        matrix = weight.reshape(conv.groups, conv.out_channels // conv.groups, -1).transpose(1, 2)
        return cls(Crossbar.program(matrix, config, generator), conv)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, in_channels, height, width] or without batch -> the same with out_channels.

        Raises:
            ConfigError: another number of channels, or an image smaller than the kernel.
        """
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)  # type: ignore[no-any-return]
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(f"input has shape {tuple(x.shape)}; expected [batch, {self.in_channels}, h, w]")
        padded = functional.pad(x, self.padding, mode=self.padding_mode)
        height, width = (_output_size(self, padded, axis) for axis in (0, 1))
        if height < 1 or width < 1:
            raise ConfigError(f"input has shape {tuple(x.shape)}, too small for kernel {self.kernel_size}")
        groups, patch, outputs = self.crossbar.shape
        result = x.new_empty(x.shape[0], groups * outputs, height, width)
        band = max(1, _PATCH_ELEMENTS // (groups * patch * width))
        for image, output in zip(padded, result, strict=True):
            for top in range(0, height, band):
                rows = min(band, height - top)
                output[:, top : top + rows] = self._band(image, top, rows, width)
        return result if self.bias is None else result.add_(self.bias.to(x.dtype)[:, None, None])

    def _band(self, image: Tensor, top: int, rows: int, width: int) -> Tensor:
        """Output rows top..top+rows of one padded image [in_channels, h, w]: [out_channels, rows, width]."""
        groups, patch, outputs = self.crossbar.shape
        first = top * self.stride[0]
        last = first + (rows - 1) * self.stride[0] + self.dilation[0] * (self.kernel_size[0] - 1)
        patches = functional.unfold(
            image[None, :, first : last + 1], self.kernel_size, dilation=self.dilation, stride=self.stride
        )
        vectors = patches.reshape(groups, patch, rows * width).transpose(1, 2)
        return self.crossbar.matmul(vectors).transpose(1, 2).reshape(groups * outputs, rows, width)


def _output_size(layer: AnalogConv2d, padded: Tensor, axis: int) -> int:
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    return int((padded.shape[2 + axis] - reach - 1) // layer.stride[axis]) + 1


def _padding(conv: nn.Conv2d) -> list[int]:
    """Left, right, top, bottom, in the order of functional.pad."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if conv.padding == "same":
        totals = [conv.dilation[axis] * (conv.kernel_size[axis] - 1) for axis in (1, 0)]
        return [side for total in totals for side in (total // 2, total - total // 2)]
    height, width = int(conv.padding[0]), int(conv.padding[1])
    return [width, width, height, height]
