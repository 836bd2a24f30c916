import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nvcim.data import large_images
from nvcim.data.images import read_instances, write_image
from nvcim.data.large_images import open_image
from nvcim.errors import DataError, ModelError
from nvcim.quantization import INQ
from nvcim.segmentation import (
    FCNSettings,
    PredictionSettings,
    ResidualFCN,
    predict_files,
    prediction_files,
    save_fcn,
)
from nvcim.segmentation.instances import find_objects
from nvcim.segmentation.prediction_files import member_folders

SMALL = FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8)
PIXELS = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
EVERYTHING = PredictionSettings(smallest_object=1, certainty=0.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_fcn(ResidualFCN(SMALL, seed=0), tmp_path / "model")
    return tmp_path / "model"


def test_everything_asked_for_is_written_and_agrees(model: Path, tmp_path: Path) -> None:
    write_image(PIXELS, tmp_path / "x.png")
    extras = ("geojson", "objects", "tiff")
    (found,) = predict_files(model, [tmp_path / "x.png"], tmp_path / "out", EVERYTHING, "cpu", extras)
    assert found.mask.name == "x.tif"
    mask = read_instances(found.mask)
    assert found.objects == mask.max() > 0
    assert found.geojson is not None
    assert found.table is not None
    assert len(json.loads(found.geojson.read_text())["features"]) == found.objects
    assert len(found.table.read_text().splitlines()) == found.objects + 1
    assert found.mean_area == pytest.approx((mask > 0).sum() / found.objects)


def test_a_tiff_read_in_parts_gives_what_the_whole_image_gives(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(PIXELS, tmp_path / "whole.png")
    tifffile.imwrite(tmp_path / "parts.tif", PIXELS, photometric="rgb", tile=(32, 32), compression="zlib")
    monkeypatch.setattr(large_images, "_IN_PARTS", 100)
    monkeypatch.setattr(prediction_files, "OVERLAY_SIDE", 50)
    paths = [tmp_path / "whole.png", tmp_path / "parts.tif"]
    whole, parts = predict_files(model, paths, tmp_path / "out", EVERYTHING, "cpu")
    assert np.array_equal(read_instances(whole.mask), read_instances(parts.mask))
    assert whole.overlay.read_bytes() == parts.overlay.read_bytes()


def test_members_of_an_ensemble_are_found_in_the_order_of_their_numbers(model: Path, tmp_path: Path) -> None:
    for number in (10, 2, 0):
        save_fcn(ResidualFCN(SMALL, seed=number), tmp_path / "many" / f"member-{number}")
    assert [f.name for f in member_folders(tmp_path / "many")] == ["member-0", "member-2", "member-10"]
    assert member_folders(model) == [model]
    with pytest.raises(ModelError, match="no such folder of a model"):
        member_folders(tmp_path / "none")
    write_image(PIXELS, tmp_path / "x.png")
    members = member_folders(tmp_path / "many")
    one = predict_files(tmp_path / "many", [tmp_path / "x.png"], tmp_path / "a", EVERYTHING, "cpu")
    other = predict_files(members, [tmp_path / "x.png"], tmp_path / "b", EVERYTHING, "cpu")
    assert one[0].mask.read_bytes() == other[0].mask.read_bytes()


def test_a_folder_that_leaves_open_which_model_is_meant_is_refused(model: Path, tmp_path: Path) -> None:
    save_fcn(ResidualFCN(SMALL, seed=1), model / "member-0")
    with pytest.raises(ModelError, match="model: holds a model of its own beside member-0"):
        member_folders(model)
    (tmp_path / "many" / "member-2").mkdir(parents=True)
    (tmp_path / "many" / "member-02").mkdir()
    with pytest.raises(ModelError, match=r"member-2: has the same number as .*member-02"):
        member_folders(tmp_path / "many")
    (tmp_path / "other" / "member-old").mkdir(parents=True)
    with pytest.raises(ModelError, match="member-old: a member of an ensemble is called member-<number>"):
        member_folders(tmp_path / "other")


def test_quantized_members_predict_what_the_model_under_its_quantizer_does(tmp_path: Path) -> None:
    quantized = ResidualFCN(SMALL, seed=0)
    quantizer = INQ()
    quantized.quantize(quantizer)
    quantizer.advance(quantized, 1.0)
    save_fcn(quantized, tmp_path / "many" / "member-0")
    save_fcn(ResidualFCN(SMALL, seed=1), tmp_path / "many" / "member-1")
    write_image(PIXELS, tmp_path / "x.png")
    (found,) = predict_files(tmp_path / "many", [tmp_path / "x.png"], tmp_path / "out", EVERYTHING, "cpu")
    models = [quantized.eval(), ResidualFCN(SMALL, seed=1).eval()]
    expected = find_objects(models, open_image(tmp_path / "x.png"), EVERYTHING).instances
    assert expected.max() > 0
    assert np.array_equal(read_instances(found.mask), expected)


def test_a_large_image_at_another_scale_is_refused_by_name_of_its_size(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvcim.segmentation.inference._RESIZED_PIXELS", 1000)
    write_image(PIXELS, tmp_path / "x.png")
    with pytest.raises(DataError, match=r"130x150 pixels is too large to be seen at scale 0\.5"):
        predict_files(model, [tmp_path / "x.png"], tmp_path / "out", PredictionSettings(scale=0.5), "cpu")


def test_images_are_never_overwritten_by_results(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    write_image(PIXELS, images / "x.png")
    before = (images / "x.png").read_bytes()
    with pytest.raises(DataError, match=r"its result would overwrite the image .*x\.png"):
        predict_files(model, [images / "x.png"], tmp_path / "out" / ".." / "images", EVERYTHING, "cpu")
    assert (images / "x.png").read_bytes() == before
    assert [path.name for path in images.iterdir()] == ["x.png"]


def test_results_never_overwrite_each_other(model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "x.png", tmp_path / "x_overlay.png"]
    for path in paths:
        write_image(PIXELS, path)
    with pytest.raises(DataError, match=r"x_overlay\.png: would overwrite the result of .*x\.png"):
        predict_files(model, paths, tmp_path / "out", EVERYTHING, "cpu")
    assert not (tmp_path / "out").exists()
    tables = [tmp_path / "y.bmp", tmp_path / "folder" / "y.tif"]
    with pytest.raises(DataError, match=r"y\.tif: would overwrite the result of .*y\.bmp"):
        predict_files(model, tables, tmp_path / "out", EVERYTHING, "cpu")
