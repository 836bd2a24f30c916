"""The page, picture and tables of an explained crossbar: their parts, and that they need nothing from elsewhere."""

import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from nvcim.config import parse_settings
from nvcim.crossbar.explain import Explanation, explain
from nvcim.crossbar.explain_job import ExplainJob
from nvcim.report.crossbar_page import write_explanation
from nvcim.report.crossbar_picture import crossbar_picture
from nvcim.report.crossbar_tables import crossbar_tables
from nvcim.report.drawing import Picture, Rect, Text, circle, diamond, square, to_png, to_svg
from nvcim.report.units import engineering, percent


def explained(**crossbar: object) -> Explanation:
    content = {
        "weight": {"shape": [20, 12]},
        "inputs": {"vectors": 8},
        "devices": 2,
        "crossbar": {"device": "RRAM4", "rows": 16, "cols": 8, **crossbar},
    }
    return explain(parse_settings(content, ExplainJob, "test"))


@pytest.fixture(scope="module")
def found() -> Explanation:
    return explained(g_min_us=1.0, g_max_us=40.0, read_noise=0.02)


def test_a_page_a_picture_and_the_numbers_are_written(found: Explanation, tmp_path: Path) -> None:
    paths = write_explanation(found, tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["explain.html", "explain.png", "explain.svg", "explain.json"]
    assert json.loads(paths[3].read_text())["arrays"]["arrays"] == found.plan.arrays
    page = paths[0].read_text()
    assert paths[2].read_text().strip() in page
    assert (
        "http"
        not in page.replace('xmlns="http://www.w3.org/2000/svg"', "").split("Constants of the cost model")[0]
    )
    assert "<script" not in page
    for table in crossbar_tables(found):
        assert table.title in page
    for cause in ("quantization", "variation", "DAC", "read noise", "ADC"):
        assert f"<td>{cause}</td>" in page
    assert "ISAAC" in page  # a source
    assert len(page) < 100_000


def test_the_picture_has_an_array_per_side_and_slice_and_a_row_per_cause(found: Explanation) -> None:
    svg = ElementTree.fromstring(to_svg(crossbar_picture(found)))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    for plane in found.planes:
        assert f"side {'+' if plane.sign > 0 else '-'}, slice {plane.index + 1}: 2 b" in texts
    for one in found.causes:
        assert one.cause in texts
    for row in found.product:
        assert row.component in texts


def test_used_cells_are_drawn_to_scale(found: Explanation) -> None:
    rectangles = [shape for shape in crossbar_picture(found).shapes if isinstance(shape, Rect)]
    idle, used = rectangles[0], rectangles[1]
    # 20 x 12 weights in 2 x 2 arrays of 16 x 8
    assert used.height / idle.height == pytest.approx(20 / 32)
    assert used.width / idle.width == pytest.approx(12 / 16)
    assert idle.height / idle.width == pytest.approx(32 / 16)


def test_everything_is_drawn_inside_the_picture(found: Explanation) -> None:
    for explanation in (
        found,
        explained(adc_bits=None, weight_bits=16),
        explained(weight_bits=2, scheme="offset"),
    ):
        picture = crossbar_picture(explanation)
        for shape in picture.shapes:
            if isinstance(shape, Rect):
                assert shape.x >= 0
                assert shape.x + shape.width <= picture.width
                assert shape.y + shape.height <= picture.height
            elif isinstance(shape, Text):
                assert 0 <= shape.x <= picture.width
                assert 0 < shape.y < picture.height


def test_what_is_unknown_says_so_with_its_reason() -> None:
    found = explained(adc_bits=None)
    notes = [note for table in crossbar_tables(found) for note in table.notes]
    assert any(note.endswith("unknown: adc_bits: an ideal ADC has no cost that is known") for note in notes)
    texts = [shape.text for shape in crossbar_picture(found).shapes if isinstance(shape, Text)]
    assert "unknown: mean_conductance: the device's conductances are not known" in texts
    assert "unknown" in texts


def test_svg_and_png_show_the_same() -> None:
    picture = Picture(40, 20, "a < b", [Rect(10, 5, 20, 10, "#ff0000", title="x & y"), Text(1, 18, "<&>", 8)])
    svg = ElementTree.fromstring(to_svg(picture))
    assert svg[0].text == "a < b"
    image = Image.open(io.BytesIO(to_png(picture)))
    assert image.size == (80, 40)
    assert image.getpixel((40, 20)) == (255, 0, 0)
    assert image.getpixel((10, 10)) == (255, 255, 255)


def test_marks_are_closed_around_their_middle() -> None:
    for shape in (circle(3, 4, 2), diamond(3, 4, 2), square(3, 4, 2)):
        assert sum(x for x, _ in shape) / len(shape) == pytest.approx(3)
        assert sum(y for _, y in shape) / len(shape) == pytest.approx(4)
    assert len(set(circle(0, 0, 1))) == 16
    assert all(x * x + y * y == pytest.approx(1, abs=1e-3) for x, y in circle(0, 0, 1))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 J"),
        (5.3338e-9, "5.33 nJ"),
        (9.999e-10, "1 nJ"),
        (1.0, "1 J"),
        (2.5e4, "25 kJ"),
        (1e-20, "0.01 aJ"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert engineering(value, "J") == text


def test_shares_are_percent_with_three_digits() -> None:
    assert [percent(share) for share in (0.13, 0.012345, 1.0, 12.5)] == [
        "13.0 %",
        "1.23 %",
        "100 %",
        "1.25e+03 %",
    ]
