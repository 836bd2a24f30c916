import numpy as np
import pytest
import torch
from skimage.color import hed2rgb

from nvcim.data.images import LabelledImage
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.segmentation.augmentation import (
    AugmentationSettings,
    PreparedImage,
    draw_crop,
    is_coloured,
    jitter_stains,
    prepare_image,
    whole_crop,
)
from nvcim.segmentation.network import normalise_colours

STILL = AugmentationSettings(mirror=0.0, quarter_turns=0.0, zoom=1.0, colour_mixing=0.0, stain=0.0)
GEOMETRY = {
    "mirror": {"mirror": 1.0},
    "turns": {"quarter_turns": 1.0},
    "zoom": {"zoom": 1.5},
    "rotation": {"rotation": 180.0},
    "elastic": {"elastic": 4.0},
}
APPEARANCE = {
    "gamma": {"gamma": 0.5},
    "inversion": {"inversion": 1.0},
    "mixing": {"colour_mixing": 0.3},
    "blur": {"blur": 3.0},
    "noise": {"noise": 0.5},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey_image(height: int = 80, width: int = 96) -> PreparedImage:
    """Bright squares in the dark, each an object; no two pixels of a row alike."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:] = np.linspace(5, 60, width).astype(np.uint8)[None, :, None]
    instances = np.zeros((height, width), dtype=np.int32)
    for label, (row, column) in enumerate([(10, 12), (40, 30), (30, 60), (60, 70)], start=1):
        pixels[row : row + 14, column : column + 14] = 200
        instances[row : row + 14, column : column + 14] = label
    return prepare_image(LabelledImage("squares", pixels, instances), 2, 1)


def coloured_image() -> PreparedImage:
    [image] = generate_tissue(1, TissueSettings(height=96, width=96, chromogen_share=0.0), seed=3)
    return prepare_image(image, 3, 3)


def test_with_everything_off_a_crop_is_a_window_of_the_image_as_prediction_sees_it() -> None:
    [image] = generate_tissue(1, TissueSettings(height=50, width=40), seed=1)
    prepared = prepare_image(image, 3, 3)
    seen = normalise_colours(torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)[None])[0]
    whole, classes = whole_crop(prepared, 64)
    torch.testing.assert_close(whole, seen)
    for seed in range(5):
        crop, found = draw_crop(prepared, 32, STILL, generator(seed))
        places = [
            (top, left)
            for top in range(50 - 32 + 1)
            for left in range(40 - 32 + 1)
            if torch.allclose(crop, seen[:, top : top + 32, left : left + 32], atol=1e-3)
        ]
        assert len(places) == 1
        [(top, left)] = places
        assert torch.equal(found, classes[top : top + 32, left : left + 32])


@pytest.mark.parametrize("name", GEOMETRY)
def test_pixels_and_classes_move_together(name: str) -> None:
    image = grey_image()
    settings = STILL.model_copy(update=GEOMETRY[name])
    moved = False
    for seed in range(6):
        pixels, classes = draw_crop(image, 48, settings, generator(seed))
        still, _ = draw_crop(image, 48, STILL, generator(seed))
        moved |= not torch.equal(pixels, still)
        bright = pixels[0] * image.deviation[0, 0, 0] + image.mean[0, 0, 0] > 130
        # Only pixels on an edge may differ: bilinear there, nearest here.
        assert float((bright == (classes == 1)).float().mean()) > 0.97
        assert bool(bright.any())
    assert moved


@pytest.mark.parametrize("name", [*GEOMETRY, *APPEARANCE])
def test_labels_stay_labels(name: str) -> None:
    settings = STILL.model_copy(update={**GEOMETRY, **APPEARANCE}[name])
    image = coloured_image()
    for seed in range(4):
        _, classes = draw_crop(image, 40, settings, generator(seed))
        assert classes.dtype == torch.int64
        assert set(classes.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_leaves_colours_alone(name: str) -> None:
    flat = np.full((60, 60, 3), (90, 40, 200), dtype=np.uint8)
    flat[:, :30] = (10, 220, 30)
    prepared = prepare_image(LabelledImage("flat", flat, np.zeros((60, 60), dtype=np.int32)), 2, 1)
    pixels, _ = draw_crop(prepared, 32, STILL.model_copy(update=GEOMETRY[name]), generator(2))
    raw = (pixels * prepared.deviation + prepared.mean).flatten(1).T
    low, high = torch.tensor([10.0, 40.0, 30.0]), torch.tensor([90.0, 220.0, 200.0])
    share = (raw - torch.tensor([10.0, 220.0, 30.0])) / torch.tensor([80.0, -180.0, 170.0])
    # Every colour lies on the line between the image's two colours.
    torch.testing.assert_close(share[:, 0], share[:, 1], atol=1e-3, rtol=0.0)
    torch.testing.assert_close(share[:, 0], share[:, 2], atol=1e-3, rtol=0.0)
    assert bool(((raw > low - 0.01) & (raw < high + 0.01)).all())


@pytest.mark.parametrize("name", APPEARANCE)
def test_appearance_changes_pixels_and_moves_nothing(name: str) -> None:
    image = grey_image()
    changed, classes = draw_crop(image, 48, STILL.model_copy(update=APPEARANCE[name]), generator(4))
    still, expected = draw_crop(image, 48, STILL, generator(4))
    assert torch.equal(classes, expected)
    assert not torch.allclose(changed, still, atol=1e-2)


def test_stains_vary_where_the_image_is_coloured_and_gamma_where_it_is_grey() -> None:
    both = STILL.model_copy(update={"stain": 0.2})
    for image, varies in ((coloured_image(), True), (grey_image(), False)):
        changed, _ = draw_crop(image, 48, both, generator(1))
        still, _ = draw_crop(image, 48, STILL, generator(1))
        assert torch.equal(changed, still) != varies
    gamma = STILL.model_copy(update={"gamma": 0.5})
    changed, _ = draw_crop(coloured_image(), 48, gamma, generator(1))
    still, _ = draw_crop(coloured_image(), 48, STILL, generator(1))
    assert torch.equal(changed, still)


def test_a_negative_is_the_image_with_its_sign_turned() -> None:
    image = grey_image()
    changed, _ = draw_crop(image, 48, STILL.model_copy(update={"inversion": 1.0}), generator(4))
    still, _ = draw_crop(image, 48, STILL, generator(4))
    torch.testing.assert_close(changed, -still, atol=1e-4, rtol=0.0)


def test_stain_amounts_are_those_of_scikit_image() -> None:
    stains = np.random.default_rng(0).uniform(0.0, 0.06, (12, 10, 3))
    amounts, offsets = np.array([1.3, 0.8, 1.1]), np.array([0.01, 0.02, 0.0])
    rgb = torch.from_numpy(255.0 * hed2rgb(stains)).permute(2, 0, 1).float()
    unchanged = jitter_stains(rgb, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(unchanged, rgb, atol=0.01, rtol=0.0)
    # scikit-image measures stains in units of -ln(1e-6), here it is decades of light.
    decades = offsets * np.log(1e6) / np.log(10.0)
    found = jitter_stains(rgb, *(torch.tensor(x, dtype=torch.float32) for x in (amounts, decades)))
    expected = 255.0 * hed2rgb(stains * amounts + offsets)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 0.05
    assert np.abs(expected - 255.0 * hed2rgb(stains)).max() > 20.0


def test_the_same_generator_gives_the_same_crop() -> None:
    everything = AugmentationSettings(
        rotation=30.0, elastic=3.0, stain=0.1, gamma=0.3, inversion=0.5, blur=1.0, noise=0.1
    )
    for image in (grey_image(), coloured_image()):
        first, again, other = (draw_crop(image, 40, everything, generator(seed), 0.5) for seed in (1, 1, 2))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])


def test_crops_around_objects_hold_one() -> None:
    pixels = np.zeros((300, 300, 3), dtype=np.uint8)
    instances = np.zeros((300, 300), dtype=np.int32)
    instances[250:258, 20:28] = 1
    image = prepare_image(LabelledImage("lonely", pixels, instances), 2, 1)
    assert all((draw_crop(image, 48, STILL, generator(seed), 1.0)[1] == 1).sum() == 64 for seed in range(8))
    assert any((draw_crop(image, 48, STILL, generator(seed), 0.0)[1] == 1).sum() == 0 for seed in range(8))


def test_images_smaller_than_the_crop_go_on_in_mirror_image() -> None:
    pixels = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    image = prepare_image(LabelledImage("tiny", pixels, np.eye(5, 3, dtype=np.int32)), 2, 1)
    crop, classes = draw_crop(image, 9, STILL, generator())
    assert crop.shape == (3, 9, 9)
    raw = (crop * image.deviation + image.mean).round()
    assert torch.equal(raw[:, 2:7, 3:6], image.pixels.float())
    assert torch.equal(raw[:, 2:7, 2], image.pixels[:, :, 0].float())
    assert torch.equal(classes[2:7, 3:6], image.classes.long())


def test_a_hundredth_of_coloured_pixels_makes_an_image_coloured() -> None:
    pixels = np.full((20, 20, 3), 128, dtype=np.uint8)
    assert not is_coloured(pixels)
    pixels[0, :8, 0] = 160
    assert is_coloured(pixels)


@pytest.mark.parametrize("name", APPEARANCE)
def test_deep_images_are_varied_to_finite_values(name: str) -> None:
    # Their darkest pixels lie below 0 and their brightest above 255, the scale of 8 bits.
    pixels = np.random.default_rng(0).uniform(-300, 900, (40, 40, 1)).astype(np.float32).repeat(3, axis=2)
    image = prepare_image(LabelledImage("deep", pixels, np.zeros((40, 40), dtype=np.int32)), 2, 1)
    assert not image.coloured
    settings = STILL.model_copy(update=APPEARANCE[name])
    for seed in range(5):
        crop, _ = draw_crop(image, 32, settings, generator(seed))
        assert torch.isfinite(crop).all()
