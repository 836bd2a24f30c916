"""Settings from YAML: every complaint is one line that names the field and what is allowed."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from nvcim.config import LocalPath, Settings, load_settings, parse_settings, read_yaml
from nvcim.errors import ConfigError


class Inner(Settings):
    depth: int = Field(2, ge=1)
    width: int = 8


class Outer(Settings):
    name: str = "a"
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_are_read_and_left_out_fields_keep_their_defaults(tmp_path: Path) -> None:
    found = load_settings(write(tmp_path, "inner: {depth: 5}\n"), Outer)
    assert found == Outer(inner=Inner(depth=5))
    assert load_settings(write(tmp_path, ""), Outer) == Outer()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("nmae: b", "nmae"),
        ("inner: {dept: 1}", "inner.dept"),
        ("maybe: {dept: 1}", "maybe.dept"),
        ("many: [{depth: 1}, {dept: 1}]", "many.1.dept"),
        ("by_name: {first: {dept: 1}}", "by_name.first.dept"),
    ],
)
def test_an_unknown_field_is_named_with_the_allowed_ones(tmp_path: Path, text: str, field: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, Outer)
    message = str(caught.value)
    allowed = "by_name, inner, many, maybe, name" if field == "nmae" else "depth, width"
    meant = "name" if field == "nmae" else "depth"
    assert message == f"{path}: unknown field '{field}' (did you mean '{meant}'?); allowed: {allowed}"


def test_a_value_out_of_range_is_named_with_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^somewhere: field 'inner\.depth': .* \(given: 0\)$"):
        parse_settings({"inner": {"depth": 0}}, Outer, "somewhere")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"a: [1\nb: 2", "not valid YAML at line 2"), (b"\xff\xfe\x00a", "not UTF-8"), (None, "cannot be read")],
)
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_is_no_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of settings, found list"):
        load_settings(write(tmp_path, "- 1"), Outer)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "b"  # type: ignore[misc]


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: int = 1


class Square(Settings):
    kind: Literal["square"] = "square"
    side: int = 1


class Drawing(Settings):
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle()
    shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...] = ()


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        ({"shape": {"kind": "square", "sied": 2}}, "(did you mean 'side'?); allowed: kind, side"),
        ({"shapes": [{"kind": "circle", "side": 2}]}, "; allowed: kind, radius"),
    ],
)
def test_an_unknown_field_of_a_union_lists_the_chosen_member(
    content: dict[str, object], allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(content, Drawing, "somewhere")
    assert str(caught.value).endswith(allowed)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\nname: b\n", "key 'name' is given twice, at lines 1 and 2"),
        ("inner: {depth: 1, width: 2, depth: 3}", "key 'depth' is given twice, at lines 1 and 1"),
        ('name: a\n"name": b\n', "key 'name' is given twice, at lines 1 and 2"),
        ("many:\n- depth: 1\n- depth: 2\n  depth: 2\n", "key 'depth' is given twice, at lines 3 and 4"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, Outer)
    assert str(caught.value) == f"{path}: {complaint}"


def test_a_key_may_stand_over_a_merged_one(tmp_path: Path) -> None:
    text = "inner: &base {depth: 5, width: 1}\nmany:\n- {<<: *base, depth: 7}\n- *base\n"
    found = load_settings(write(tmp_path, text), Outer)
    assert found.many == (Inner(depth=7, width=1), Inner(depth=5, width=1))
    assert found.inner == Inner(depth=5, width=1)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "\ufeffname: b\n"), Outer).name == "b"


class Places(Settings):
    data: LocalPath | None = None


def test_a_relative_path_is_seen_from_the_working_folder_and_kept_as_the_place_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path.resolve()
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    found = parse_settings({"data": "../my.yaml"}, Places, "somewhere")
    monkeypatch.chdir("/")
    assert found.data == here / "my.yaml"
    assert parse_settings(found.model_dump(mode="json"), Places, "run.json") == found
    with pytest.raises(ConfigError, match="field 'data'"):
        parse_settings({"data": "a\0b"}, Places, "somewhere")
