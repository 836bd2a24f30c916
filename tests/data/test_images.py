from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvcim.data.images import (
    LabelledImage,
    decode_image,
    read_image,
    read_image_set,
    read_images,
    read_instances,
    write_image,
    write_image_set,
    write_instances,
)
from nvcim.errors import DataError


def labelled(name: str, seed: int, size: tuple[int, int] = (7, 9)) -> LabelledImage:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    return LabelledImage(name, pixels, random.integers(0, 700, size).astype(np.int32), "benign")


@pytest.mark.parametrize("layout", ["glas", "folders"])
def test_written_sets_read_back_the_same(layout: str, tmp_path: Path) -> None:
    images = [labelled(f"train_{i}", i) for i in range(3)]
    write_image_set(images, tmp_path, layout)
    read = read_image_set(tmp_path)
    assert [image.name for image in read] == ["train_0", "train_1", "train_2"]
    for before, after in zip(images, read, strict=True):
        assert np.array_equal(before.pixels, after.pixels)
        assert np.array_equal(before.instances, after.instances)
        assert after.instances.dtype == np.int32
        assert after.grade == ("benign" if layout == "glas" else None)
    assert [image.name for image in read_images(tmp_path)] == ["train_0", "train_1", "train_2"]


def test_glas_bitmaps_with_palette_masks(tmp_path: Path) -> None:
    pixels = np.full((4, 5, 3), 200, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "train_1.bmp")
    mask = Image.fromarray(np.array([[0, 1, 2, 17, 0]] * 4, dtype=np.uint8), mode=None)
    mask = mask.convert("P")
    mask.putpalette([channel for i in range(256) for channel in (255 - i, i, i)])
    mask.putdata([0, 1, 2, 17, 0] * 4)
    mask.save(tmp_path / "train_1_anno.bmp")
    [image] = read_image_set(tmp_path)
    assert np.unique(image.instances).tolist() == [0, 1, 2, 17]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_masks(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 300], [65535, 1]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"m{suffix}")
    assert read_instances(tmp_path / f"m{suffix}").tolist() == values.tolist()


def test_limit_draws_by_seed(tmp_path: Path) -> None:
    write_image_set([labelled(f"i{k:02d}", k) for k in range(12)], tmp_path)
    first = [image.name for image in read_image_set(tmp_path, limit=4, seed=1)]
    assert first == [image.name for image in read_image_set(tmp_path, limit=4, seed=1)]
    assert len(first) == 4
    assert any(first != [i.name for i in read_image_set(tmp_path, limit=4, seed=s)] for s in (2, 3))
    with pytest.raises(DataError, match="limit"):
        read_image_set(tmp_path, limit=0)


def test_mask_of_another_size_names_both_files(tmp_path: Path) -> None:
    write_image_set([labelled("a", 0)], tmp_path)
    write_instances(np.zeros((3, 4), dtype=np.int32), tmp_path / "labels" / "a.png")
    with pytest.raises(DataError, match=r"labels.a\.png: mask of 4x3 pixels.*images.a\.png has 9x7"):
        read_image_set(tmp_path)


def test_missing_partners_are_named(tmp_path: Path) -> None:
    write_image_set([labelled("a", 0), labelled("b", 1)], tmp_path)
    (tmp_path / "labels" / "b.png").unlink()
    with pytest.raises(DataError, match="without its mask: b"):
        read_image_set(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "b.png").unlink()
    write_image(np.zeros((2, 2, 3), dtype=np.uint8), tmp_path / "images" / "c.png")
    with pytest.raises(DataError, match=r"without (its mask: c|its image: a)"):
        read_image_set(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 60, 0.5, -13])
def test_truncated_files_are_named(keep: float, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "cut.png"
    write_image(random.integers(0, 256, (40, 40, 3), dtype=np.uint8), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])  # below 0: from the end
    for read in (read_image, read_instances):
        with pytest.raises(DataError, match=r"cut\.png: cannot be read"):
            read(path)


def test_damaged_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    write_image(random.integers(0, 256, (20, 20, 3), dtype=np.uint8), tmp_path / "a.png")
    whole = np.frombuffer((tmp_path / "a.png").read_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(60):
        damaged = whole.copy()
        places = random.integers(0, len(whole), 5)
        damaged[places] = random.integers(0, 256, 5)
        try:
            decode_image(damaged.tobytes(), "damaged")
        except DataError:
            refused += 1
    assert refused > 30


def test_unknown_layouts_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_image_set(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected images/ and labels/"):
        read_image_set(tmp_path)
    with pytest.raises(DataError, match="no images found"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "none.png")


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        suffix = ".tif" if mode == "CMYK" else ".png"
        Image.new(mode, (5, 4)).save(tmp_path / f"{mode}{suffix}")
        assert read_image(tmp_path / f"{mode}{suffix}").shape == (4, 5, 3)
    deep = np.array([[0, 2000], [4000, 1000]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[..., 0].tolist() == [[0, 127.5], [255, 63.75]]


def test_masks_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((3, 3, 3), dtype=np.uint8)
    colours[0, 0] = (1, 2, 3)
    write_image(colours, tmp_path / "colour.png")
    with pytest.raises(DataError, match="one channel"):
        read_instances(tmp_path / "colour.png")
    Image.fromarray(np.full((3, 3), 0.5, dtype=np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(DataError, match="integers"):
        read_instances(tmp_path / "real.tif")
    Image.new("L", (8, 8)).save(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match="lossy"):
        read_instances(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match="65535"):
        write_instances(np.full((2, 2), 70000, dtype=np.int32), tmp_path / "big.png")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for suffix in (".png", ".bmp"):
        Image.new("RGB", (3, 3)).save(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match="same name"):
        read_images(tmp_path)
