"""Deep images: expected values from numpy's sort and percentiles."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from nvcim.data.images import decode_image, displayed, encode_png, read_image, write_image
from nvcim.data.images.intensities import measure_stretch, stretched
from nvcim.errors import DataError


def nuclei(seed: int = 0, brightest: int = 248) -> np.ndarray:
    """A 16-bit fluorescence image [128, 128]: a third bright, camera offset and noise."""
    random = np.random.default_rng(seed)
    values = random.normal(40, 5, (128, 128))
    values[:, :40] += random.uniform(100, 180, (128, 1))
    return values.clip(0, brightest).astype(np.uint16)


def read(values: np.ndarray, folder: Path) -> np.ndarray:
    tifffile.imwrite(folder / "x.tif", values)
    return read_image(folder / "x.tif")


def test_a_hot_pixel_leaves_the_grey_levels_of_the_image(tmp_path: Path) -> None:
    clean = nuclei()
    hot = clean.copy()
    hot[5, 100] = 65535
    before, after = read(clean, tmp_path)[..., 0], read(hot, tmp_path)[..., 0]
    others = np.ones(clean.shape, dtype=bool)
    others[5, 100] = False
    assert len(np.unique(after)) >= len(np.unique(clean))  # scaled by 65535 they were 2
    assert after[others] == pytest.approx(before[others], abs=2.0)
    assert 255 < after[5, 100] <= 4 * 255 + 1
    # What a network sees: mean and deviation stay what they are.
    assert after.mean() == pytest.approx(before.mean(), abs=0.5)
    assert after.std() == pytest.approx(before.std(), rel=0.02)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int16, np.float32, np.float64])
def test_the_scale_is_that_of_a_thousandth_left_out_at_either_end(dtype: type, tmp_path: Path) -> None:
    values = np.random.default_rng(1).gamma(2.0, 500.0, (100, 70)).astype(dtype)
    low, high = np.sort(values.ravel())[[7, -8]].astype(float)  # of 7,000 pixels, 7
    expected = (values.astype(float) - low) * 255 / (high - low)
    kept = (expected > -3 * 255) & (expected < 4 * 255)
    assert kept.all()
    found = read(values, tmp_path)
    assert found.dtype == np.float32
    for channel in range(3):
        assert found[..., channel] == pytest.approx(expected, abs=0.01)


def test_more_grey_levels_than_eight_bits_hold_are_kept(tmp_path: Path) -> None:
    values = np.arange(60_000, dtype=np.uint16).reshape(200, 300)
    assert len(np.unique(read(values, tmp_path))) == 60_000


def test_small_bright_objects_in_a_dark_field_are_not_cut_to_its_noise(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(100, 5, (300, 300))
    values[40:44, 50:54] += 60  # 16 of 90,000 pixels, beyond the percentile
    values[40:42, 50:54] += 30
    found = read(values.astype(np.uint16), tmp_path)[..., 0]
    assert found[40:44, 50:54].min() > 255
    # Two brightnesses of the object stay two: 30 counts apart, noise of 33 counts is 0..255.
    assert found[40:42, 50:54].mean() - found[42:44, 50:54].mean() > 150


def test_colours_share_a_scale_and_outliers_of_a_dim_channel_are_cut_by_its_own(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    values = np.stack([random.integers(0, top + 1, (60, 60)) for top in (10_000, 1000, 4000)], axis=2)
    values[0, 0] = (10_000, 65535, 4000)
    found = read(values.astype(np.uint16), tmp_path)
    assert found[1:, :, 0].max() == pytest.approx(255, abs=2)
    assert found[1:, :, 1].max() == pytest.approx(25.5, abs=0.5)
    assert found[1:, :, 2].max() == pytest.approx(102, abs=1)
    assert found[0, 0, 1] <= 4 * 26


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((20, 20), 700), np.zeros((20, 20))),
        (np.where(np.arange(400).reshape(20, 20) == 9, 900, 0), np.eye(1, 400, 9).reshape(20, 20) * 255),
        (np.array([[5]]), np.array([[0]])),
    ],
    ids=["one value", "one pixel that differs", "one pixel"],
)
def test_images_of_one_value_or_nearly(values: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    assert read(values.astype(np.uint16), tmp_path)[..., 0] == pytest.approx(expected)


def test_bands_change_nothing() -> None:
    values = np.random.default_rng(4).gamma(2.0, 1e-4, (97, 50, 3))
    whole = measure_stretch(lambda: [values], "x")
    parts = measure_stretch(lambda: (values[top : top + 10] for top in range(0, 97, 10)), "x")
    assert np.array_equal(stretched(values, whole), stretched(values, parts))
    with pytest.raises(DataError, match="x: an image of no pixels"):
        measure_stretch(lambda: [], "x")


def test_what_is_shown_and_written_is_cut_to_eight_bits(tmp_path: Path) -> None:
    pixels = np.array([[[-20.0, 99.6, 700.0]]], dtype=np.float32)
    assert displayed(pixels).tolist() == [[[0, 100, 255]]]
    write_image(pixels, tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[0, 100, 255]]]
    eight = np.array([[[1, 2, 3]]], dtype=np.uint8)
    assert displayed(eight) is eight
    assert decode_image(encode_png(eight), "x").dtype == np.uint8
