import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nvcim.data.images import LabelledImage
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, DataError, ModelError, RunError
from nvcim.segmentation import (
    FCNSettings,
    MemberJob,
    TrainingSettings,
    load_fcn,
    load_members,
    train_member,
    train_members,
)
from nvcim.segmentation.ensemble import bootstrap, hold_back

NETWORK = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=8)
QUICK = TrainingSettings(steps=4, batch=2, crop=32, checkpoint_every=2, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[LabelledImage]:
    return generate_tissue(4, TissueSettings(height=48, width=48), seed=0)


def job(out: Path, seed: int = 1, **changes: object) -> MemberJob:
    return dataclasses.replace(MemberJob(NETWORK, QUICK, out, seed), **changes)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_fcn(folder).state_dict()


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_bootstrap_draws_with_replacement_by_its_seed_alone() -> None:
    first = bootstrap(1000, 3)
    assert np.array_equal(first, bootstrap(1000, 3))
    assert not np.array_equal(first, bootstrap(1000, 4))
    assert (first.min() >= 0, first.max() < 1000, first.shape) == (True, True, (1000,))
    # 1 - 1/e of the indices appear; four standard deviations of that count are about 40.
    assert abs(len(np.unique(first)) - 632) < 40
    assert len(set(range(50)) - {int(bootstrap(50, seed)[0]) for seed in range(1000)}) == 0


def test_members_do_not_depend_on_each_other_or_on_their_folder(
    images: list[LabelledImage], tmp_path: Path
) -> None:
    train_members([job(tmp_path / "a", 1), job(tmp_path / "b", 2)], images)
    train_members([job(tmp_path / "c", 2), job(tmp_path / "d", 1)], images)
    assert same(tmp_path / "a", tmp_path / "d")
    assert same(tmp_path / "b", tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "b")
    assert len(load_members([tmp_path / "a", tmp_path / "b"])) == 2


def test_a_complete_member_is_not_trained_again(images: list[LabelledImage], tmp_path: Path) -> None:
    steps: list[int] = []
    first = train_member(job(tmp_path / "a"), images, lambda done, *_: steps.append(done))
    again = train_member(job(tmp_path / "a"), images, lambda *_: pytest.fail("trained again"))
    assert again == first
    assert steps == [1, 2, 3, 4]
    elsewhere = job(tmp_path / "a", training=QUICK.model_copy(update={"device": "cuda:7"}))
    assert train_member(elsewhere, images) == first
    assert sorted(path.name for path in (tmp_path / "a").iterdir()).count("checkpoint.pt") == 0


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_killed_member_goes_on_to_the_same_weights(
    last: int, images: list[LabelledImage], tmp_path: Path
) -> None:
    whole = train_member(job(tmp_path / "whole"), images)

    def kill(done: int, total: int, loss: float) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_member(job(tmp_path / "killed"), images, kill)
    seen: list[int] = []
    resumed = train_member(job(tmp_path / "killed"), images, lambda done, *_: seen.append(done))
    assert seen[0] == last // 2 * 2 + 1 if last < 4 else not seen  # checkpoints lie at 2 and 4
    assert resumed.losses == whole.losses
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_a_quantized_member_goes_on_from_its_float_twin(images: list[LabelledImage], tmp_path: Path) -> None:
    twin = job(tmp_path / "float")
    quantized = job(tmp_path / "inq", quantizer="inq-5", start=twin.out)
    logs = train_members([twin, quantized], images)
    assert [log.weights for log in logs] == ["float", "inq-5"]
    # The largest half is frozen before the first step, at levels of the twin's own weights.
    start = weights(twin.out)["head.weight"]
    found = dict(load_fcn(quantized.out).named_modules())["head"].weight
    assert isinstance(found, torch.Tensor)
    largest = start.abs() >= start.abs().flatten().median()
    ratio = (found.detach() / start)[largest]
    assert bool(((ratio >= 2 / 3 - 1e-6) & (ratio <= 4 / 3 + 1e-6)).float().mean() > 0.98)
    shutil.rmtree(twin.out)
    assert train_member(quantized, images) == logs[1]  # complete, so its start may be gone
    with pytest.raises(ModelError, match="must be float, this one is inq-5"):
        train_member(job(tmp_path / "again", start=quantized.out), images)


@pytest.mark.parametrize("validation", [0.0, 0.5])
def test_members_are_drawn_again_until_they_hold_an_object(
    images: list[LabelledImage], tmp_path: Path, validation: float
) -> None:
    blank = LabelledImage("blank", images[0].pixels, np.zeros((48, 48), dtype=np.int32))
    pair = [images[0], blank]
    # Half of the splits of two images, and a quarter of the resamples, miss the one with objects.
    jobs = [job(tmp_path / str(seed), seed, validation=validation) for seed in range(8)]
    train_members(jobs, pair)
    areas = np.unique(images[0].instances[images[0].instances > 0], return_counts=True)[1]
    learnt = max(int(np.percentile(areas, 5) / 2), 1)
    assert {model.smallest_object for model in load_members([j.out for j in jobs])} == {learnt}
    with pytest.raises(DataError, match="no image of the training set holds"):
        train_member(job(tmp_path / "none"), [blank, blank])


def test_all_members_learn_the_smallest_object_of_the_whole_set(
    images: list[LabelledImage], tmp_path: Path
) -> None:
    large = np.zeros((48, 48), dtype=np.int32)
    large[4:44, 4:44] = 1
    pair = [images[0], LabelledImage("large", images[1].pixels, large)]
    jobs = [job(tmp_path / str(seed), seed) for seed in range(4)]
    train_members(jobs, pair)
    areas = [c for i in pair for c in np.unique(i.instances[i.instances > 0], return_counts=True)[1]]
    found = {model.smallest_object for model in load_members([j.out for j in jobs])}
    assert found == {max(int(np.percentile(areas, 5) / 2), 1)}


def test_a_place_that_is_a_file_is_refused(images: list[LabelledImage], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="no folder can be made there"):
            train_member(job(place), images)


def test_a_folder_of_another_job_is_refused(images: list[LabelledImage], tmp_path: Path) -> None:
    train_member(job(tmp_path / "a"), images)
    for other in (
        job(tmp_path / "a", seed=2),
        job(tmp_path / "a", bootstrap=False),
        job(tmp_path / "a", training=QUICK.model_copy(update={"steps": 5})),
    ):
        with pytest.raises(ModelError, match="choose another folder"):
            train_member(other, images)
    with pytest.raises(ModelError, match="choose another folder"):
        train_member(job(tmp_path / "a"), images[1:])
    (tmp_path / "a" / "training.json").write_text("{")
    with pytest.raises(ModelError, match=r"training\.json: not the log"):
        train_member(job(tmp_path / "a"), images)


def test_a_start_of_another_shape_is_refused(images: list[LabelledImage], tmp_path: Path) -> None:
    train_member(job(tmp_path / "a"), images)
    wider = FCNSettings(width=8, depth=1, descriptor_dim=8, fused_width=8)
    with pytest.raises(ModelError, match="other settings than the job"):
        train_member(job(tmp_path / "b", network=wider, start=tmp_path / "a"), images)


def test_held_back_images_are_a_share_and_never_trained_on(
    images: list[LabelledImage], tmp_path: Path
) -> None:
    for count, share, expected in ((10, 0.25, 2), (10, 0.0, 0), (4, 0.01, 1), (2, 0.9, 1)):
        kept, held = hold_back(count, share, 5)
        assert len(held) == expected
        assert sorted([*kept, *held]) == list(range(count))
    with pytest.raises(ConfigError, match="below 1"):
        hold_back(4, 1.0, 5)
    with pytest.raises(ConfigError, match="two images"):
        hold_back(1, 0.5, 5)
    log = train_member(job(tmp_path / "a", validation=0.5), images)
    assert [steps for steps, _ in log.validations] == [4]
