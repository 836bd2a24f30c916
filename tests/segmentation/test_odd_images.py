"""Training, predicting and scoring on folders whose files are as odd as people's are."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nvcim.data.images import LabelledImage, read_image, read_image_set, read_instances
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import DataError
from nvcim.segmentation import FCNSettings, TrainingSettings, predict_files, score_folders, train_on_folder

NETWORK = FCNSettings(width=4, depth=3, descriptor_dim=12, fused_width=8)
QUICK = TrainingSettings(steps=2, batch=2, crop=32, device="cpu")


def write_oddly(image: LabelledImage, folder: Path) -> None:
    """The same tissue in eight kinds of file, each with a mask in another kind."""
    rgb = Image.fromarray(image.pixels)
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    rgb.convert("L").save(images / "grey.png")
    rgb.convert("P").save(images / "palette.bmp")
    rgb.convert("RGBA").save(images / "rgba.png")
    rgb.convert("CMYK").save(images / "cmyk.jpg")
    tifffile.imwrite(
        images / "deep.tif", image.pixels.astype(np.uint16) * 16, photometric="rgb", compression="zlib"
    )
    tifffile.imwrite(images / "deepgrey.tif", image.pixels[..., 0].astype(np.uint16) * 100)
    rgb.resize((5, 3)).save(images / "tiny.png")  # smaller than the network's stride
    rgb.save(images / "empty.png")
    mask = image.instances
    Image.fromarray(mask.astype(np.uint16)).save(labels / "grey.png")
    Image.fromarray(mask.astype(np.uint8)).convert("P").save(labels / "palette.bmp")
    Image.fromarray(np.dstack([mask.astype(np.uint8)] * 3)).save(labels / "rgba.png")
    tifffile.imwrite(labels / "cmyk.tif", mask.astype(np.int16), compression="lzw")
    # 70,000 and more as labels: uint16 would fold them onto others.
    tifffile.imwrite(
        labels / "deep.tif", np.where(mask > 0, mask + 70_000, 0).astype(np.uint32), compression="zlib"
    )
    Image.fromarray(mask > 0).save(labels / "deepgrey.png")
    Image.fromarray(np.ones((3, 5), dtype=np.uint8)).save(labels / "tiny.png")
    Image.new("L", rgb.size).save(labels / "empty.png")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    [image] = generate_tissue(1, TissueSettings(height=48, width=64), seed=0)
    write_oddly(image, tmp_path / "odd")
    return tmp_path / "odd"


def test_every_kind_of_file_is_read_as_the_same_tissue(odd: Path) -> None:
    read = {image.name: image for image in read_image_set(odd)}
    assert len(read) == 8
    whole = read["rgba"]
    for name in ("palette", "cmyk", "deep"):
        # 16-bit values are stretched to the largest, palettes and JPEG lose some; the tissue stays the same.
        similar = np.corrcoef(read[name].pixels.ravel(), whole.pixels.ravel())[0, 1]
        assert similar > 0.9, name
    assert len(np.unique(read["deep"].instances)) == len(np.unique(whole.instances))
    assert read["deep"].instances.max() > 70_000
    assert read["empty"].instances.max() == 0
    assert read["tiny"].pixels.shape == (3, 5, 3)


def test_training_predicting_and_scoring_on_odd_files(odd: Path, tmp_path: Path) -> None:
    train_on_folder(odd, tmp_path / "model", NETWORK, QUICK)
    images = sorted((odd / "images").iterdir())
    results = predict_files(tmp_path / "model", images, tmp_path / "out", device="cpu")
    assert [result.image for result in results] == images
    for result in results:
        assert read_instances(result.mask).shape == read_image(result.image).shape[:2]
    scores = score_folders(tmp_path / "out", odd)
    assert set(scores.names) == {path.stem for path in images}
    assert all(0 <= value <= 1 for name, value in scores.means().items() if name != "object_hausdorff")
    perfect = score_folders(odd, odd)
    assert (perfect.pooled.objects.f1, perfect.pooled.panoptic.pq, perfect.means()["aji"]) == (1.0, 1.0, 1.0)
    assert (perfect.both_sides_empty, perfect.one_side_empty) == (1, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("images/grey.png", "the file is empty"), ("labels/grey.png", "the file is empty")],
)
def test_a_file_of_no_bytes_is_named_by_training(name: str, message: str, odd: Path, tmp_path: Path) -> None:
    (odd / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        train_on_folder(odd, tmp_path / "model", NETWORK, QUICK)


def test_a_file_of_no_bytes_is_named_by_predicting_and_scoring(odd: Path, tmp_path: Path) -> None:
    train_on_folder(odd, tmp_path / "model", NETWORK, QUICK)
    for name in ("nothing.png", "nothing.tif"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            predict_files(tmp_path / "model", [tmp_path / name], tmp_path / "out", device="cpu")
    (odd / "labels" / "grey.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"grey\.png.*the file is empty"):
        score_folders(odd, odd)
