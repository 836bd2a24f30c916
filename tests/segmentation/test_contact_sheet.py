"""Contact sheets: every image is there, captions stay in their cards, colours mean what the scale says."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from nvcim.segmentation import contact_sheet as sheets
from nvcim.segmentation.contact_sheet import contact_sheet, heat_colours
from nvcim.segmentation.suggestion_files import FolderSuggestions
from nvcim.segmentation.suggestive import Suggestion

RED, BLUE = (200, 10, 10), (10, 10, 200)


def plain(colour: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def make_found(images: dict[str, np.ndarray], heat: dict[str, np.ndarray]) -> FolderSuggestions:
    suggestions = tuple(Suggestion(name, 0.05 if heat else None, 1.0, 3) for name in images)
    nearest = tuple(("a very long name of an annotated image " * 4, 0.987) for _ in images)
    return FolderSuggestions("How it was found. " * 30, 4, 90, suggestions, nearest, images, heat)


def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(sheet.astype(int) - np.array(colour)).max(axis=-1) <= 1).sum())


def test_every_picture_is_drawn_at_its_own_shape() -> None:
    sheet = contact_sheet(make_found({"a": plain(RED, 100, 200), "b": plain(BLUE, 300, 100)}, {}))
    assert count(sheet, RED) == 400 * 200  # as wide as its box
    assert count(sheet, BLUE) == 100 * 300  # as high as its box


def test_heat_lies_beside_its_image_on_one_scale() -> None:
    heat = {"a": np.full((30, 40), 0.1, np.float32), "b": np.full((30, 40), 0.4, np.float32)}
    sheet = contact_sheet(make_found({"a": plain(RED, 30, 40), "b": plain(BLUE, 30, 40)}, heat))
    low, high = heat_colours(np.array([[0.1, 0.4]], np.float32), 0.4)[0]
    assert count(sheet, tuple(low)) >= 400 * 300
    assert count(sheet, tuple(high)) >= 400 * 300
    assert count(sheet, RED) == count(sheet, BLUE) == 400 * 300


def test_heat_runs_from_dark_to_light() -> None:
    ramp = heat_colours(np.linspace(0, 0.5, 64, dtype=np.float32)[None], 0.5)[0].astype(float)
    brightness = ramp @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(brightness) > 0).all()
    assert tuple(ramp[0]) == (0, 0, 4)
    assert tuple(heat_colours(np.array([[9.0]], np.float32), 0.5)[0, 0]) == (252, 255, 164)


@pytest.mark.parametrize("heated", [True, False])
def test_no_text_leaves_its_card_or_overlaps_another(monkeypatch: pytest.MonkeyPatch, heated: bool) -> None:
    boxes: list[tuple[float, float, float, float]] = []
    honest = ImageDraw.ImageDraw.text

    def recorded(self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *rest: object) -> None:
        boxes.append(self.textbbox(place, text, font=rest[1]))  # type: ignore[arg-type]
        honest(self, place, text, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)
    names = [f"{'0123456789abcdef' * 5}-{index}" for index in range(9)]
    heat = {name: np.ones((20, 30), np.float32) for name in names} if heated else {}
    sheet = contact_sheet(make_found({name: plain(RED, 40, 60) for name in names}, heat))
    height, width = sheet.shape[:2]
    assert len(boxes) > 2 * len(names)
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width - 10
        assert bottom <= height
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_a_name_too_long_keeps_its_ends() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    font = sheets._font(16)
    shown = sheets._fitted(draw, "begin-" + "x" * 200 + "-end", font, 150)
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert draw.textlength(shown, font) <= 150
    assert sheets._fitted(draw, "short", font, 150) == "short"


def test_one_tiny_image_makes_a_sheet() -> None:
    sheet = contact_sheet(make_found({"a": plain(RED, 1, 1)}, {}))
    assert count(sheet, RED) == 300 * 300
