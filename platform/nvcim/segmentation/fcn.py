"""A residual fully convolutional network with two outputs: a label map and an image descriptor.

After suggestive annotation's FCN (Yang et al., 2017, as far as it is described): a strided stem, encoder
stages of max pooling and bottleneck residual blocks, every scale brought up on its own and fused by a
convolution. The descriptor is the average of the last encoder stage. Two choices differ so that every weight
is a `Conv2d`, which crossbars take: scales are brought up by 1x1 convolution and interpolation instead of
transposed convolutions, and the last step from half to full size rearranges channels to pixels.
"""

import itertools
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nvcim.segmentation.network import OutputSettings, SegmentationNetwork


class FCNSettings(OutputSettings):
    """Shape of the network; the default is small enough for two CPU cores.

    Stage i of the encoder (i = 0 is the stem, at half the image's size) has width * 2^i channels, at most
    `max_width` and `descriptor_dim`; the last bottleneck of the last stage widens to `descriptor_dim`.

    The paper's descriptor has 1024 numbers. In this small network that makes a training step about 8 % longer
    (one thread, crops of 128) but the maps worse: after 400 steps on three quarters of dsb2018, object F1 and
    Dice of 70 other images were 0.730 and 0.786 with 1024, 0.761 and 0.816 with 64 (means of two seeds).
    """

    kind: Literal["fcn"] = "fcn"
    width: int = Field(default=16, ge=4, le=256)
    depth: int = Field(default=4, ge=1, le=6, description="stages after the stem, each halves the size")
    max_width: int = Field(default=64, ge=4, le=4096, description="most channels of a stage")
    descriptor_dim: int = Field(default=64, ge=4, le=4096)
    fused_width: int = Field(default=32, ge=4, le=1024, description="channels where all scales meet")


PAPER_FCN = FCNSettings(width=64, depth=5, max_width=1024, descriptor_dim=1024, fused_width=208)
"""The paper-sized network: 17.3 M parameters, six scales, total stride 64, descriptor of 1024.

Suggestive annotation's paper gives no table of layers. A public guess of them (PyTorch, its author calls the
paper vague) has 17.3 M as well: 12.3 M in an encoder of 256, 512, 1024, 1024 and 1024 channels whose bottlenecks
narrow to a quarter, 4.9 M in chains of transposed convolutions. Here bottlenecks narrow to a half, the first
stages are narrower, and the decoder is the one above, so that 16.2 M are the encoder's.
"""


class _Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, plus a shortcut (1x1 where the channel count changes).

    Inside are half the output's channels, at most twice the input's, so that widening stays cheap.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        inner = max(min(channels_out // 2, 2 * channels_in), 4)
        self.reduce = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.reduce(x)))
        inner = F.relu(self.norm2(self.spatial(inner)))
        return F.relu(self.norm3(self.expand(inner)) + self.shortcut(x))


class ResidualFCN(SegmentationNetwork):
    """The network. `seed` decides the initial weights; nothing else does."""

    settings: FCNSettings

    def __init__(self, settings: FCNSettings | None = None, seed: int = 0) -> None:
        settings = settings or FCNSettings()
        super().__init__(settings)
        widest = min(settings.max_width, settings.descriptor_dim)
        widths = [min(settings.width * 2**i, widest) for i in range(settings.depth + 1)]
        outputs = [*widths[:-1], settings.descriptor_dim]
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(_Bottleneck(above, width), _Bottleneck(width, output))
            for (above, width), output in zip(itertools.pairwise(widths), outputs[1:], strict=True)
        )
        fused = settings.fused_width
        self.lateral = nn.ModuleList(nn.Conv2d(output, fused, 1) for output in outputs)
        self.fuse = nn.Conv2d(fused, fused, 3, padding=1, bias=False)
        self.fuse_norm = nn.BatchNorm2d(fused)
        self.head = nn.Conv2d(fused, 4 * settings.classes, 3, padding=1)
        self._initialise(seed)

    @property
    def stride(self) -> int:
        """Total stride of the encoder in pixels; inputs are padded to a multiple of it."""
        return int(2 ** (self.settings.depth + 1))

    @property
    def descriptor_dim(self) -> int:
        """As the settings say."""
        return self.settings.descriptor_dim

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.stem_norm(self.stem(x)))
        half_size = features.shape[-2:]
        summed = self.lateral[0](features)
        for stage, lateral in zip(self.stages, list(self.lateral)[1:], strict=True):
            features = stage(F.max_pool2d(features, 2))
            raised = F.interpolate(lateral(features), size=half_size, mode="bilinear", align_corners=False)
            summed = summed + raised
        fused = F.relu(self.fuse_norm(self.fuse(F.relu(summed))))
        return F.pixel_shuffle(self.head(fused), 2), features.float().mean(dim=(2, 3))
