"""Tissue-like images with touching glands, for runs without real data and for tests.

Glands are drawn as pathologists see them at low power: an epithelium ring with dark basal nuclei, pale
cytoplasm with goblet vacuoles and a lumen, in a fibrous stroma with spindle nuclei and lymphocytes. Malignant
glands are lobed, crowded and stratified, with small or several lumens and debris. Colour follows
Beer-Lambert: each stain adds optical density (stain vectors of Ruifrok and Johnston, 2001, jittered per
image), then illumination, blur and noise act as in a camera. Lymphocyte crowds are as dark as epithelium and
lumens as bright as cracks in the stroma, so thresholding a stain does not find the glands.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from nvcim.config import Settings
from nvcim.data.images import LabelledImage
from nvcim.errors import ConfigError
from nvcim.randomness import named_seed

Field2D = NDArray[np.float64]
Grade = Literal["benign", "malignant"]

# Optical density of red, green and blue per unit of stain (Ruifrok and Johnston, 2001).
_HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.07, 0.99, 0.11])
_DAB = np.array([0.27, 0.57, 0.78])


class TissueSettings(Settings):
    """What the generated tissue looks like; lengths in pixels."""

    height: int = Field(default=160, ge=32, le=4096)
    width: int = Field(default=160, ge=32, le=4096)
    smallest_radius: float = Field(default=14.0, ge=4.0, le=500.0)
    largest_radius: float = Field(default=34.0, ge=4.0, le=500.0)
    crowding: float = Field(default=0.55, gt=0.0, le=0.9, description="share of the area sought for glands")
    malignant_share: float = Field(default=0.5, ge=0.0, le=1.0)
    chromogen_share: float = Field(default=0.2, ge=0.0, le=1.0, description="images in DAB, not eosin")
    noise: float = Field(default=0.02, ge=0.0, le=0.5, description="camera noise, share of full scale")

    @model_validator(mode="after")
    def _radii_in_order(self) -> "TissueSettings":
        if self.smallest_radius > self.largest_radius:
            raise ValueError("smallest_radius must not exceed largest_radius")
        return self


@dataclass
class _Stains:
    """Amount of each stain per pixel, [H, W] each: nuclei, tissue (eosin), epithelium (eosin or DAB)."""

    nuclei: Field2D
    tissue: Field2D
    epithelium: Field2D


def generate_tissue(count: int, settings: TissueSettings | None = None, seed: int = 0) -> list[LabelledImage]:
    """Generate `count` labelled images `tissue_0`, ...; image i depends on the seed and i only.

    Raises:
        ConfigError: count below 1.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, given {count}")
    settings = settings or TissueSettings()
    return [_generate_one(index, settings, seed) for index in range(count)]


def _generate_one(index: int, settings: TissueSettings, seed: int) -> LabelledImage:
    random = np.random.default_rng(named_seed(seed, "tissue", index))
    grade: Grade = "malignant" if random.random() < settings.malignant_share else "benign"
    instances = _place_glands(settings, grade, random)
    stains = _stroma(instances, random)
    for label in range(1, int(instances.max()) + 1):
        _draw_gland(instances == label, grade, stains, random)
    has_chromogen = random.random() < settings.chromogen_share
    pixels = _photograph(stains, _stain_vectors(has_chromogen, random), settings.noise, random)
    return LabelledImage(f"tissue_{index}", pixels, instances, grade)


def _smooth_noise(
    shape: tuple[int, ...], sigma: float | tuple[float, float], random: np.random.Generator
) -> Field2D:
    """Gaussian noise blurred by sigma, mean 0 and deviation 1, [H, W]."""
    field = ndimage.gaussian_filter(random.standard_normal(shape), sigma, mode="wrap")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-9))


def _gland_shape(
    grid: Field2D, radius: float, grade: Grade, random: np.random.Generator
) -> NDArray[np.bool_]:
    """A star-shaped blob around the origin of `grid` [2, H, W]; malignant ones are longer and lobed."""
    angle = random.uniform(0, np.pi)
    along = grid[0] * np.cos(angle) + grid[1] * np.sin(angle)
    across = grid[1] * np.cos(angle) - grid[0] * np.sin(angle)
    stretch = random.uniform(1.0, 1.5 if grade == "benign" else 2.3)
    along, across = along / np.sqrt(stretch), across * np.sqrt(stretch)
    theta = np.arctan2(across, along)
    lobes = 0.04 if grade == "benign" else 0.11
    edge = np.ones_like(theta)
    for order in range(2, 7):
        edge += lobes * random.standard_normal() * np.cos(order * theta + random.uniform(0, 2 * np.pi))
    return np.asarray(np.hypot(along, across) < radius * np.clip(edge, 0.4, 1.7))


