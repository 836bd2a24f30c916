"""What every segmentation network has in common: classes, inputs of any size, quantized weights.

A network takes images with normalised colours and returns a label map and an image descriptor; training,
inference, suggestive annotation and crossbars need no more of it than stands here.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nvcim.config import Settings
from nvcim.quantization import Quantizer, inference_copy
from nvcim.randomness import named_generator

CLASSES = ("background", "object", "contour")


class OutputSettings(Settings):
    """What a network predicts; the settings of every architecture start from these.

    With two classes (the first two of `CLASSES`) an object's edge is object; with three it is contour, which
    is what holds touching objects apart.
    """

    classes: Literal[2, 3] = 3
    contour_width: int = Field(
        default=3, ge=1, le=50, description="pixels of an object's edge that are contour"
    )


class SegmentationNetwork(nn.Module, ABC):
    """Base of the networks. Subclasses build their layers, then call `_initialise`.

    `smallest_object` (pixels) is learnt from the training masks: what is smaller is not predicted.
    `quantizer` names what the weights are held in, None for float32.
    """

    def __init__(self, settings: OutputSettings) -> None:
        super().__init__()
        self.settings = settings
        self.smallest_object = 1
        self.quantizer: Quantizer | None = None

    @property
    @abstractmethod
    def stride(self) -> int:
        """Total stride of the encoder in pixels; inputs are padded to a multiple of it."""

    @property
    @abstractmethod
    def descriptor_dim(self) -> int:
        """Length of the image descriptor."""

    @abstractmethod
    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, descriptor) of images [B, 3, H, W] whose sides are multiples of the stride."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, descriptor).

        x: [B, 3, H, W], H and W at least 1, colours normalised as `normalise_colours` does.
        Returns: logits [B, classes, H, W] in the order of `CLASSES`, descriptor [B, descriptor_dim].
        """
        height, width = x.shape[-2:]
        down, right = -height % self.stride, -width % self.stride
        padded = F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
        # With the channels side by side in memory a training step of the default networks takes 0.6 to 0.7
        # of the time on a CPU; crossbars gather their inputs in that order, too.
        logits, descriptor = self._map(padded.contiguous(memory_format=torch.channels_last))
        return logits[..., :height, :width], descriptor

    def quantize(self, quantizer: Quantizer) -> None:
        """Put a quantizer on the weights; `train` then walks through its stages.

        Raises:
            ModelError: the weights are quantized already.
        """
        quantizer.attach(self)
        self.quantizer = quantizer

    def _initialise(self, seed: int) -> None:
        """Draw the weights (He's normal initialisation, 1502.01852); `seed` decides them, nothing else does."""
        generator = named_generator(seed, "segmentation", "weights")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def baked(model: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy to predict with: plain weights, equal to the quantized ones to the last bit, no quantizer.

    In the middle of INQ's schedule these are the weights as they are then, some of them not on a level yet.

    Raises:
        ModelError: as `inference_copy`.
    """
    copied = inference_copy(model)
    assert isinstance(copied, SegmentationNetwork)
    copied.quantizer = None
    return copied


def normalise_colours(pixels: Tensor) -> Tensor:
    """Give every channel of every image mean 0 and deviation 1, so that stain strength and lamp drop out.

    pixels: [B, 3, H, W], any scale; returns float32 of the same shape (zeros for an image of one colour).
    """
    values = pixels.float()
    mean = values.mean(dim=(2, 3), keepdim=True)
    deviation = values.std(dim=(2, 3), keepdim=True, unbiased=False)
    return (values - mean) / torch.clamp(deviation, min=1e-3 * 255)
