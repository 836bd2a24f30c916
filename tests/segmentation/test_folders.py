from pathlib import Path

import numpy as np
import pytest

from nvcim.data.images import read_instances, write_image, write_image_set, write_instances
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import DataError
from nvcim.segmentation import (
    FCNSettings,
    TrainingSettings,
    load_fcn,
    predict_files,
    score_folders,
    train_on_folder,
)

NETWORK = FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8)
QUICK = TrainingSettings(steps=2, batch=2, crop=32, device="cpu")


@pytest.fixture
def tissue(tmp_path: Path) -> Path:
    images = generate_tissue(3, TissueSettings(height=48, width=64), seed=0)
    write_image_set(images, tmp_path / "set", "glas")
    return tmp_path / "set"


def test_train_predict_score_on_folders(tissue: Path, tmp_path: Path) -> None:
    logs = train_on_folder(tissue, tmp_path / "model", NETWORK, QUICK, "inq-5")
    assert [log.weights for log in logs] == ["float", "inq-5"]
    assert [len(log.losses) for log in logs] == [2, 1]  # half as many quantized
    assert load_fcn(tmp_path / "model").quantizer is not None
    images = sorted(p for p in tissue.glob("*.png") if not p.stem.endswith("_anno"))
    results = predict_files(tmp_path / "model", images, tmp_path / "out", device="cpu")
    assert [r.image for r in results] == images
    for result in results:
        mask = read_instances(result.mask)
        assert mask.shape == (48, 64)
        assert len(np.unique(mask[mask > 0])) == result.objects
        assert result.overlay.is_file()
    scores = score_folders(tmp_path / "out", tissue)
    assert scores.names == ("tissue_0", "tissue_1", "tissue_2")
    assert len(scores.rows()) == 3 + 2  # one per image, one pooled, one of means


def test_a_set_scored_against_itself_is_perfect(tissue: Path) -> None:
    pooled = score_folders(tissue, tissue).pooled.objects
    assert (pooled.f1, pooled.dice, pooled.hausdorff) == (1.0, pytest.approx(1.0), 0.0)


def test_masks_of_different_size_name_both_files(tmp_path: Path) -> None:
    for side, size in (("a", (3, 4)), ("b", (3, 5))):
        write_instances(np.ones(size, dtype=np.int32), tmp_path / side / "x.png")
    with pytest.raises(DataError, match=r"a.x\.png and .*b.x\.png: masks differ in size, 4x3 against 5x3"):
        score_folders(tmp_path / "a", tmp_path / "b")


def test_masks_without_partner_are_named(tmp_path: Path) -> None:
    mask = np.ones((3, 4), dtype=np.int32)
    for name in ("a/x.png", "a/y.png", "b/x.png"):
        write_instances(mask, tmp_path / name)
    with pytest.raises(DataError, match="without its true mask: y"):
        score_folders(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="without its predicted mask: y"):
        score_folders(tmp_path / "b", tmp_path / "a")


def test_predicting_refuses_what_it_cannot_read(tissue: Path, tmp_path: Path) -> None:
    train_on_folder(tissue, tmp_path / "model", NETWORK, QUICK)
    with pytest.raises(DataError, match="no image"):
        predict_files(tmp_path / "model", [], tmp_path / "out")
    broken = tmp_path / "broken.png"
    write_image(np.zeros((90, 90, 3), dtype=np.uint8), broken)
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(DataError, match=r"broken\.png"):
        predict_files(tmp_path / "model", [broken], tmp_path / "out")
    with pytest.raises(DataError, match=r"would overwrite the result of .*\(x\.png\)"):
        predict_files(tmp_path / "model", [Path("a/x.png"), Path("b/x.png")], tmp_path / "out")