def _place_glands(settings: TissueSettings, grade: Grade, random: np.random.Generator) -> NDArray[np.int32]:
    """Drop glands until the area is filled; a newcomer yields where it meets another, so many touch."""
    height, width = settings.height, settings.width
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    instances = np.zeros((height, width), dtype=np.int32)
    base = random.uniform(settings.smallest_radius, settings.largest_radius)
    label = 0
    for _ in range(200):
        if (instances > 0).mean() > settings.crowding:
            break
        centre = random.uniform(0, height), random.uniform(0, width)
        radius = float(
            np.clip(base * random.uniform(0.7, 1.3), settings.smallest_radius, settings.largest_radius)
        )
        blob = _gland_shape(np.stack([rows - centre[0], columns - centre[1]]), radius, grade, random)
        gap = int(random.integers(0, 3))
        taken = instances > 0
        free = blob & ~(ndimage.binary_dilation(taken, iterations=gap) if gap else taken)
        pieces, found = ndimage.label(free)
        if found == 0:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max() < 0.7 * blob.sum() or sizes.max() < 0.5 * settings.smallest_radius**2:
            continue
        label += 1
        instances[pieces == int(sizes.argmax()) + 1] = label
    return instances


def _stamp_nuclei(
    target: Field2D,
    centres: NDArray[np.int64],
    angles: Field2D,
    size: tuple[float, float],
    darkness: float,
    random: np.random.Generator,
) -> None:
    """Add elliptic nuclei, half axes `size`, at centres [N, 2], turned by angles [N] (0 is along columns)."""
    reach = int(np.ceil(max(size) * 1.4)) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    height, width = target.shape
    for (row, column), angle in zip(centres, angles, strict=True):
        long, short = size[0] * random.uniform(0.75, 1.25), size[1] * random.uniform(0.75, 1.25)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        nucleus = darkness * random.uniform(0.6, 1.2) * (np.hypot(along / long, across / short) < 1)
        top, left = max(row - reach, 0), max(column - reach, 0)
        bottom, right = min(row + reach + 1, height), min(column + reach + 1, width)
        part = nucleus[
            top - row + reach : bottom - row + reach, left - column + reach : right - column + reach
        ]
        window = target[top:bottom, left:right]
        np.maximum(window, part, out=window)


