"""What a trial scores depends on its point and seed alone."""

from pathlib import Path

import pytest

from nvcim.crossbar import CrossbarConfig
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ModelError
from nvcim.segmentation import FCNSettings, ResidualFCN, TrainingSettings, predict, save_fcn, score_set, train
from nvcim.sweeps.space import TrialPoint
from nvcim.sweeps.trial import matmul_error, segmentation_score

EXACT = CrossbarConfig(dac_bits=None, adc_bits=None)
TISSUE = TissueSettings(height=64, width=64, smallest_radius=9, largest_radius=16)


@pytest.fixture(scope="module")
def fcn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FCN trained until it finds most glands of its few images."""
    folder = tmp_path_factory.mktemp("fcn")
    model = ResidualFCN(FCNSettings(width=8, depth=3, descriptor_dim=16, fused_width=16), seed=0)
    settings = TrainingSettings(steps=160, batch=4, crop=64, device="cpu")
    train(model, generate_tissue(4, TISSUE, seed=1), settings, seed=0)
    save_fcn(model, folder)
    return folder


def test_matmul_error_repeats_with_its_seed_and_differs_by_repeat() -> None:
    point = TrialPoint("FeFET3", 6, 0.1, 0)
    again = TrialPoint("FeFET3", 6, 0.1, 1)
    assert matmul_error(point, EXACT, 5) == matmul_error(point, EXACT, 5)
    assert matmul_error(point, EXACT, 5) != matmul_error(again, EXACT, 5)


def test_fine_bits_without_variation_keep_the_digital_score(fcn: Path) -> None:
    from nvcim.segmentation import load_fcn

    images = generate_tissue(4, TISSUE, seed=1)
    digital = score_set((predict(load_fcn(fcn), i.pixels), i.instances) for i in images).pooled
    scores = segmentation_score(TrialPoint("RRAM4", 12, 0.0, 0), fcn, images, EXACT, seed=0)
    assert digital.dice > 0.4
    assert scores["object_dice"] == pytest.approx(digital.dice, abs=0.03)


def test_heavy_variation_loses_glands(fcn: Path) -> None:
    images = generate_tissue(4, TISSUE, seed=1)
    calm = segmentation_score(TrialPoint("RRAM4", 8, 0.0, 0), fcn, images, EXACT, seed=0)
    noisy = segmentation_score(TrialPoint("RRAM4", 8, 2.0, 0), fcn, images, EXACT, seed=0)
    assert noisy["object_dice"] < calm["object_dice"] - 0.1


def test_a_folder_without_a_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        segmentation_score(TrialPoint("RRAM4", 8, 0.0, 0), tmp_path, generate_tissue(1, TISSUE), EXACT, 0)
