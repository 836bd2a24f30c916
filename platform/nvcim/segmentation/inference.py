"""Class probabilities of images of any size: tiles, flipped views, and the mean over an ensemble."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from nvcim.data.images import Pixels
from nvcim.data.large_images import ArrayImage, ImageRows
from nvcim.errors import DataError, ModelError
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.segmentation.splitting import SplittingSettings
from nvcim.segmentation.tiles import Seen, probability_bands

Models = SegmentationNetwork | Sequence[SegmentationNetwork]


class PredictionSettings(SplittingSettings):
    """How an image is turned into probabilities, and these into instances.

    `scale` resizes the image before the network sees it, for photographs at another magnification than the
    training images; the instances come back at the image's own size.
    """

    scale: float = Field(default=1.0, gt=0.0, le=8.0)
    tile: int = Field(
        default=1280, ge=64, le=16384, description="pixels; an image up to this size is seen whole"
    )
    overlap: int = Field(
        default_factory=lambda given: min(64, given.get("tile", 1280) // 4),
        ge=0,
        description="pixels that neighbouring tiles share and blend over; 64, or a quarter of a smaller tile",
    )
    batch: int = Field(
        default=1,
        ge=1,
        description="tiles in one forward pass; changes probabilities by float32 rounding only, up to about 2e-5",
    )
    flips: Literal[1, 2, 4, 8] = Field(
        default=1, description="views averaged: 1 as is, 2 mirrored too, 4 upside down too, 8 transposed too"
    )

    @model_validator(mode="after")
    def _tiles_overlap_by_less_than_half(self) -> "PredictionSettings":
        if 2 * self.overlap > self.tile:
            raise ValueError(f"overlap must be at most half the tile, given {self.overlap} of {self.tile}")
        return self


def predict_probabilities(
    models: Models, pixels: Pixels, settings: PredictionSettings | None = None
) -> Tensor:
    """Return class probabilities [classes, H, W] (float32, CPU) of an image [H, W, 3], any H and W.

    Several networks and flipped views are averaged. The networks are put in evaluation mode and used on the
    device they are on, as they are handed in.

    Raises:
        DataError: not an RGB image, or an empty one.
        ModelError: as `ensemble`.
    """
    settings = settings or PredictionSettings()
    image = ArrayImage(pixels)
    found = torch.empty(0)
    for top, band in bands_of(Seen(ensemble(models), settings.flips), image, settings):
        if len(found) == 0:
            found = torch.empty(len(band), image.height, image.width)
        found[:, top : top + band.shape[1]] = band
    return found


def predict_with_descriptor(
    model: SegmentationNetwork, pixels: Pixels, settings: PredictionSettings | None = None
) -> tuple[Tensor, Tensor]:
    """Return (class probabilities [classes, H, W], descriptor [descriptor_dim]) of an image [H, W, 3].

    The descriptor is the network's own for an image seen whole, and the mean over tiles for a larger one.

    Raises:
        DataError, ModelError: as `predict_probabilities`.
    """
    settings = settings or PredictionSettings()
    seen = Seen(ensemble(model), settings.flips)
    bands = [band for _, band in bands_of(seen, ArrayImage(pixels), settings)]
    assert seen.descriptors is not None
    return torch.cat(bands, dim=1), seen.descriptors / seen.tiles


def ensemble(models: Models) -> tuple[SegmentationNetwork, ...]:
    """Return the networks in evaluation mode.

    Raises:
        ModelError: no network, or networks that differ in their classes or in the contours they were trained on.
    """
    several = (models,) if isinstance(models, SegmentationNetwork) else tuple(models)
    classes = {model.settings.classes for model in several}
    if len(classes) != 1:
        found = f"classes {sorted(classes)}" if classes else "no network"
        raise ModelError(f"an ensemble needs networks with the same classes, given {found}")
    widths = {model.settings.contour_width for model in several}
    if len(widths) != 1 and classes == {3}:  # without that class nothing grows by the contour's width
        raise ModelError(
            f"an ensemble needs networks with the same contour_width, given contour_width {sorted(widths)}"
        )
    for model in several:
        model.eval()
    return several


def bands_of(seen: Seen, image: ImageRows, settings: PredictionSettings) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, class probabilities [classes, rows, W]) of an image, from top to bottom.

    Colours are normalised by mean and deviation of the whole image, whatever the tiles.

    Raises:
        DataError: the image cannot be read, or is too large to be resized in memory.
    """
    mean, deviation = image.colour_statistics()
    centre, spread = torch.from_numpy(mean)[:, None, None], torch.from_numpy(deviation)[:, None, None]

    def rows(top: int, bottom: int) -> Tensor:
        values = torch.from_numpy(image.rows(top, bottom)).permute(2, 0, 1).float()
        return values.sub_(centre).div_(spread)

    size = (image.height, image.width)
    limits = (settings.tile, settings.overlap, settings.batch)
    scaled = (max(round(size[0] * settings.scale), 1), max(round(size[1] * settings.scale), 1))
    with torch.inference_mode():
        if scaled == size:
            yield from probability_bands(seen, rows, size, *limits)
            return
        if max(size[0] * size[1], scaled[0] * scaled[1]) > _RESIZED_PIXELS:
            raise DataError(
                f"an image of {size[1]}x{size[0]} pixels is too large to be seen at scale {settings.scale:g} "
                f"(at most {_RESIZED_PIXELS} pixels before and after)"
            )
        small = F.interpolate(
            rows(0, size[0])[None], size=scaled, mode="bilinear", align_corners=False, antialias=True
        )[0]
        bands = [b for _, b in probability_bands(seen, lambda a, b: small[:, a:b], scaled, *limits)]
        whole = torch.cat(bands, dim=1)[None]
        yield 0, F.interpolate(whole, size=size, mode="bilinear", align_corners=False)[0]


# Resizing holds the image as float32 at both sizes: 12 bytes a pixel each, and as much for its classes.
_RESIZED_PIXELS = 36_000_000