def _pick(mask: NDArray[np.bool_], share: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw about `share` x area points of a mask, [N, 2]."""
    points = np.argwhere(mask)
    count = min(len(points), int(random.poisson(share * len(points)))) if len(points) else 0
    return points[random.permutation(len(points))[:count]]


def _stroma(instances: NDArray[np.int32], random: np.random.Generator) -> _Stains:
    """Fibres along a slowly turning direction, spindle nuclei, lymphocyte crowds and bright cracks."""
    shape = instances.shape
    outside = instances == 0
    bend = _smooth_noise(shape, 25.0, random)
    fibre_angle = random.uniform(0, np.pi) + 0.5 * bend
    fibres = np.where(
        np.abs(np.sin(fibre_angle)) < 0.7,
        _smooth_noise(shape, (0.8, 5.0), random),
        _smooth_noise(shape, (5.0, 0.8), random),
    )
    tissue = np.clip(0.38 + 0.1 * fibres + 0.06 * _smooth_noise(shape, 12.0, random), 0.03, None)
    nuclei = np.full(shape, 0.04)
    away = ndimage.distance_transform_edt(outside) if outside.any() else np.zeros(shape)
    spindles = _pick(outside & (away > 2), random.uniform(0.002, 0.007), random)
    angles = fibre_angle[spindles[:, 0], spindles[:, 1]]
    _stamp_nuclei(nuclei, spindles, angles, (3.2, 1.1), random.uniform(0.6, 1.0), random)
    crowd = _smooth_noise(shape, 9.0, random) > random.uniform(0.3, 1.4)
    lymphocytes = _pick(outside & crowd & (away > 2), random.uniform(0.015, 0.035), random)
    _stamp_nuclei(
        nuclei, lymphocytes, np.zeros(len(lymphocytes)), (1.7, 1.7), random.uniform(0.8, 1.2), random
    )
    cracks = outside & (_smooth_noise(shape, 6.0, random) > random.uniform(1.4, 2.4))
    # Shrinkage tears stroma off some glands, which leaves a bright rim around them.
    for label in range(1, int(instances.max()) + 1):
        if random.random() < 0.3:
            rim = ndimage.binary_dilation(instances == label, iterations=int(random.integers(1, 4)))
            cracks |= rim & outside & (_smooth_noise(shape, 8.0, random) > -0.6)
    tissue[cracks], nuclei[cracks] = 0.02, 0.01
    return _Stains(nuclei, tissue, np.zeros(shape))


def _draw_gland(mask: NDArray[np.bool_], grade: Grade, stains: _Stains, random: np.random.Generator) -> None:
    """Draw one gland into the stains: cytoplasm, basal nuclei along the edge, vacuoles, lumen, debris."""
    shape = mask.shape
    # A gland cut by the image border has its wall there only where tissue ends: measure from a padded frame.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    radius = float(depth.max())
    wall = radius * (random.uniform(0.45, 0.75) if grade == "benign" else random.uniform(0.5, 1.05))
    ragged = depth + 0.1 * radius * _smooth_noise(shape, 3.0, random)
    lumen = mask & (ragged > wall)
    if grade == "malignant":
        holes = (_smooth_noise(shape, 3.0, random) > random.uniform(1.3, 2.2)) & (depth > 0.35 * radius)
        lumen |= mask & holes
    cytoplasm = random.uniform(0.22, 0.5) if grade == "benign" else random.uniform(0.4, 0.6)
    texture = 1 + 0.15 * _smooth_noise(shape, 1.2, random)
    nuclei = np.where(mask, 0.10 + 0.05 * (grade == "malignant"), 0.0) * texture
    tissue = np.where(mask, cytoplasm, 0.0) * texture
    _draw_epithelium_nuclei(mask & ~lumen, depth, wall, grade, nuclei, random)
    if grade == "benign":
        vacuoles = (_smooth_noise(shape, 1.8, random) > random.uniform(0.5, 1.4)) & (depth > 0.3 * wall)
        tissue[vacuoles & mask], nuclei[vacuoles & mask] = 0.1, 0.05
    secretion = random.uniform(0.0, 0.3)
    tissue[lumen], nuclei[lumen] = secretion * texture[lumen].clip(0.3, 1.7), 0.02
    debris = _pick(lumen, 0.02 * random.random() if grade == "malignant" else 0.0, random)
    _stamp_nuclei(nuclei, debris, np.zeros(len(debris)), (1.5, 1.2), 0.7, random)
    stains.nuclei[mask], stains.tissue[mask] = nuclei[mask], tissue[mask]
    stains.epithelium[mask & ~lumen] = 1.0


def _draw_epithelium_nuclei(
    epithelium: NDArray[np.bool_],
    depth: Field2D,
    wall: float,
    grade: Grade,
    nuclei: Field2D,
    random: np.random.Generator,
) -> None:
    """Basal nuclei stand across the wall; in malignant glands they are stratified and paler."""
    layer = 0.35 * wall if grade == "benign" else random.uniform(0.5, 0.95) * wall
    basal = epithelium & (depth > 1.0) & (depth < max(layer, 3.5))
    centres = _pick(
        basal, random.uniform(0.09, 0.14) if grade == "benign" else random.uniform(0.05, 0.11), random
    )
    down, across = np.gradient(ndimage.gaussian_filter(depth, 1.5))
    angles = np.arctan2(down, across)[centres[:, 0], centres[:, 1]]
    size = (2.2, 1.2) if grade == "benign" else (2.8, 1.6)
    drawn = np.zeros_like(nuclei)
    _stamp_nuclei(drawn, centres, angles, size, random.uniform(0.8, 1.2), random)
    np.maximum(nuclei, drawn, out=nuclei)


def _stain_vectors(has_chromogen: bool, random: np.random.Generator) -> NDArray[np.float64]:
    """Optical density per unit of nuclei, tissue and epithelium stain, [3, 3]; jittered as labs differ."""
    hematoxylin = _HEMATOXYLIN * random.normal(1, 0.08, 3) * random.uniform(0.9, 1.5)
    if has_chromogen:
        # Immunohistochemistry: the chromogen marks the epithelium, the rest holds a little counterstain only.
        tissue = _HEMATOXYLIN * random.uniform(0.15, 0.4)
        epithelium = _DAB * random.normal(1, 0.08, 3) * random.uniform(0.4, 1.0)
        hematoxylin *= random.uniform(0.4, 1.0)
    else:
        tissue = _EOSIN * random.normal(1, 0.1, 3) * random.uniform(0.6, 1.4)
        tissue += _HEMATOXYLIN * random.uniform(0.0, 0.25)
        epithelium = _HEMATOXYLIN * random.uniform(0.0, 0.2)
    return np.stack([hematoxylin, tissue, epithelium]).clip(0.0)


def _photograph(
    stains: _Stains, vectors: NDArray[np.float64], noise: float, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Light through the stained tissue: exp(-density), uneven illumination, blur and camera noise."""
    density = np.einsum("khw,kc->hwc", np.stack([stains.nuclei, stains.tissue, stains.epithelium]), vectors)
    light = np.exp(-density)
    shape = stains.nuclei.shape
    illumination = 0.96 + 0.04 * _smooth_noise(shape, max(shape) / 4, random)
    light = light * np.clip(illumination, 0.75, 1.05)[:, :, None]
    blur = random.uniform(0.4, 0.9)
    light = ndimage.gaussian_filter(light, (blur, blur, 0)) + noise * random.standard_normal(light.shape)
    return np.asarray(np.clip(np.round(255 * light), 0, 255), dtype=np.uint8)
