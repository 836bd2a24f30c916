"""Random crops as other microscopes, stains and positions of the slide would have given them.

Geometry (place, zoom, rotation, elastic deformation) is one map of coordinates, read bilinearly for pixels and
by nearest neighbour for classes, so both move together and each pixel is interpolated once. Appearance
(stain, gamma, inversion) acts on raw intensities and is followed by the normalisation that prediction does,
over the whole image so changed; a change that normalisation takes out again (brightness, contrast) is no use
here and is not offered.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from nvcim.config import Settings
from nvcim.data.images import LabelledImage, Pixels
from nvcim.segmentation.targets import numbered_anew, pixel_classes

_COLOURED = 8  # grey levels by which channels differ in a coloured image, beyond what JPEG does to a grey one
_SAMPLED_SIDE = (
    32  # an image's statistics after a change of appearance are taken from this many rows, columns
)


class AugmentationSettings(Settings):
    """How strongly crops are varied; 0 (1 for the zoom) turns a variation off."""

    mirror: float = Field(default=0.5, ge=0.0, le=1.0, description="probability of a mirror image")
    quarter_turns: float = Field(default=1.0, ge=0.0, le=1.0, description="probability of 0, 90, 180 or 270")
    rotation: float = Field(default=0.0, ge=0.0, le=180.0, description="degrees, uniform to both sides")
    zoom: float = Field(default=1.25, ge=1.0, le=4.0, description="crops are resized by 1/zoom..zoom")
    elastic: float = Field(default=0.0, ge=0.0, le=50.0, description="deviation of control points, pixels")
    elastic_spacing: float = Field(default=32.0, ge=4.0, description="distance of control points, pixels")
    stain: float = Field(
        default=0.1, ge=0.0, le=1.0, description="spread of each stain's amount, coloured images only"
    )
    gamma: float = Field(default=0.0, ge=0.0, le=2.0, description="deviation of log gamma, grey images only")
    inversion: float = Field(default=0.0, ge=0.0, le=1.0, description="probability of a negative")
    colour_mixing: float = Field(default=0.15, ge=0.0, le=1.0, description="random mixing of channels")
    blur: float = Field(default=0.0, ge=0.0, le=5.0, description="largest Gaussian blur, pixels")
    noise: float = Field(default=0.0, ge=0.0, le=2.0, description="largest noise, image deviations")


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for cropping; made once per training.

    pixels: uint8 or float32 [3, H, W]; classes: uint8 [H, W]; centres: float32 [objects, 2], row and column of each
    object's centre; sample: float32 [3, n], pixels on a grid over the whole image; mean, deviation: [3, 1, 1]
    of the whole image; coloured: stained, not grey.
    """

    pixels: Tensor
    classes: Tensor
    centres: Tensor
    sample: Tensor
    mean: Tensor
    deviation: Tensor
    coloured: bool


