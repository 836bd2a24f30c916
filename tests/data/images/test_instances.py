"""Masks as other programs write them."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nvcim.data.images import read_instances, write_instances
from nvcim.errors import DataError

THREE = np.zeros((40, 50), dtype=np.uint8)  # three nuclei, numbered in the order of their first pixels
THREE[3:15, 3:15], THREE[8:20, 30:45], THREE[20:35, 10:25] = 1, 2, 3
WHITE = ((THREE > 0) * 255).astype(np.uint8)


def saved(values: np.ndarray, path: Path) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_real_numbers_that_are_whole_are_labels(dtype: type, tmp_path: Path) -> None:
    found = read_instances(saved(THREE.astype(dtype), tmp_path / "m.tif"))
    assert found.dtype == np.int32
    assert np.array_equal(found, THREE)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (WHITE, "m.png"),
        (WHITE, "m.bmp"),
        (WHITE, "m.tif"),
        (THREE > 0, "m.png"),
        ((THREE > 0).astype(np.uint8), "m.png"),
        (np.dstack([WHITE] * 3), "m.png"),
        ((THREE > 0).astype(np.int32), "m.tif"),
        ((THREE > 0).astype(np.float32), "m.tif"),
        (WHITE.astype(np.uint16) * 257, "m.png"),
    ],
    ids=["white", "bitmap", "tiff", "bits", "ones", "rgb", "int32", "float", "65535"],
)
def test_a_binary_mask_of_three_nuclei_gives_three_objects_and_says_so(
    values: np.ndarray, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_instances(saved(values, tmp_path / name))
        read_instances(tmp_path / name)
    assert np.array_equal(found, THREE)
    [message] = caplog.messages  # once for a folder
    assert f"{tmp_path / name}: a binary mask; its 3 pieces are read as one object each" in message


def test_pieces_are_joined_at_corners(tmp_path: Path) -> None:
    diagonal = np.zeros((4, 6), dtype=np.uint8)
    diagonal[0, 0] = diagonal[1, 1] = diagonal[3, 5] = 255
    found = read_instances(saved(diagonal, tmp_path / "m.png"))
    assert [found[0, 0], found[1, 1], found[3, 5]] == [1, 1, 2]


def test_one_object_is_taken_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = (THREE == 2).astype(np.uint8) * 255
    assert np.unique(read_instances(saved(one, tmp_path / "one.png"))).tolist() == [0, 255]
    # Two pieces of one object: by its number, and as this project writes masks (16 bits).
    parts = (THREE > 1).astype(np.int32)
    write_instances(parts, tmp_path / "parts.png")
    write_instances(parts, tmp_path / "parts.tif")
    saved((parts * 9).astype(np.uint8), tmp_path / "nine.png")
    for name in ("parts.png", "parts.tif", "nine.png"):
        assert len(np.unique(read_instances(tmp_path / name))) == 2, name
    assert not caplog.messages


def test_a_folder_of_one_mask_per_object_is_a_mask(tmp_path: Path) -> None:
    for number, name in ((1, "b"), (2, "a"), (3, "c")):
        saved(((number == THREE) * 255).astype(np.uint8), tmp_path / f"{name}.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    found = read_instances(tmp_path)
    assert np.array_equal(found, np.array([0, 2, 1, 3])[THREE])  # numbered by file name
    saved(WHITE, tmp_path / "d.png")
    with pytest.raises(DataError, match=r"d\.png: overlaps the object of [abc]\.png"):
        read_instances(tmp_path)
    saved(WHITE[:5], tmp_path / "d.png")
    with pytest.raises(DataError, match=r"d\.png: mask of another size than a\.png"):
        read_instances(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no masks found"):
        read_instances(tmp_path / "empty")


def test_a_stack_of_channels_is_no_mask(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "m.tif", np.stack([THREE] * 3), photometric="minisblack", metadata={"axes": "CYX"}
    )
    with pytest.raises(DataError, match=r"m\.tif: holds several images"):
        read_instances(tmp_path / "m.tif")
