import numpy as np
import pytest
from scipy import ndimage

from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError


def touching_pairs(instances: np.ndarray) -> int:
    pairs = set()
    for a, b in ((instances[:, :-1], instances[:, 1:]), (instances[:-1], instances[1:])):
        meets = (a != b) & (a > 0) & (b > 0)
        pairs |= set(zip(np.minimum(a, b)[meets].tolist(), np.maximum(a, b)[meets].tolist(), strict=True))
    return len(pairs)


def test_an_image_depends_on_seed_and_index_only() -> None:
    three, one = generate_tissue(3, seed=5), generate_tissue(1, seed=5)
    assert np.array_equal(three[0].pixels, one[0].pixels)
    assert np.array_equal(three[0].instances, one[0].instances)
    assert not np.array_equal(three[0].pixels, three[1].pixels)
    assert not np.array_equal(generate_tissue(1, seed=6)[0].pixels, one[0].pixels)


def test_glands_are_whole_labelled_without_gaps_and_often_touch() -> None:
    images = generate_tissue(8, seed=0)
    for image in images:
        count = int(image.instances.max())
        assert count >= 2
        for label in range(1, count + 1):
            assert ndimage.label(image.instances == label)[1] == 1
        assert 0.3 < (image.instances > 0).mean() < 0.9
    assert sum(touching_pairs(image.instances) for image in images) >= 8


def test_both_grades_occur_and_can_be_chosen() -> None:
    assert {image.grade for image in generate_tissue(8, seed=0)} == {"benign", "malignant"}
    benign = generate_tissue(3, TissueSettings(malignant_share=0.0), seed=0)
    assert {image.grade for image in benign} == {"benign"}


def test_size_follows_the_settings() -> None:
    [image] = generate_tissue(1, TissueSettings(height=64, width=100), seed=0)
    assert image.pixels.shape == (64, 100, 3)


def test_dark_nuclei_do_not_give_the_glands_away() -> None:
    # No threshold on darkness separates glands from stroma: the two overlap in every image.
    for image in generate_tissue(6, seed=3):
        darkness = 255.0 - image.pixels.mean(axis=2)
        inside, outside = darkness[image.instances > 0], darkness[image.instances == 0]
        best = max(
            ((inside > t).mean() + (outside <= t).mean()) / 2
            for t in np.percentile(darkness, range(5, 100, 5))
        )
        assert best < 0.95


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="count"):
        generate_tissue(0)
    with pytest.raises(ValueError, match="smallest_radius"):
        TissueSettings(smallest_radius=30, largest_radius=20)
