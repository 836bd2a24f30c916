from pathlib import Path

import numpy as np
import pytest
import tifffile

from nvcim.data import large_images
from nvcim.data.images import encode_instances_tiff, read_image, write_image
from nvcim.data.large_images import ArrayImage, ImageRows, TiffImage, open_image
from nvcim.errors import DataError
from nvcim.segmentation.network import normalise_colours

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def in_parts(image: ImageRows, step: int = 37) -> np.ndarray:
    return np.concatenate([image.rows(top, bottom) for top, bottom in image.bands(step)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (32, 48)},
        {"tile": (64, 64), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7, "compression": "lzw"},
        {"compression": "deflate", "rowsperstrip": 150},
        {"bigtiff": True, "compression": "zstd", "tile": (32, 32)},
        {"byteorder": ">"},
    ],
    ids=str,
)
@pytest.mark.parametrize("planar", [False, True])
def test_rows_of_a_tiff_are_its_pixels_however_it_is_stored(
    tmp_path: Path, options: dict, planar: bool
) -> None:
    path = tmp_path / "x.tif"
    data = np.ascontiguousarray(PIXELS.transpose(2, 0, 1)) if planar else PIXELS
    kind = "separate" if planar else "contig"
    tifffile.imwrite(path, data, photometric="rgb", planarconfig=kind, **options)
    image = TiffImage(path)
    assert (image.height, image.width) == (150, 130)
    assert np.array_equal(in_parts(image), PIXELS)
    assert np.array_equal(image.rows(149, 150), PIXELS[149:])


def test_grey_alpha_inverted_and_palette_become_rgb(tmp_path: Path) -> None:
    expected = np.repeat(GREY[..., None], 3, axis=2)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, GREY, photometric="minisblack", compression="zlib")
    assert np.array_equal(in_parts(TiffImage(path)), expected)
    tifffile.imwrite(path, GREY, photometric="miniswhite", tile=(32, 32))
    assert np.array_equal(in_parts(TiffImage(path)), 255 - expected)
    rgba = np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=9)
    assert np.array_equal(in_parts(TiffImage(path)), PIXELS)
    colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(path, GREY, photometric="palette", colormap=colours)
    assert np.array_equal(in_parts(TiffImage(path)), (colours // 257).astype(np.uint8).T[GREY])


def test_sixteen_bits_are_stretched_by_percentiles_of_the_whole_image(tmp_path: Path) -> None:
    values = GREY.astype(np.uint16) * 10
    values[140, 3:5] = 65535  # two hot pixels in the last strip
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, photometric="minisblack", compression="zlib", rowsperstrip=20)
    # 150 x 130 pixels: the 20 least and the 20 largest are left out.
    low, high = np.sort(values.ravel().astype(float))[[20, -21]]
    expected = np.clip(values.astype(float), None, high + 3 * (high - low)) - low
    assert in_parts(TiffImage(path))[..., 1] == pytest.approx(expected * 255 / (high - low), abs=1e-3)
    assert np.array_equal(in_parts(TiffImage(path)), read_image(path))


def test_statistics_of_a_deep_image_are_those_that_networks_are_trained_with(tmp_path: Path) -> None:
    import torch

    values = np.random.default_rng(3).integers(200, 900, (1100, 30, 3)).astype(np.uint16)  # three bands
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, photometric="rgb", compression="zlib", rowsperstrip=20)
    whole = read_image(path)
    theirs = normalise_colours(torch.from_numpy(whole).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    for image in (TiffImage(path), ArrayImage(whole)):
        mean, deviation = image.colour_statistics()
        ours = (torch.from_numpy(whole) - torch.from_numpy(mean)) / torch.from_numpy(deviation)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_real_numbers_on_another_scale_are_refused() -> None:
    for values in (np.ones((4, 4, 3)), np.full((4, 4, 3), np.nan)):
        with pytest.raises(DataError, match=r"float32 image holds finite values on the scale of 0\.\.255"):
            ArrayImage(values.astype(np.float32))
    with pytest.raises(DataError, match="found float64"):
        ArrayImage(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def test_a_pyramid_is_read_at_full_size_and_a_stack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(PIXELS, photometric="rgb", subifds=1, tile=(32, 32))
        file.write(PIXELS[::2, ::2], photometric="rgb", subfiletype=1, tile=(32, 32))
    assert np.array_equal(in_parts(TiffImage(path)), PIXELS)
    tifffile.imwrite(path, np.stack([PIXELS] * 4), photometric="rgb")
    with pytest.raises(DataError, match=r"x\.tif: holds several images"):
        TiffImage(path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.tif: cannot be read as a TIFF"):
        TiffImage(path)
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(64, 64), compression="zlib")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000])
    with pytest.raises(DataError, match=r"x\.tif"):
        in_parts(TiffImage(path))
    tifffile.imwrite(path, np.concatenate([PIXELS, PIXELS[..., :1]], axis=2), photometric="separated")
    with pytest.raises(DataError, match=r"x\.tif: .*colours are SEPARATED"):
        TiffImage(path)
    tifffile.imwrite(path, -PIXELS[..., 0].astype(np.int16), photometric="minisblack")
    with pytest.raises(DataError, match="not negative"):
        in_parts(TiffImage(path))


