"""Images and masks as microscopes, scanners and scripts write them; every file is made here."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from nvcim.data.images import decode_image, read_image, read_instances, write_instances
from nvcim.errors import DataError

DEEP = np.array([[[0, 1000, 4000], [4000, 2000, 0]], [[1, 8, 16], [3000, 3000, 3000]]], dtype=np.uint16)
# Scaled by 255 / 4000, the largest value of all colours; so few pixels have no outliers.
DEEP_RGB = [[[0, 63.75, 255], [255, 127.5, 0]], [[0.06375, 0.51, 1.02], [191.25, 191.25, 191.25]]]


def deep_rgb() -> object:
    """What DEEP is read as, to the rounding of float32."""
    return pytest.approx(np.array(DEEP_RGB), abs=1e-4)


COLOURS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def png(header: tuple[int, int, int, int], rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand: width, height, bits, type of colour; rows each after their filter byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + start
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png_rows(values: np.ndarray) -> bytes:
    """Rows of big-endian values, no filter."""
    return b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- more than 8 bits ---


def test_sixteen_bit_colour_png_keeps_what_pillow_would_cut_off() -> None:
    data = png((2, 2, 16, 2), png_rows(DEEP))
    assert np.asarray(Image.open(io.BytesIO(data))).max() == 4000 >> 8  # Pillow: nearly black
    assert decode_image(data, "deep") == deep_rgb()


def test_sixteen_bit_png_with_alpha_ignores_it() -> None:
    opaque = np.full((2, 2, 1), 65535, dtype=np.uint16)
    assert decode_image(png((2, 2, 16, 6), png_rows(np.dstack([DEEP, opaque]))), "a") == deep_rgb()
    grey = decode_image(png((2, 2, 16, 4), png_rows(np.dstack([DEEP[..., :1], opaque]))), "b")
    # One channel starts from its least value: 0 and 1 of 4000.
    assert grey[..., 0] == pytest.approx(np.array([[0, 255], [1 * 255 / 4000, 3000 * 255 / 4000]]), abs=1e-4)
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"tile": (16, 16)},
    ],
)
def test_sixteen_bit_colour_tiff(options: dict[str, object]) -> None:
    assert decode_image(tiff(DEEP, photometric="rgb", **options), "deep") == deep_rgb()


def test_sixteen_bit_tiff_by_planes_and_with_alpha() -> None:
    planes = tiff(np.moveaxis(DEEP, -1, 0), photometric="rgb", planarconfig="separate")
    assert decode_image(planes, "planes") == deep_rgb()
    with_alpha = np.dstack([DEEP, np.full((2, 2), 65535, dtype=np.uint16)])
    assert decode_image(tiff(with_alpha, photometric="rgb", extrasamples=["unassalpha"]), "a") == deep_rgb()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int16, np.int32, np.float32, np.float64])
def test_deep_grey_tiff_of_any_type_fills_the_range(dtype: type) -> None:
    values = np.array([[0, 2000], [4000, 1000]], dtype=dtype)
    found = decode_image(tiff(values), "grey")[..., 2]
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[0, 127.5], [255, 63.75]]), abs=1e-4)


def test_real_values_up_to_one_fill_the_range() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode_image(tiff(values), "real")[0, :, 0].tolist() == [0, 127.5, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_values_that_are_no_brightness_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"x\.tif: pixel values must be finite and not negative"):
        decode_image(tiff(np.array([[1.0, bad]], dtype=np.float32)), "x.tif")


def test_two_channels_are_refused_and_counted() -> None:
    with pytest.raises(DataError, match=r"x\.tif: holds 2 channels; allowed: 1 \(grey\) or 3 \(RGB\)"):
        decode_image(tiff(DEEP[..., :2], photometric="minisblack", planarconfig="contig"), "x.tif")


def test_white_as_zero_is_turned_round() -> None:
    values = np.array([[0, 255, 55]], dtype=np.uint8)
    assert decode_image(tiff(values, photometric="miniswhite"), "w")[0, :, 0].tolist() == [255, 0, 200]
    deep = np.array([[65535, 0]], dtype=np.uint16)
    assert decode_image(tiff(deep, photometric="miniswhite"), "w")[0, :, 0].tolist() == [0, 255]


# --- palettes, grey, transparency, CMYK ---


def test_palette_grey_transparent_and_one_bit_give_their_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putdata([1, 0])
    for kind in ("PNG", "BMP", "TIFF"):
        assert decode_image(saved(palette, kind), kind).tolist() == [[[200, 100, 0], [10, 20, 30]]]
    rgba = Image.fromarray(np.array([[[9, 8, 7, 0], [1, 2, 3, 255]]], dtype=np.uint8))
    for kind in ("PNG", "TIFF"):
        assert decode_image(saved(rgba, kind), kind).tolist() == [[[9, 8, 7], [1, 2, 3]]]
    grey_alpha = Image.fromarray(np.array([[[90, 0], [10, 255]]], dtype=np.uint8), "LA")
    for kind in ("PNG", "TIFF"):
        assert decode_image(saved(grey_alpha, kind), kind)[0].tolist() == [[90] * 3, [10] * 3]
    bits = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "BMP", "TIFF"):
        assert decode_image(saved(bits, kind), kind)[0, :, 1].tolist() == [255, 0, 255]


def test_cmyk_jpeg_of_either_polarity() -> None:
    # Full cyan ink, nothing else: red 0, green and blue 255. Adobe's files store 255 - ink and say so.
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[..., 0] = 255
    adobe = saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)
    place = adobe.index(b"\xff\xee")
    length = struct.unpack(">H", adobe[place + 2 : place + 4])[0]
    assert b"Adobe" in adobe[place : place + length]
    assert np.abs(decode_image(adobe, "adobe").astype(int) - (0, 255, 255)).max() <= 2
    unmarked = adobe[:place] + adobe[place + 2 + length :]
    # The same stored values without the mark mean what they say: no cyan, full of the others, hence black.
    stored = imagecodecs.jpeg8_decode(unmarked, colorspace="cmyk", outcolorspace="cmyk")
    assert stored[0, 0].tolist() == [0, 255, 255, 255]
    assert decode_image(unmarked, "unmarked").max() <= 2
    assert (decode_image(saved(Image.fromarray(ink, "CMYK"), "TIFF"), "tiff") == (0, 255, 255)).all()


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_by_every_format(orientation: int, tmp_path: Path) -> None:
    # What EXIF 2.3 says of its tag: which side of the scene the first stored row and column show.
    turned = {
        1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1), 6: np.rot90(COLOURS, -1), 7: np.rot90(COLOURS, 2).swapaxes(0, 1),
        8: np.rot90(COLOURS),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(saved(Image.fromarray(COLOURS), "PNG", exif=exif), "png"), turned)
    tag = [(0x0112, "H", 1, orientation, True)]
    assert np.array_equal(decode_image(tiff(COLOURS, photometric="rgb", extratags=tag), "tiff"), turned)
    path = tmp_path / "mask.tif"
    path.write_bytes(tiff(COLOURS[..., 0], extratags=tag))
    assert np.array_equal(read_instances(path), turned[..., 0])
    deep = png((4, 2, 16, 2), png_rows(COLOURS.astype(np.uint16)), exif_chunk(orientation))
    assert decode_image(deep, "deep") == pytest.approx(turned * (255.0 / 230), abs=1e-4)


def exif_chunk(orientation: int) -> bytes:
    content = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return (
        struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    )


def test_a_photographs_jpeg_is_turned_upright() -> None:
    left_half_white = np.zeros((16, 32), dtype=np.uint8)
    left_half_white[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the first stored column is the top
    image = decode_image(saved(Image.fromarray(left_half_white), "JPEG", exif=exif, quality=100), "photo")
    assert image.shape == (32, 16, 3)
    assert image[:14].min() > 250
    assert image[18:].max() < 5


# --- files that hold nothing, too much, or something else ---


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp"])
def test_empty_files_are_called_empty(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    for read in (read_image, read_instances):
        with pytest.raises(
            DataError, match=rf"a\.{name[2:]}: cannot be read as an image \(the file is empty\)"
        ):
            read(path)


def test_several_images_in_a_file_are_refused_and_previews_are_not(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    stack = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8)
    for options in ({}, {"imagej": True, "metadata": {"axes": "ZYX"}}):
        tifffile.imwrite(path, stack, photometric="minisblack", **options)
        for read in (read_image, read_instances):
            with pytest.raises(DataError, match=r"stack\.tif: holds several images"):
                read(path)
    with tifffile.TiffWriter(path) as file:
        file.write(stack[0], photometric="minisblack", subifds=1)
        file.write(stack[0, ::2, ::2], photometric="minisblack", subfiletype=1)
        file.write(stack[0, ::4, ::4], photometric="minisblack")
    assert np.array_equal(read_instances(path), stack[0])


@pytest.mark.parametrize("keep", [3, 8, 100, 0.5, 0.9, -1])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_truncated_tiffs_are_named(keep: float, compression: str | None, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (64, 64, 3), dtype=np.uint16)
    data = tiff(values, photometric="rgb", compression=compression)
    path = tmp_path / "cut.tif"
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    for read in (read_image, read_instances):
        with pytest.raises(DataError, match=r"cut\.tif: cannot be read"):
            read(path)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_damaged_tiffs_never_escape_as_other_errors(compression: str | None) -> None:
    random = np.random.default_rng(1)
    data = tiff(
        random.integers(0, 65535, (16, 16, 3), dtype=np.uint16), photometric="rgb", compression=compression
    )
    whole = np.frombuffer(data, dtype=np.uint8)
    refused = 0
    for _ in range(40):
        damaged = whole.copy()
        damaged[random.integers(0, 400, 6)] = random.integers(0, 256, 6)  # the header and the tags
        try:
            decode_image(damaged.tobytes(), "damaged")
        except DataError:
            refused += 1
    assert refused > 10


def test_a_small_file_that_would_unpack_to_gigabytes_is_refused() -> None:
    with pytest.raises(DataError, match=r"huge\.png: cannot be read as an image .*exceeds limit"):
        decode_image(png((100_000, 100_000, 8, 2), b""), "huge.png")
    page = tiff(np.zeros((16, 16), dtype=np.uint16))
    for tag in (256, 257):  # width and height, as 32-bit values
        place = page.index(struct.pack("<HHI", tag, 4, 1))
        page = page[: place + 8] + struct.pack("<I", 20_000) + page[place + 12 :]
    with pytest.raises(DataError, match=r"huge\.tif: 20000 x 20000 pixels; allowed here: 178956970"):
        decode_image(page, "huge.tif")


# --- masks ---


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_of_one_object_and_of_none(suffix: str, tmp_path: Path) -> None:
    one = np.zeros((5, 7), dtype=np.int32)
    one[1:3, 2:6] = 9
    for mask in (one, np.zeros((5, 7), dtype=np.int32), np.ones((1, 1), dtype=np.int32)):
        write_instances(mask, tmp_path / f"m{suffix}")
        found = read_instances(tmp_path / f"m{suffix}")
        assert found.dtype == np.int32
        assert np.array_equal(found, mask)


def test_seventy_thousand_objects_survive_in_tiff_and_are_refused_in_png(tmp_path: Path) -> None:
    mask = np.zeros((300, 500), dtype=np.int32)
    labels = np.zeros(300 * 250, dtype=np.int32)
    labels[:70_000] = np.arange(1, 70_001)
    mask[:, ::2] = labels.reshape(300, 250)
    write_instances(mask, tmp_path / "many.tif")
    assert tifffile.imread(tmp_path / "many.tif").dtype == np.uint32
    found = read_instances(tmp_path / "many.tif")
    assert np.array_equal(found, mask)
    assert len(np.unique(found)) == 70_001
    with pytest.raises(DataError, match=r"many\.png: labels must lie in 0\.\.65535 .*\.tif holds more"):
        write_instances(mask, tmp_path / "many.png")
    assert not (tmp_path / "many.png").exists()


def test_few_objects_take_sixteen_bits_in_tiff(tmp_path: Path) -> None:
    write_instances(np.array([[0, 65535]], dtype=np.int32), tmp_path / "m.tif")
    assert tifffile.imread(tmp_path / "m.tif").dtype == np.uint16
    with pytest.raises(DataError, match=r"n\.tif: instance labels must lie in"):
        write_instances(np.array([[-1]], dtype=np.int32), tmp_path / "n.tif")


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64])
def test_integer_tiff_masks_of_every_type(dtype: type, tmp_path: Path) -> None:
    mask = np.array([[0, 1, 100], [7, 7, 0]], dtype=dtype)
    tifffile.imwrite(tmp_path / "m.tif", mask, compression="zlib")
    assert read_instances(tmp_path / "m.tif").tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, -1]], dtype=np.int16), "must lie in 0..2147483647"),
        (np.array([[0, 2**31]], dtype=np.uint32), "must lie in 0..2147483647"),
        (np.array([[0.0, 1.5]], dtype=np.float32), "integers, found float32 with 1.5"),
        (np.array([[0.0, np.nan]], dtype=np.float64), "integers, found float64 with nan"),
        (np.array([[0.0, -1.0]], dtype=np.float32), "must lie in 0..2147483647"),
        (np.array([[0.0, 2.0**31]], dtype=np.float64), "must lie in 0..2147483647"),
    ],
)
def test_tiff_masks_that_hold_no_labels_are_refused(values: np.ndarray, message: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", values)
    with pytest.raises(DataError, match=rf"m\.tif: .*{message}"):
        read_instances(tmp_path / "m.tif")


def test_masks_in_tiff_are_read_as_stored(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2]], dtype=np.uint8)
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, mask, photometric="miniswhite")  # a viewer's matter: 0 is background all the same
    assert read_instances(path).tolist() == [[0, 1, 2]]
    tifffile.imwrite(path, mask, colormap=np.arange(768, dtype=np.uint16).reshape(3, 256))
    assert read_instances(path).tolist() == [[0, 1, 2]]
    tifffile.imwrite(path, np.zeros((16, 16), dtype=np.uint8), compression="jpeg")
    with pytest.raises(DataError, match="lossy"):
        read_instances(path)


def test_masks_drop_transparency_and_refuse_colours(tmp_path: Path) -> None:
    grey_alpha = np.array([[[3, 255], [0, 0]]], dtype=np.uint8)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "la.png")
    assert read_instances(tmp_path / "la.png").tolist() == [[3, 0]]
    rgba = np.array([[[3, 3, 3, 255], [0, 0, 0, 9]]], dtype=np.uint8)
    for suffix in (".png", ".tif"):
        Image.fromarray(rgba).save(tmp_path / f"rgba{suffix}")
        assert read_instances(tmp_path / f"rgba{suffix}").tolist() == [[3, 0]]
    (tmp_path / "deep.png").write_bytes(png((2, 2, 16, 2), png_rows(DEEP)))
    tifffile.imwrite(tmp_path / "deep.tif", DEEP, photometric="rgb")
    for name in ("deep.png", "deep.tif"):
        with pytest.raises(DataError, match=rf"{name}: a mask has one channel of integer labels, found 3"):
            read_instances(tmp_path / name)
