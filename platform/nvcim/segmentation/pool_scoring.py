"""What an ensemble says of images without labels: uncertainty, descriptor and, where asked, the heat map."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.data.images import LabelledImage, Pixels, PlainImage
from nvcim.errors import DataError
from nvcim.segmentation.inference import PredictionSettings, predict_with_descriptor
from nvcim.segmentation.network import SegmentationNetwork, baked, normalise_colours
from nvcim.segmentation.suggestive import (
    UncertaintyOf,
    class_probability,
    image_uncertainty,
    mean_descriptor,
    pixel_uncertainty,
)

PoolImage = PlainImage | LabelledImage


class ScoringSettings(Settings):
    """How images of a pool are looked at."""

    uncertainty_of: UncertaintyOf = Field(
        default="object", description="class whose probability the networks may disagree on"
    )
    tile: int = Field(default=1280, ge=64, le=16384, description="larger images are seen in tiles, pixels")
    # On a CPU 2**17 was as fast as 2**18 and 2**19, and 1.7 times as fast as 2**20 (images of 256 x 256 pixels,
    # one thread, three runs each).
    batch_pixels: int = Field(
        default=2**17,
        ge=1,
        description="images of one size that follow each other are seen together up to that many pixels",
    )


@dataclass(frozen=True)
class PoolScores:
    """Scores of the images `names`: uncertainty float32 [images], descriptors float32 [images, D]."""

    names: tuple[str, ...]
    uncertainty: Tensor
    descriptors: Tensor


def score_pool(
    models: Sequence[SegmentationNetwork],
    images: Sequence[PoolImage],
    settings: ScoringSettings | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> PoolScores:
    """Let every network look at every image; images that follow each other in one size go through together.

    Images are taken from `images` once, in order, and let go when they are scored: a sequence that reads its
    images when it is asked for them never has more in memory than two batches.

    Image uncertainty is the mean over pixels of the standard deviation over networks; the descriptor is the
    mean over networks. An image's scores do not depend on the other images beyond float32 rounding.
    `on_image(done, total)` is called as images are done.

    Raises:
        DataError: no image, or fewer than two networks.
    """
    settings = settings or ScoringSettings()
    if not len(images):
        raise DataError("there is no image to score; every image is annotated already")
    models = [baked(model) for model in models]
    names: list[str] = []
    # Plain lists of floats: small tensors kept between the large ones' places would keep the heap from reusing them.
    uncertainty: list[float] = []
    descriptors: list[list[float]] = []
    for batch in _batches(images, settings.batch_pixels):
        outputs, described = _outputs(models, [image.pixels for image in batch], settings)
        names += [image.name for image in batch]
        uncertainty += image_uncertainty(outputs).tolist()
        descriptors += mean_descriptor(described).tolist()
        if on_image is not None:
            on_image(len(names), len(images))
    return PoolScores(tuple(names), torch.tensor(uncertainty), torch.tensor(descriptors))


def uncertainty_map(
    models: Sequence[SegmentationNetwork], pixels: Pixels, settings: ScoringSettings | None = None
) -> NDArray[np.float32]:
    """Return the standard deviation over networks at every pixel, [H, W] in 0..0.5, for pixels [H, W, 3].

    Raises:
        DataError: fewer than two networks.
    """
    outputs, _ = _outputs([baked(model) for model in models], [pixels], settings or ScoringSettings())
    return np.asarray(pixel_uncertainty(outputs)[0].numpy(), dtype=np.float32)


def _batches(images: Iterable[PoolImage], batch_pixels: int) -> Iterator[list[PoolImage]]:
    """Images that follow each other in one size, together up to so many pixels, at least one."""
    batch: list[PoolImage] = []
    for image in images:
        height, width, _ = image.pixels.shape
        full = (len(batch) + 1) * height * width > batch_pixels
        if batch and (full or batch[0].pixels.shape != image.pixels.shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _outputs(
    models: Sequence[SegmentationNetwork], pixels: Sequence[Pixels], settings: ScoringSettings
) -> tuple[Tensor, Tensor]:
    """Probabilities [networks, B, H, W] and descriptors [networks, B, D] of images of one size, on the CPU."""
    if max(pixels[0].shape[:2]) > settings.tile:
        seen = [_in_tiles(model, pixels, settings) for model in models]
    else:
        colours = normalise_colours(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
        seen = [_whole(model, colours, settings) for model in models]
    return torch.stack([outputs for outputs, _ in seen]), torch.stack(
        [descriptors for _, descriptors in seen]
    )


def _whole(model: SegmentationNetwork, colours: Tensor, settings: ScoringSettings) -> tuple[Tensor, Tensor]:
    """One network's probabilities [B, H, W] and descriptors [B, D] of normalised colours [B, 3, H, W]."""
    with torch.inference_mode():
        logits, descriptors = model(colours.to(next(model.parameters()).device))
        return class_probability(logits.softmax(dim=1), settings.uncertainty_of).cpu(), descriptors.cpu()


def _in_tiles(
    model: SegmentationNetwork, pixels: Sequence[Pixels], settings: ScoringSettings
) -> tuple[Tensor, Tensor]:
    """As `_whole`, tile by tile."""
    tiles = PredictionSettings(tile=settings.tile, overlap=min(64, settings.tile // 2))
    seen = [predict_with_descriptor(model, image, tiles) for image in pixels]
    outputs = torch.stack([class_probability(found, settings.uncertainty_of) for found, _ in seen])
    return outputs.cpu(), torch.stack([descriptor.reshape(-1) for _, descriptor in seen]).cpu()
