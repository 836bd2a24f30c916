"""U-Net (Ronneberger et al., 1505.04597), the familiar reference.

Every level: two 3x3 convolutions with batch norm and ReLU; max pooling on the way down, skip connections by
concatenation on the way up. It differs from the paper in padded convolutions (the label map has the image's
size), batch norm, and in going up by 1x1 convolution and interpolation where the paper has 2x2 transposed
convolutions, so that every weight is a `Conv2d`, which crossbars take.
"""

import itertools
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nvcim.segmentation.network import OutputSettings, SegmentationNetwork


class UNetSettings(OutputSettings):
    """Shape of the U-Net: level i (0 at full size) has width * 2^i channels. The paper's: width 64, depth 4."""

    kind: Literal["unet"] = "unet"
    width: int = Field(default=8, ge=2, le=256)
    depth: int = Field(default=4, ge=1, le=6, description="levels below the image's size, each halves it")


def _double_conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class UNet(SegmentationNetwork):
    """The network. `seed` decides the initial weights; its descriptor is the average of the lowest level."""

    settings: UNetSettings

    def __init__(self, settings: UNetSettings | None = None, seed: int = 0) -> None:
        settings = settings or UNetSettings()
        super().__init__(settings)
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        steps = list(itertools.pairwise(widths))
        self.top = _double_conv(3, widths[0])
        self.down = nn.ModuleList(_double_conv(above, below) for above, below in steps)
        self.lift = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in reversed(steps))
        self.up = nn.ModuleList(_double_conv(2 * above, above) for above, _ in reversed(steps))
        self.head = nn.Conv2d(widths[0], settings.classes, 1)
        self._initialise(seed)

    @property
    def stride(self) -> int:
        """2^depth pixels."""
        return int(2**self.settings.depth)

    @property
    def descriptor_dim(self) -> int:
        """Channels of the lowest level, width * 2^depth."""
        return int(self.settings.width * 2**self.settings.depth)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.top(x)
        skipped = []
        for level in self.down:
            skipped.append(features)
            features = level(F.max_pool2d(features, 2))
        descriptor = features.float().mean(dim=(2, 3))
        for lift, level in zip(self.lift, self.up, strict=True):
            # The 1x1 convolution commutes with the interpolation and costs a quarter below it.
            raised = F.interpolate(lift(features), scale_factor=2.0, mode="bilinear", align_corners=False)
            features = level(torch.cat([skipped.pop(), raised], dim=1))
        return self.head(features), descriptor
