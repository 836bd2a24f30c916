"""Folders as people have them."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nvcim.data import large_images
from nvcim.data.images import decode_image, find_images, find_masks, image_name, read_image, read_image_set
from nvcim.data.large_images import open_image
from nvcim.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
LABELS = np.zeros((20, 30), dtype=np.uint8)
LABELS[2:8, 2:8], LABELS[2:8, 10:16], LABELS[12:18, 4:20] = 1, 2, 3
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\0" * 60


def put(folder: Path, images: tuple[str, ...] = (), masks: tuple[str, ...] = ()) -> Path:
    for name, values in [*((n, PIXELS) for n in images), *((n, LABELS) for n in masks)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".tif", ".tiff")):
            tifffile.imwrite(folder / name, values)
        else:
            Image.fromarray(values).save(folder / name)
    return folder


def names(folder: Path) -> list[str]:
    images = read_image_set(folder)
    for image in images:
        assert np.array_equal(image.pixels, PIXELS)
        assert np.array_equal(image.instances, LABELS)
    return [image.name for image in images]


def test_hidden_files_of_a_macs_archive_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, ("images/a.png",), ("labels/a.png",))
    for place in ("images", "labels"):
        (tmp_path / place / "._a.png").write_bytes(APPLE_DOUBLE)
    put(tmp_path, ("images/.hidden.png",))
    assert names(tmp_path) == ["a"]


def test_names_composed_and_decomposed_are_the_same(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Prüfung é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    put(tmp_path, (f"images/{composed}.png",), (f"labels/{decomposed}.png",))
    assert names(tmp_path) == [composed]
    put(tmp_path, (f"images/{decomposed}.png",))
    with pytest.raises(DataError, match="same name"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (("images/a.png",), ("labels/a.ome.tif",), ["a"]),
        (("images/a.PNG", "images/b.b.png"), ("labels/a.TIF", "labels/b.b.png"), ["a", "b.b"]),
        (("images/a.png", "images/b.png"), ("masks/a.png", "masks/b.png"), ["a", "b"]),
        (("images/a.png", "images/b.png"), ("masks/a_mask.png", "masks/b_mask.png"), ["a", "b"]),
        (("a.png", "b.png"), ("a_cp_masks.png", "b_cp_masks.tif"), ["a", "b"]),
        (("a.jpg.png",), ("a.jpg_masks.png",), ["a.jpg"]),
        (("000_img.png", "001_img.png"), ("000_masks.png", "001_masks.png"), ["000_img", "001_img"]),
        (("a.png",), ("a_anno.bmp",), ["a"]),
        (("images/s_overlay.png", "images/b.png"), ("labels/s_overlay.png", "labels/b.png"), ["b", "s_overlay"]),
        (("images/my_mask.png", "images/b.png"), ("labels/my_mask.png", "labels/b.png"), ["b", "my_mask"]),
    ],
    ids=str,
)  # fmt: skip
def test_layouts_of_labelled_sets(
    images: tuple[str, ...], masks: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    assert names(put(tmp_path, images, masks)) == expected


def test_what_cellpose_writes_beside_an_image_is_no_image(tmp_path: Path) -> None:
    put(tmp_path, ("a.png", "a_flows.tif", "a_cp_output.png", "plain_flows.png"), ("a_cp_masks.png",))
    assert list(find_images(tmp_path)) == ["a", "plain_flows"]
    assert find_masks(tmp_path) == {"a": tmp_path / "a_cp_masks.png"}
    put(tmp_path, (), ("a_masks.png",))
    with pytest.raises(DataError, match=r"a_masks\.png: same name as a_cp_masks\.png"):
        find_masks(tmp_path)


def test_overlays_beside_their_masks_are_no_masks(tmp_path: Path) -> None:
    put(tmp_path, ("a_overlay.png",), ("a.png", "b_overlay.png"))
    assert list(find_masks(tmp_path)) == ["a", "b_overlay"]


def test_the_data_science_bowls_own_folders(tmp_path: Path) -> None:
    for name in ("00ae65", "0121d6"):
        put(tmp_path, (f"{name}/images/{name}.png",))
        for number in (1, 2, 3):
            place = tmp_path / name / "masks" / f"{number}.png"
            place.parent.mkdir(exist_ok=True)
            Image.fromarray(((number == LABELS) * 255).astype(np.uint8)).save(place)
    (tmp_path / "__MACOSX").mkdir()
    assert names(tmp_path) == ["00ae65", "0121d6"]
    assert find_masks(tmp_path)["0121d6"] == tmp_path / "0121d6" / "masks"
    for name in ("00ae65", "0121d6"):
        shutil.rmtree(tmp_path / name / "masks")  # as stage1_test has none
    assert list(find_images(tmp_path)) == ["00ae65", "0121d6"]
    with pytest.raises(DataError, match="no instance masks found"):
        find_masks(tmp_path)
    put(tmp_path, ("0121d6/images/other.png",))
    with pytest.raises(DataError, match=r"0121d6.images: holds 2 images"):
        find_images(tmp_path)


def test_an_unknown_layout_is_told_the_known_ones(tmp_path: Path) -> None:
    put(tmp_path, ("a.png", "b.png"))
    with pytest.raises(DataError, match=r"name_anno\.bmp.*name_cp_masks\.png.*DSB 2018"):
        read_image_set(tmp_path)


def test_the_name_of_an_image() -> None:
    paths = ("x/a.b.png", "a.ome.tif", "a.OME.TIFF", "a.ome.png")
    assert [image_name(Path(path)) for path in paths] == ["a.b", "a", "a", "a.ome"]


@pytest.mark.parametrize("options", [{"metadata": {"axes": "CYX"}}, {"imagej": True}, {"ome": True}], ids=str)
def test_three_fluorescence_channels_are_colours(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = np.random.default_rng(1).integers(0, 4000, (3, 25, 40), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
    rgb = tmp_path / "rgb.tif"
    tifffile.imwrite(rgb, np.moveaxis(stack, 0, -1), photometric="rgb")
    expected = read_image(rgb)
    assert np.array_equal(read_image(path), expected)
    monkeypatch.setattr(large_images, "_IN_PARTS", 100)
    assert np.array_equal(open_image(path).rows(0, 25), expected)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a\.tif: (cannot be read|holds several)"):
        read_image(path)  # a file cut before its metadata no longer says what its pages are


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_told_what_to_do(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    stack = np.zeros((channels, 25, 40), np.uint16)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(
        DataError, match=rf"a\.tif: holds {channels} channels \(axes CYX\).*as a file of its own"
    ):
        decode_image(path.read_bytes(), str(path))
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(DataError, match=r"a\.tif: holds several images; save the one that is meant"):
        decode_image(path.read_bytes(), str(path))
