"""A convolution as reads of a crossbar: one input vector per output position.

A patch is a vector in the order (kernel row, kernel column, channel). In an image that holds its channels side by side
a patch is then a few runs of memory, so patches are strided views that are gathered a cache-sized band at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad

from nvcim.analog.straight_through import Reader, held_weight
from nvcim.crossbar import Crossbar
from nvcim.crossbar.patches import drive_patches
from nvcim.errors import ConfigError
from nvcim.quantization.computed import in_eval_mode

Layout = torch.memory_format

# Patch elements gathered at once per thread (2 MiB of float32): they stay in its cache until the tiles have read them.
_PATCH_ELEMENTS = 2**19


@dataclass(frozen=True)
class Convolution:
    """Shape of a convolution; (height, width) each. `padding` is left, right, top, bottom.

    `channels_last`: whether the digital layer's weight lies so in memory, which its outputs then do too.
    """

    in_channels: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    padding_mode: str
    channels_last: bool = False

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Convolution":
        """The shape of a digital layer."""
        pairs = {name: _pair(getattr(conv, name)) for name in ("kernel_size", "stride", "dilation")}
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        with in_eval_mode(conv):  # in training, reading a parametrized weight may change it
            last = _channels_last(conv.weight)
        return cls(
            conv.in_channels,
            conv.groups,
            **pairs,
            padding=_padding(conv),
            padding_mode=mode,
            channels_last=last,
        )

    def layout_for(self, x: Tensor) -> Layout:
        """How torch's own convolution of images [batch, channels, h, w] lays its output out in memory."""
        return torch.channels_last if self.channels_last or _channels_last(x) else torch.contiguous_format

    def padded(self, x: Tensor) -> Tensor:
        """Pad images [batch, in_channels, h, w]; the channels of the result lie side by side in memory.

        Raises:
            ConfigError: another number of channels, integers, or an image smaller than the kernel.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(f"input has shape {tuple(x.shape)}; expected [batch, {self.in_channels}, h, w]")
        if not x.is_floating_point():
            raise ConfigError(f"input has type {x.dtype}; a crossbar takes floating point")
        if self.padding_mode == "constant":
            padded = _zero_padded(x, self.padding)
        else:
            padded = functional.pad(x, self.padding, mode=self.padding_mode)
            padded = padded.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        if min(self.output_size(padded)) < 1:
            raise ConfigError(f"input has shape {tuple(x.shape)}, too small for kernel {self.kernel_size}")
        return padded

    def output_size(self, padded: Tensor) -> tuple[int, int]:
        """Height and width of the output for padded images."""
        height, width = (
            (padded.shape[2 + axis] - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return height, width

    def patches(self, padded: Tensor) -> Tensor:
        """View of all patches of padded images: [batch, h out, w out, groups, k height, k width, channels]."""
        batch, (height, width) = len(padded), self.output_size(padded)
        image, channel, row, column = padded.stride()
        per_group = self.in_channels // self.groups
        return padded.as_strided(
            (batch, height, width, self.groups, *self.kernel_size, per_group),
            (
                *(image, row * self.stride[0], column * self.stride[1], channel * per_group),
                *(row * self.dilation[0], column * self.dilation[1], channel),
            ),
        )

    def matrix(self, weight: Tensor) -> Tensor:
        """Weights [out, in / groups, k height, k width] as matrices [groups, patch, out / groups]."""
        return torch.unflatten(weight, 0, (self.groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 3)

    def kernels(self, matrix: Tensor) -> Tensor:
        """`matrix` undone: [groups, patch, out / groups] -> [out, in / groups, k height, k width]."""
        parts = torch.unflatten(matrix, 1, (*self.kernel_size, self.in_channels // self.groups))
        return parts.permute(0, 4, 3, 1, 2).flatten(0, 1)


def read_convolution(
    shape: Convolution,
    read: Reader | None,
    crossbar: Crossbar,
    padded: Tensor,
    bias: Tensor | None,
    layout: Layout,
) -> Tensor:
    """Read a crossbar once per output position, in the order of images, rows and columns.

    Args:
        shape: of the convolution.
        read: in place of `Crossbar.matmul`.
        crossbar: [groups, patch, out / groups].
        padded: as `Convolution.padded` gives it.
        bias: [out], or None.
        layout: of the result in memory.

    Returns:
        [batch, out, h, w].
    """
    (height, width), (groups, _, outputs) = shape.output_size(padded), crossbar.shape
    size = (len(padded), groups * outputs, height, width)
    result = torch.empty(size, dtype=padded.dtype, device=padded.device, memory_format=layout)
    grouped = torch.unflatten(result, 1, (groups, outputs))
    added = None if bias is None else bias.to(result.dtype).reshape(groups, outputs, 1, 1)
    patches = shape.patches(padded)
    for images, rows in _bands(patches):
        band = patches[images, rows]
        y = torch.unflatten(_read_band(band, read, crossbar), 1, band.shape[:3]).permute(1, 0, 4, 2, 3)
        to = grouped[images, :, :, rows]
        to.copy_(y) if added is None else torch.add(y, added, out=to)
    return result


def read_convolution_straight_through(
    shape: Convolution,
    read: Reader | None,
    crossbar: Crossbar,
    padded: Tensor,
    bias: Tensor | None,
    layout: Layout,
    master: Tensor | None = None,
) -> Tensor:
    """`read_convolution` with gradients to `padded`, to `bias` and to `master`, of the crossbar's shape, if given."""
    read_once = partial(read_convolution, shape, read, crossbar, layout=layout)
    return _ReadConvolution.apply(padded, bias, master, shape, crossbar, read_once)  # type: ignore[no-any-return, no-untyped-call]