def test_colour_statistics_are_those_that_networks_are_trained_with(tmp_path: Path) -> None:
    import torch

    image = ArrayImage(PIXELS)
    mean, deviation = image.colour_statistics()
    ours = (torch.from_numpy(PIXELS).float() - torch.from_numpy(mean)) / torch.from_numpy(deviation)
    theirs = normalise_colours(torch.from_numpy(PIXELS).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert ArrayImage(np.full((3, 4, 3), 7, dtype=np.uint8)).colour_statistics()[1].tolist() == pytest.approx(
        [0.255] * 3
    )


def test_small_images_are_opened_whole_in_any_format(tmp_path: Path) -> None:
    write_image(PIXELS, tmp_path / "x.png")
    assert isinstance(open_image(tmp_path / "x.png"), ArrayImage)
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, photometric="rgb", compression="zlib")
    assert np.array_equal(in_parts(open_image(tmp_path / "x.tif")), PIXELS)


@pytest.mark.parametrize(("largest", "kind"), [(7, np.uint16), (65535, np.uint16), (70000, np.uint32)])
def test_label_tiffs_hold_every_label(tmp_path: Path, largest: int, kind: type) -> None:
    labels = np.zeros((300, 520), dtype=np.int32)
    labels[299, 519], labels[10:20, 250:260] = largest, 3
    path = tmp_path / "x.tif"
    path.write_bytes(encode_instances_tiff(labels, "x"))
    read = tifffile.imread(path)
    assert read.dtype == kind
    assert np.array_equal(read, labels)
    with pytest.raises(DataError, match=r"y: instance labels must lie in 0\.\."):
        encode_instances_tiff(-labels, "y")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
@pytest.mark.parametrize(
    ("photometric", "planar"),
    [("miniswhite", "contig"), ("minisblack", "contig"), ("rgb", "contig"), ("rgb", "separate")],
)
def test_both_readers_give_the_same_pixels(tmp_path: Path, photometric: str, bits: int, planar: str) -> None:
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    values = np.random.default_rng(2).integers(0, 2**bits - 1, (50, 40, 3)).astype(kind)  # never all bits
    stored = values if photometric == "rgb" else values[..., 0]
    stored = np.ascontiguousarray(stored.transpose(2, 0, 1)) if planar == "separate" else stored
    path = tmp_path / "x.tif"
    options = {"planarconfig": planar} if photometric == "rgb" else {}
    if bits == 1:
        stored = stored.astype(bool)
    elif bits not in (8, 16, 32):
        options["bitspersample"] = bits
    tifffile.imwrite(path, stored, photometric=photometric, rowsperstrip=16, **options)
    whole = read_image(path)
    assert np.array_equal(in_parts(TiffImage(path), 7), whole)
    if bits < 8 and photometric != "rgb":
        levels = np.round(values[..., 0] * (255 / (2**bits - 1))).astype(np.uint8)
        assert np.array_equal(whole[..., 0], 255 - levels if photometric == "miniswhite" else levels)
    if bits == 16 and photometric == "miniswhite":
        inverted = 65535 - values[..., 0].astype(float)
        low, high = np.sort(inverted.ravel())[[2, -3]]  # of 2,000 pixels two are left out at either end
        assert whole[..., 1] == pytest.approx((inverted - low) * 255 / (high - low), abs=1e-3)


def test_size_does_not_decide_what_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    five = np.concatenate([PIXELS, PIXELS[..., :2]], axis=2)
    files = {
        "turned": (PIXELS, {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}),
        "cmyk": (five[..., :4], {"photometric": "separated"}),
        "five": (five, {"photometric": "minisblack", "planarconfig": "contig"}),
        "extra": (
            five[..., :2],
            {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0]},
        ),
        "alpha": (five[..., :4], {"photometric": "rgb", "extrasamples": [2]}),
        "unspecified": (five[..., :4], {"photometric": "rgb", "extrasamples": [0]}),
    }
    for name, (data, options) in files.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, data, **options)
        found = []
        for limit in (10**9, 100):
            monkeypatch.setattr(large_images, "_IN_PARTS", limit)
            try:
                found.append(in_parts(open_image(path)).tobytes())
            except DataError as error:
                found.append(str(error))
        assert found[0] == found[1], name
        assert isinstance(found[0], str) == (name in ("five", "extra")), name
