"""The study trains, scores every arithmetic, and leaves models and overlays in the run folder."""

from pathlib import Path

import numpy as np
import pytest

from nvcim.crossbar import CrossbarConfig
from nvcim.data.images import write_image_set
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, DataError
from nvcim.segmentation import FCNSettings, TrainingSettings, load_fcn, predict, score_set
from nvcim.segmentation.study import StudySettings, run_study, split_images
from nvcim.storage import RunFolder

SETTINGS = StudySettings(
    weights=("float", "inq-5"),
    training_images=3,
    test_images=2,
    chips=2,
    overlays=1,
    fcn=FCNSettings(width=8, depth=2, descriptor_dim=8, fused_width=8),
    training=TrainingSettings(steps=6, batch=2, crop=48, device="cpu"),
    tissue=TissueSettings(height=64, width=64, smallest_radius=9, largest_radius=16),
    crossbar=CrossbarConfig(adc_bits=None),
)


def test_a_study_scores_each_weights_on_each_arithmetic(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "study", SETTINGS, seed=4)
    images = split_images(None, SETTINGS, 4)
    steps: list[tuple[str, int, int]] = []
    rows = run_study(SETTINGS, images, run, lambda name, done, total, loss: steps.append((name, done, total)))
    assert [(r["model"], r["arithmetic"], r.get("chip")) for r in rows] == [
        (model, *place)
        for model in ("float", "inq-5")
        for place in (("ideal", None), ("crossbar", 0), ("crossbar", 1))
    ]
    assert run.read_table("segmentation").num_rows == 6
    # Float weights go on as long as quantized ones, so that the two differ in nothing else.
    done = [(name, number, total) for name, number, total in steps if number == total]
    assert done == [("float", 6, 6), ("float", 3, 3), ("inq-5", 3, 3)]
    sizes = {row["model"]: row["weight_bytes"] for row in rows if row["arithmetic"] == "ideal"}
    assert 5 < sizes["float"] / sizes["inq-5"] < 6.5  # 32 bits against 5, and some side information
    figures = sorted(path.name for path in (run.path / "figures").iterdir())
    assert figures == [
        f"segmentation-0_{m}_{a}.png" for m in ("float", "inq-5") for a in ("crossbar", "ideal")
    ]


def test_the_saved_model_is_the_one_that_was_scored(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "study", SETTINGS, seed=4)
    images = split_images(None, SETTINGS, 4)
    rows = run_study(SETTINGS, images, run)
    for name in SETTINGS.weights:
        model = load_fcn(run.path / "fcn" / name)
        scores = score_set((predict(model, i.pixels), i.instances) for i in images.test).pooled
        row = next(r for r in rows if r["model"] == name and r["arithmetic"] == "ideal")
        assert scores.dice == pytest.approx(row["object_dice"], abs=1e-6)


def test_a_study_repeats_with_its_seed(tmp_path: Path) -> None:
    first, second = (
        run_study(
            SETTINGS, split_images(None, SETTINGS, 4), RunFolder.create(tmp_path, "study", SETTINGS, seed=4)
        )
        for _ in range(2)
    )
    assert first == second


def test_training_and_test_images_of_a_folder_do_not_overlap(tmp_path: Path) -> None:
    write_image_set(generate_tissue(7, SETTINGS.tissue, seed=2), tmp_path)
    split = split_images(tmp_path, SETTINGS, 1)
    names = [image.name for image in (*split.training, *split.test)]
    assert len(names) == len(set(names)) == 5
    again = split_images(tmp_path, SETTINGS, 1)
    assert [image.name for image in again.test] == [image.name for image in split.test]
    assert np.array_equal(again.test[0].pixels, split.test[0].pixels)


def test_too_few_images_to_train_and_test_are_refused(tmp_path: Path) -> None:
    write_image_set(generate_tissue(2, SETTINGS.tissue, seed=2), tmp_path)
    with pytest.raises(DataError, match="holds 2 labelled images; 3 are needed"):
        split_images(tmp_path, SETTINGS, 1)


def test_unknown_weights_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = SETTINGS.model_copy(update={"weights": ("float", "inq5")})
    run = RunFolder.create(tmp_path, "study", wrong, seed=4)
    with pytest.raises(ConfigError, match="inq5"):
        run_study(wrong, split_images(None, SETTINGS, 4), run, lambda *_: pytest.fail("training began"))
