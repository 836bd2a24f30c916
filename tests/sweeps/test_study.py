"""A sweep of another run's FCN is scored on images that the FCN was not trained on."""

from pathlib import Path

import pytest

from nvcim.data.images import write_image_set
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import RunError
from nvcim.segmentation.study import StudySettings, split_images
from nvcim.storage import RunFolder
from nvcim.sweeps import SweepSettings
from nvcim.sweeps.study import _images, sweep


@pytest.mark.parametrize("real", [False, True])
def test_a_sweep_splits_images_as_the_study_that_trained_the_fcn(tmp_path: Path, real: bool) -> None:
    if real:
        tissue = TissueSettings(height=48, width=48, smallest_radius=8, largest_radius=12)
        write_image_set(generate_tissue(9, tissue, seed=2), tmp_path)
    folder = tmp_path if real else None
    study = split_images(folder, StudySettings(training_images=4, test_images=2), 5)
    swept = _images(SweepSettings(training_images=4, images=2, data=folder), 5)
    assert [i.name for i in swept.test] == [i.name for i in study.test]
    assert not {i.name for i in swept.test} & {i.name for i in study.training}


def test_a_run_without_an_fcn_is_refused(tmp_path: Path) -> None:
    settings = SweepSettings(subjects=("segmentation",), from_run=tmp_path, images=1, training_images=1)
    with pytest.raises(RunError, match="holds no trained FCN"):
        sweep(settings, RunFolder.create(tmp_path, "sweep", settings, 0))
