import numpy as np
import pytest
import torch

from nvcim.errors import DataError
from nvcim.segmentation import FCNSettings, PredictionSettings, ResidualFCN, overlay, predict
from nvcim.segmentation.splitting import SplittingSettings, split_instances
from nvcim.segmentation.targets import contour_classes

MODEL = ResidualFCN(FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8))


def certain(classes: np.ndarray) -> torch.Tensor:
    """Probabilities [3, H, W] that are sure of these classes."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(classes), 3).permute(2, 0, 1).float()
    return 0.98 * one_hot + 0.01


def two_touching() -> np.ndarray:
    mask = np.zeros((30, 40), dtype=np.int32)
    mask[5:25, 5:20], mask[5:25, 20:35] = 1, 2
    return mask


def test_touching_objects_come_back_from_their_classes() -> None:
    mask = two_touching()
    found = split_instances(
        certain(contour_classes(mask, width=3)), SplittingSettings(), smallest=1, growth=4.5
    )
    assert found.dtype == np.int32
    assert np.array_equal(found, mask)


def test_contour_is_inside_and_leaves_the_image_border_open() -> None:
    mask = np.zeros((12, 12), dtype=np.int32)
    mask[0:8, 0:8] = 3
    classes = contour_classes(mask, width=2)
    assert (classes[mask == 0] == 0).all()
    assert classes[0, 0] == 1
    assert classes[4].tolist() == [1] * 6 + [2] * 2 + [0] * 4


def test_small_objects_keep_a_core() -> None:
    mask = np.zeros((12, 12), dtype=np.int32)
    mask[2:7, 2:7], mask[10, 10] = 1, 2
    classes = contour_classes(mask, width=6)
    assert classes[4, 4] == classes[10, 10] == 1
    assert classes[2, 2] == 2
    assert (contour_classes(np.ones((4, 4), dtype=np.int32), width=2) == 1).all()


def test_specks_are_dropped_and_holes_closed() -> None:
    classes = np.zeros((30, 30), dtype=np.int64)
    classes[5:20, 5:20] = 1
    classes[10:12, 10:12] = 0
    classes[25, 25] = 1
    found = split_instances(certain(classes), SplittingSettings(), smallest=5, growth=2)
    assert found.max() == 1
    assert (found[5:20, 5:20] == 1).all()
    assert found[25, 25] == 0


def test_an_object_counts_with_its_holes_closed() -> None:
    classes = np.zeros((30, 30), dtype=np.int64)
    classes[5:15, 5:15] = 1
    classes[6:14, 6:14] = 0  # a ring of 36 pixels around 64
    found = split_instances(certain(classes), SplittingSettings(), smallest=100, growth=0)
    assert (found[5:15, 5:15] == 1).all()
    assert not split_instances(certain(classes), SplittingSettings(), smallest=101, growth=0).any()


def test_a_speck_that_is_dropped_leaves_no_hole_open() -> None:
    classes = np.zeros((30, 30), dtype=np.int64)
    classes[5:20, 5:20] = 1
    classes[9:14, 9:14] = 0
    classes[11, 11] = 1
    found = split_instances(certain(classes), SplittingSettings(), smallest=5, growth=0)
    assert (found[5:20, 5:20] == 1).all()


def test_an_object_inside_the_hole_of_another_survives() -> None:
    classes = np.zeros((40, 40), dtype=np.int64)
    classes[5:35, 5:35] = 1
    classes[10:30, 10:30] = 0
    classes[15:25, 15:25] = 1
    found = split_instances(certain(classes), SplittingSettings(), smallest=5, growth=1)
    assert len(np.unique(found[15:25, 15:25])) == 1
    assert found[20, 20] not in (0, found[6, 6])


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (33, 47)])
@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0])
def test_any_size_and_scale_can_be_predicted(size: tuple[int, int], scale: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    instances = predict(MODEL, pixels, PredictionSettings(scale=scale))
    assert instances.shape == size
    assert instances.dtype == np.int32
    labels = np.unique(instances[instances > 0])
    assert labels.tolist() == list(range(1, len(labels) + 1))


def test_what_is_no_image_is_refused() -> None:
    for shape in ((5, 5), (5, 5, 4), (0, 5, 3)):
        with pytest.raises(DataError, match="RGB"):
            predict(MODEL, np.zeros(shape, dtype=np.uint8))


def test_overlay_marks_objects_and_leaves_background() -> None:
    mask = two_touching()
    pixels = np.full((30, 40, 3), 128, dtype=np.uint8)
    drawn = overlay(pixels, mask)
    assert (drawn[mask == 0] == 128).all()
    assert (drawn[mask > 0] != 128).any(axis=-1).all()
    assert drawn[5, 5].tolist() != drawn[5, 30].tolist()
    with pytest.raises(DataError, match="does not fit"):
        overlay(pixels[1:], mask)
