import numpy as np
import pytest
import torch
from scipy import ndimage

from nvcim.segmentation import splitting
from nvcim.segmentation.splitting import SplittingSettings, decide, label_objects, split_instances


def probabilities(seed: int, classes: int = 3, shape: tuple[int, int] = (150, 130)) -> torch.Tensor:
    """Smooth random class probabilities [classes, H, W] with objects, holes, and objects that touch."""
    noise = np.random.default_rng(seed).standard_normal((classes, *shape))
    smooth = np.stack([ndimage.gaussian_filter(channel, 2.5) for channel in noise]) * 30
    return torch.from_numpy(smooth).softmax(dim=0).float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("split", "classes"), [("contour", 3), ("distance", 2), ("none", 3)])
def test_objects_do_not_depend_on_where_bands_lie(
    monkeypatch: pytest.MonkeyPatch, seed: int, split: str, classes: int
) -> None:
    settings = SplittingSettings(split=split, certainty=0.6)
    field = probabilities(seed, classes)
    whole = split_instances(field, settings, smallest=12, growth=4.5)
    assert whole.max() > 3
    monkeypatch.setattr(splitting, "_BAND", 7)
    monkeypatch.setattr(splitting, "_CELL", 16)
    in_bands = torch.cat(
        [torch.from_numpy(decide(field[:, a : a + 11], settings)) for a in range(0, 150, 11)]
    )
    assert np.array_equal(label_objects(in_bands.numpy(), split, 12, 4.5, settings.neck), whole)  # type: ignore[arg-type]


def test_growth_takes_the_nearest_core_by_brute_force() -> None:
    field = probabilities(9, shape=(60, 50))
    settings = SplittingSettings(certainty=0.0)
    decided = decide(field, settings)
    cores, _ = ndimage.label(decided >= splitting.CORE)
    grown = cores.astype(np.int32)
    splitting._grow(grown, decided, 4.5)
    places = np.argwhere(cores > 0)
    for y, x in np.argwhere(decided == splitting.EDGE):
        squared = ((places - (y, x)) ** 2).sum(axis=1)
        nearest = {cores[tuple(p)] for p in places[squared == squared.min()]}
        assert grown[y, x] in (nearest if squared.min() <= 4.5**2 else {0})


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def sure(mask: np.ndarray) -> torch.Tensor:
    inside = torch.from_numpy(mask).float() * 0.96 + 0.02
    return torch.stack([1 - inside, inside])


def test_two_overlapping_discs_part_at_their_neck_and_one_stays_whole() -> None:
    shape = (60, 90)
    left, right = disc(shape, 30, 28, 15), disc(shape, 30, 54, 15)
    found = split_instances(sure(left | right), SplittingSettings(), 1, 0)
    assert found.max() == 2
    assert found[30, 28] == 1
    assert found[30, 54] == 2
    # They meet at column 41: every row parts there, to within the grid.
    assert abs(int((found[30] == 1).sum()) - int((found[30] == 2).sum())) <= 1
    assert split_instances(sure(disc(shape, 30, 40, 22)), SplittingSettings(), 1, 0).max() == 1
    assert split_instances(sure(left | right), SplittingSettings(split="none"), 1, 0).max() == 1


def test_a_long_object_with_a_wavy_wall_stays_whole() -> None:
    y, x = np.mgrid[:80, :200]
    bar = np.abs(y - 40) <= 14 + 0.7 * np.sin(x / 6)
    bar[:, :10] = bar[:, 190:] = False
    assert split_instances(sure(bar), SplittingSettings(), 1, 0).max() == 1


def test_an_object_without_a_certain_pixel_is_dropped() -> None:
    mask = np.zeros((20, 40), dtype=bool)
    mask[5:12, 5:12] = mask[5:12, 25:32] = True
    field = torch.where(torch.from_numpy(mask), 0.6, 0.1)
    field[8, 8] = 0.9
    both = torch.stack([1 - field, field])
    assert split_instances(both, SplittingSettings(certainty=0.5), 1, 0).max() == 2
    found = split_instances(both, SplittingSettings(certainty=0.8), 1, 0)
    assert found.max() == 1
    assert (found > 0).sum() == 49
    assert found[8, 8] == 1


def test_the_threshold_is_the_least_probability_of_an_object() -> None:
    field = torch.tensor([[0.2, 0.45, 0.7]])
    both = torch.stack([1 - field, field])
    for threshold, count in ((0.5, 1), (0.4, 2), (0.1, 3), (0.8, 0)):
        settings = SplittingSettings(threshold=threshold, certainty=0.0)
        assert int((decide(both, settings) > 0).sum()) == count


def test_holes_close_unless_they_are_open_or_hold_another_object() -> None:
    decided = np.zeros((30, 60), dtype=np.uint8)
    decided[3:20, 3:20] = decided[3:20, 30:50] = splitting.SEED
    decided[8:12, 8:12] = 0  # a hole
    decided[6:17, 34:46] = 0
    decided[9:14, 38:42] = splitting.SEED  # another object in a hole
    decided[0:25, 55:] = splitting.SEED
    decided[3:6, 57:] = 0  # open to the image's border
    found = label_objects(decided, "contour", 1, 0)
    assert found.max() == 4
    assert (found[8:12, 8:12] == found[5, 5]).all()
    assert found[7, 35] == 0
    assert found[4, 58] == 0


@pytest.mark.parametrize("split", ["contour", "distance", "none"])
@pytest.mark.parametrize("value", [splitting.BACKGROUND, splitting.SEED])
def test_nothing_and_one_object_over_everything(split: str, value: int) -> None:
    decided = np.full((700, 40), value, dtype=np.uint8)
    found = label_objects(decided, split, 5, 4.5)  # type: ignore[arg-type]
    assert (found == (1 if value else 0)).all()


def test_a_region_too_wide_for_cells_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (60, 90)
    mask = disc(shape, 30, 28, 15) | disc(shape, 30, 54, 15)
    monkeypatch.setattr(splitting, "_WIDEST", 40)
    assert split_instances(sure(mask), SplittingSettings(), 1, 0).max() == 1


def test_a_hundred_thousand_objects_are_told_apart() -> None:
    decided = np.zeros((1000, 1600), dtype=np.uint8)
    for down in range(2):
        for right in range(2):
            decided[down::4, right::4] = splitting.SEED
    found = label_objects(decided, "contour", 1, 4.5)
    assert found.max() == 100_000
    assert (splitting.object_areas(found)[1:] == 4).all()