class _ReadConvolution(torch.autograd.Function):
    """The formulas of `straight_through`, whose sums over patches are convolutions."""

    @staticmethod
    def forward(
        ctx: Any,
        padded: Tensor,
        bias: Tensor | None,
        master: Tensor | None,
        shape: Convolution,
        crossbar: Crossbar,
        read_once: Callable[..., Tensor],
    ) -> Tensor:
        """Read, and remember what was written."""
        ctx.save_for_backward(padded if master is not None and master.requires_grad else None)
        ctx.held, ctx.shape, ctx.size = held_weight(crossbar), shape, padded.shape
        ctx.dtypes = [None if one is None else one.dtype for one in (padded, bias, master)]
        return read_once(padded, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Transposed convolutions with what the cells hold, and correlations with the inputs."""
        (padded,), shape = ctx.saved_tensors, ctx.shape
        to_x, to_bias, to_master = None, None, None
        gradient = gradients[0].to(torch.promote_types(gradients[0].dtype, torch.float32))
        how = shape.stride, (0, 0), shape.dilation, shape.groups
        held = shape.kernels(ctx.held()).to(gradient.dtype)
        if ctx.needs_input_grad[0]:
            to_x = grad.conv2d_input(ctx.size, held, gradient, *how).to(ctx.dtypes[0])  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            to_bias = gradient.sum(dim=(0, 2, 3)).to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            found = grad.conv2d_weight(padded.to(gradient.dtype), held.shape, gradient, *how)  # type: ignore[no-untyped-call]
            to_master = shape.matrix(found).to(ctx.dtypes[2])
        return to_x, to_bias, to_master, None, None, None


def _zero_padded(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Images [batch, channels, h, w] in a frame of zeros; channels side by side, in one pass over memory."""
    left, right, top, bottom = padding
    batch, channels, height, width = x.shape
    frame = x.new_zeros(batch, height + top + bottom, width + left + right, channels)
    frame[:, top : top + height, left : left + width] = x.permute(0, 2, 3, 1)
    return frame.permute(0, 3, 1, 2)


def _read_band(band: Tensor, read: Reader | None, crossbar: Crossbar) -> Tensor:
    """Outputs [groups, vectors, out / groups] for some patches."""
    if read is None and crossbar.config.read_mode == "output":
        return crossbar.read_driven(drive_patches(band.to(torch.float32), crossbar.config))
    vectors = band.permute(3, 0, 1, 2, 4, 5, 6).reshape(band.shape[3], -1, crossbar.in_features)
    return (read or Crossbar.matmul)(crossbar, vectors)


def _channels_last(x: Tensor) -> bool:
    """Whether strides rise in the order of channels_last, gaps allowed: torch's own rule (c10/core/MemoryFormat.h)."""
    if x.dim() != 4 or 0 in x.shape or x.stride(1) == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if x.stride(axis) < least or (axis == 0 and least == x.stride(1)):
            return False
        least = x.stride(axis) * x.shape[axis]
    return True


def _bands(patches: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and rows of them that are gathered at once: whole images, or some rows of one."""
    batch, height = patches.shape[:2]
    per_row = patches[0, 0].numel() if batch else 1
    some = max(1, _PATCH_ELEMENTS * torch.get_num_threads() // per_row)
    images, rows = (some // height, height) if some >= height else (1, some)
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            yield slice(image, image + images), slice(row, row + rows)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    height, width = value
    return height, width


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, in the order of functional.pad."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        wide, tall = (conv.dilation[axis] * (conv.kernel_size[axis] - 1) for axis in (1, 0))
        return wide // 2, wide - wide // 2, tall // 2, tall - tall // 2
    height, width = int(conv.padding[0]), int(conv.padding[1])
    return width, width, height, height
