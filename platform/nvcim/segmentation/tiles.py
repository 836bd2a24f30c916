"""Images larger than a tile: how tiles lie, how they blend, and networks run over them band by band.

A band is a row of tiles over the image's full width, so that memory grows with the width of an image and not
with its area. Tiles start at multiples of the network's stride: a network with strided stages treats two
positions alike only then, and a tile's inner pixels come out as they would from the whole image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.segmentation.network import SegmentationNetwork

Rows = Callable[[int, int], Tensor]
"""(top, bottom) -> those rows with normalised colours, float32 [3, bottom - top, W]."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size along one axis of an image, in pixels; the last one ends where the axis ends."""

    size: int
    starts: tuple[int, ...]


def tiling(length: int, tile: int, overlap: int, stride: int) -> Tiling:
    """Lay as few tiles as possible over `length` pixels (a multiple of `stride`), all of one size.

    Neighbours overlap by `overlap` or more. No tile is larger than `tile`, except where rounding to the stride
    would leave less than twice the overlap; where fewer pixels do, all are smaller, so that little is seen twice.
    """
    overlap = _up(overlap, stride)
    if length > tile:  # an axis that one tile takes in is seen whole whatever the stride
        tile = max(tile // stride * stride, 2 * overlap, stride)
    if length <= tile:
        return Tiling(length, (0,))
    count = math.ceil((length - overlap) / (tile - overlap))
    size = _up((length + (count - 1) * overlap) / count, stride)
    step = _up((length - size) / (count - 1), stride)
    # Rounded steps may arrive at the end before the last tile.
    return Tiling(size, tuple(dict.fromkeys(min(i * step, length - size) for i in range(count))))


def _up(length: float, stride: int) -> int:
    return math.ceil(length / stride) * stride


def ramp(size: int, overlap: int) -> Tensor:
    """Weight of a tile's rows or columns where tiles blend: float32 [size].

    1 inside, falling to exp(-4.5) at the edge as a Gaussian whose third deviation is the overlap's width.
    """
    if overlap == 0:
        return torch.ones(size)
    place = torch.arange(size, dtype=torch.float32)
    inside = torch.minimum(place, size - 1 - place) + 0.5
    return torch.exp(-4.5 * (1 - (inside / overlap).clamp(max=1.0)) ** 2)


@dataclass
class Seen:
    """What networks make of an image's tiles.

    Attributes:
        models: networks with the same classes, in evaluation mode on one device.
        flips: 1, 2 (also mirrored), 4 (and upside down) or 8 (and transposed) views of every tile.
        descriptors: sum over tiles of the first view's descriptor in the first network, [descriptor_dim].
        tiles: how many tiles that sum counts.
    """

    models: Sequence[SegmentationNetwork]
    flips: int = 1
    descriptors: Tensor | None = None
    tiles: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return mean class probabilities [B, classes, H, W] of tiles [B, 3, H, W]."""
        total: Tensor | None = None
        for model in self.models:
            for view in range(self.flips):
                logits, descriptor = model(_view(x, view))
                probabilities = _view_back(logits.softmax(dim=1), view)
                if total is None:
                    total = probabilities
                    summed = descriptor.sum(dim=0).cpu()
                    self.descriptors = summed if self.descriptors is None else self.descriptors + summed
                    self.tiles += len(descriptor)
                else:
                    total += probabilities
        assert total is not None, "at least one network"
        count = len(self.models) * self.flips
        return total / count if count > 1 else total


def _view(x: Tensor, view: int) -> Tensor:
    """The symmetry of the square whose bits are: mirror columns, mirror rows, transpose."""
    axes = [axis for axis, bit in ((3, 1), (2, 2)) if view & bit]
    x = x.flip(axes) if axes else x
    return x.transpose(2, 3) if view & 4 else x


def _view_back(x: Tensor, view: int) -> Tensor:
    x = x.transpose(2, 3) if view & 4 else x
    axes = [axis for axis, bit in ((3, 1), (2, 2)) if view & bit]
    return x.flip(axes) if axes else x


def probability_bands(
    seen: Seen, rows: Rows, shape: tuple[int, int], tile: int, overlap: int, batch: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, class probabilities [classes, rows, W] on the CPU) from top to bottom, every row once.

    `shape` is the image's (H, W). An image up to `tile` pixels in both directions is seen whole.
    """
    height, width = shape
    stride = max(model.stride for model in seen.models)
    down = tiling(_up(height, stride), max(tile, stride), overlap, stride)
    across = tiling(_up(width, stride), max(tile, stride), overlap, stride)
    weight = ramp(down.size, overlap)
    held: Tensor | None = None  # weighted sums of the rows that the next tiles see too
    held_weight = torch.zeros(0)
    for index, top in enumerate(down.starts):
        band = _padded(rows(top, min(top + down.size, height)), down.size, _up(width, stride))
        found = _across(seen, band, across, overlap, batch)[..., :width]
        if len(down.starts) == 1:
            yield 0, found[:, :height]
            return
        found *= weight[:, None]
        total = weight.clone()
        if held is not None:
            found[:, : held.shape[1]] += held
            total[: len(held_weight)] += held_weight
        end = down.starts[index + 1] - top if index + 1 < len(down.starts) else down.size
        held, held_weight = found[:, end:].clone(), total[end:]
        done = found[:, :end].div_(total[:end, None])
        yield top, done[:, : height - top]


def _padded(rows: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of [3, h, w] up to [1, 3, height, width], as networks do themselves."""
    h, w = rows.shape[1:]
    if (h, w) == (height, width):
        return rows[None]
    return torch.nn.functional.pad(rows[None], (0, width - w, 0, height - h), mode="replicate")


def _across(seen: Seen, band: Tensor, across: Tiling, overlap: int, batch: int) -> Tensor:
    """Class probabilities [classes, h, w] of a band [1, 3, h, w] that is one tile high."""
    device = next(seen.models[0].parameters()).device
    if len(across.starts) == 1:
        return seen(band.to(device))[0].cpu()
    # MONAI takes seconds to import, and images of one tile do without it.
    from monai.inferers.utils import sliding_window_inference

    height, step = band.shape[2], across.starts[1]
    # MONAI takes int(size * (1 - overlap)) as its step: half a pixel more keeps it from rounding down.
    share = max(1 - (step + 0.5) / across.size, 0.0)
    found = sliding_window_inference(
        band,
        (height, across.size),
        batch,
        seen,
        overlap=(0.0, share),
        sw_device=device,
        device=band.device,
        roi_weight_map=ramp(across.size, overlap).expand(height, -1),
    )
    assert isinstance(found, Tensor)
    return found[0]