def prepare_image(image: LabelledImage, classes: int, contour_width: int) -> PreparedImage:
    """Return an image ready for cropping, with the pixel classes that a network of `classes` learns."""
    pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1).contiguous()
    rows, columns = (max(side // _SAMPLED_SIDE, 1) for side in image.instances.shape)
    values = pixels.float()
    mean, deviation = _statistics(values.flatten(1))
    return PreparedImage(
        pixels=pixels,
        classes=torch.from_numpy(pixel_classes(image.instances, classes, contour_width).astype(np.uint8)),
        centres=torch.from_numpy(_centres(image.instances)),
        sample=values[:, rows // 2 :: rows, columns // 2 :: columns].flatten(1),
        mean=mean,
        deviation=deviation,
        coloured=is_coloured(image.pixels),
    )


def is_coloured(pixels: Pixels) -> bool:
    """Whether an image [H, W, 3] is stained: channels differ visibly in a hundredth of its pixels."""
    spread = pixels.max(axis=2).astype(np.float32) - pixels.min(axis=2)
    return bool((spread > _COLOURED).mean() > 0.01)


def draw_crop(
    image: PreparedImage,
    side: int,
    settings: AugmentationSettings,
    generator: torch.Generator,
    object_centred: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return an augmented square crop: normalised pixels float32 [3, side, side], classes int64 [side, side].

    With probability `object_centred` it lies around an object drawn at random, else anywhere. Beyond the
    image's border it goes on in mirror image.
    """
    grid = _coordinates(image, side, settings, generator, object_centred)
    pixels, classes = _read(image, grid)
    if _uniform(generator) < settings.quarter_turns:
        turns = int(torch.randint(4, (), generator=generator))
        pixels, classes = pixels.rot90(turns, (1, 2)), classes.rot90(turns, (0, 1))
    if _uniform(generator) < settings.mirror:
        pixels, classes = pixels.flip(2), classes.flip(1)
    return _vary_appearance(image, pixels, settings, generator), classes.long()


def whole_crop(image: PreparedImage, side: int) -> tuple[Tensor, Tensor]:
    """Return the middle of an image, at most `side` wide and high, as it is: normalised pixels and classes.

    Returns: float32 [3, h, w] and int64 [h, w], with h and w the smaller of the image's and `side`.
    """
    height, width = image.classes.shape
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    window = (slice(top, top + side), slice(left, left + side))
    pixels = (image.pixels[(slice(None), *window)].float() - image.mean) / image.deviation
    return pixels, image.classes[window].long()


def jitter_stains(pixels: Tensor, amounts: Tensor, offsets: Tensor) -> Tensor:
    """Change the amount of each stain in light microscopy: intensities 0..255 [3, ...] to the same shape.

    Light falls off exponentially with the amount of stain (Beer-Lambert), so the optical density -log10(I/255)
    is a sum over stains; it is taken apart with the stain vectors of Ruifrok and Johnston (2001) for
    haematoxylin, eosin and DAB as scikit-image holds them. Each stain's amount c becomes amount * c + offset,
    as in HED augmentation (Tellez et al., 2018, 1902.06543).

    amounts, offsets: [3], in that order of the stains; 1 and 0 change nothing.
    """
    from skimage.color import hed_from_rgb, rgb_from_hed  # takes a while to load, and grey images need none

    density = -torch.log10(pixels.clamp(1.0, 255.0) / 255.0)
    flat = density.flatten(1).T
    apart = torch.as_tensor(np.asarray(hed_from_rgb, dtype=np.float32))
    together = torch.as_tensor(np.asarray(rgb_from_hed, dtype=np.float32))
    stains = flat @ apart * amounts + offsets
    changed = 255.0 * torch.pow(10.0, -(stains @ together))
    return changed.clamp(0.0, 255.0).T.reshape(pixels.shape)


def _coordinates(
    image: PreparedImage,
    side: int,
    settings: AugmentationSettings,
    generator: torch.Generator,
    object_centred: float,
) -> Tensor:
    """Where each pixel of the crop is read: [side, side, 2], x and y in pixels of the image (centres at .5)."""
    height, width = image.classes.shape
    covered = round(side * _between(1 / settings.zoom, settings.zoom, generator))
    # Whole-pixel corners, so that a crop that is neither zoomed nor turned is not blurred either.
    corner = [_corner(size, covered, generator) for size in (height, width)]
    if _uniform(generator) < object_centred and len(image.centres):
        chosen = image.centres[int(torch.randint(len(image.centres), (), generator=generator))]
        corner = [
            min(max(round(float(middle)) - covered // 2, 0), size - covered) if size > covered else start
            for middle, size, start in zip(chosen, (height, width), corner, strict=True)
        ]
    steps = (torch.arange(side, dtype=torch.float32) + 0.5) * (covered / side) - covered / 2
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    if settings.rotation:
        angle = math.radians(settings.rotation) * _between(-1.0, 1.0, generator)
        cosine, sine = math.cos(angle), math.sin(angle)
        grid = grid @ torch.tensor([[cosine, sine], [-sine, cosine]])
    if settings.elastic:
        grid = grid + _elastic(side, settings, generator)
    return grid + torch.tensor([corner[1] + covered / 2, corner[0] + covered / 2])


def _corner(size: int, covered: int, generator: torch.Generator) -> int:
    """Where a window of `covered` pixels begins on an axis of `size`; one that is too large sits centred."""
    if size <= covered:
        return (size - covered) // 2
    return int(torch.randint(size - covered + 1, (), generator=generator))


def _elastic(side: int, settings: AugmentationSettings, generator: torch.Generator) -> Tensor:
    """Smooth displacements [side, side, 2] in pixels: normal at control points, bicubic in between."""
    points = max(math.ceil(side / settings.elastic_spacing), 1) + 3
    control = settings.elastic * torch.randn(1, 2, points, points, generator=generator)
    field = F.interpolate(control, size=(side, side), mode="bicubic", align_corners=True)
    return field[0].permute(1, 2, 0)


def _read(image: PreparedImage, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Read an image at coordinates [C, C, 2]: pixels float32 [3, C, C], classes uint8 [C, C]."""
    # Only the part that is needed is turned to floating point.
    spans = []
    for axis, size in ((1, image.classes.shape[0]), (0, image.classes.shape[1])):
        low, high = float(grid[..., axis].min()), float(grid[..., axis].max())
        start = min(max(math.floor(low) - 2, 0), size - 1)
        spans.append((start, min(max(math.ceil(high) + 2, start + 1), size)))
    (top, bottom), (left, right) = spans
    scale = torch.tensor([2.0 / (right - left), 2.0 / (bottom - top)])
    where = ((grid - torch.tensor([left, top], dtype=torch.float32)) * scale - 1.0)[None]
    pixels = image.pixels[None, :, top:bottom, left:right].float()
    classes = image.classes[None, None, top:bottom, left:right].float()
    read = [
        F.grid_sample(field, where, mode=mode, padding_mode="reflection", align_corners=False)[0]
        for field, mode in ((pixels, "bilinear"), (classes, "nearest"))
    ]
    return read[0], read[1][0].to(torch.uint8)


def _vary_appearance(
    image: PreparedImage, pixels: Tensor, settings: AugmentationSettings, generator: torch.Generator
) -> Tensor:
    """Change and normalise a crop's intensities 0..255 [3, C, C] as if the whole image had been changed."""
    sample, mean, deviation = image.sample, image.mean, image.deviation
    changed = False
    if image.coloured and settings.stain:
        amounts = 1.0 + settings.stain * (2.0 * torch.rand(3, generator=generator) - 1.0)
        offsets = settings.stain * (2.0 * torch.rand(3, generator=generator) - 1.0)
        pixels, sample = (jitter_stains(x, amounts, offsets) for x in (pixels, sample))
        changed = True
    elif not image.coloured and settings.gamma:
        power = math.exp(settings.gamma * float(torch.randn((), generator=generator)))
        pixels, sample = (255.0 * (x.clamp(min=0) / 255.0).pow(power) for x in (pixels, sample))
        changed = True
    if settings.inversion and _uniform(generator) < settings.inversion:
        pixels, mean = 255.0 - pixels, 255.0 - mean
        sample = 255.0 - sample
    if changed:
        mean, deviation = _statistics(sample)
    pixels = (pixels - mean) / deviation
    if settings.colour_mixing:
        mixing = torch.eye(3) + settings.colour_mixing * torch.randn(3, 3, generator=generator)
        shift = settings.colour_mixing * torch.randn(3, 1, 1, generator=generator)
        pixels = torch.einsum("ij,jhw->ihw", mixing, pixels) + shift
    if settings.blur:
        pixels = _blurred(pixels, settings.blur * _uniform(generator))
    if settings.noise:
        strength = settings.noise * _uniform(generator)
        pixels = pixels + strength * torch.randn(pixels.shape, generator=generator)
    return pixels


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of [3, n], both [3, 1, 1], as `normalise_colours` takes them."""
    deviation = values.std(dim=1, unbiased=False).clamp(min=1e-3 * 255)
    return values.mean(dim=1).view(3, 1, 1), deviation.view(3, 1, 1)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [3, H, W], the border mirrored; below a fifth of a pixel nothing happens."""
    if sigma < 0.2:
        return pixels
    blurred = ndimage.gaussian_filter(pixels.numpy(), (0.0, sigma, sigma), mode="reflect", truncate=3.0)
    return torch.from_numpy(blurred)


def _centres(instances: NDArray[np.int32]) -> NDArray[np.float32]:
    """Middle of each object's bounding box, row and column, float32 [objects, 2]."""
    boxes = [box for box in ndimage.find_objects(numbered_anew(instances)) if box is not None]
    centres = [[(part.start + part.stop) / 2 for part in box] for box in boxes]
    return np.asarray(centres, dtype=np.float32).reshape(-1, 2)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * _uniform(generator)
