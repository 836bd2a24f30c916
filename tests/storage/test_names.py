"""An id's file name lies in its folder, stands for one id alone, and is one that every file system takes."""

import re
from pathlib import Path

import pytest

from nvcim.errors import DataError
from nvcim.storage.names import LONGEST, exact, file_name

IDS = [
    "user-000",
    "LaMP_5-110",
    "u/a",
    "u%2Fa",
    "u\\a",
    "..",
    ".",
    "...",
    "../../escape",
    "/etc/passwd",
    ".hidden",
    "a:b",
    "a b",
    "a\nb",
    "a\0b",
    "~root",
    "%",
    "žluťoučký kůň 😀",
    "e\u0301",
    "\u00e9",
    "x" * 300,
    "x" * 301,
    "é" * 200,
]


@pytest.mark.parametrize("identity", IDS)
def test_a_name_is_one_plain_file_of_its_folder(tmp_path: Path, identity: str) -> None:
    name = file_name(identity)
    assert re.fullmatch(r"[A-Za-z0-9%_~-][A-Za-z0-9%_.~-]*", name)
    assert len(name) <= LONGEST
    (tmp_path / name).write_text(identity)
    assert (tmp_path / name).parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_two_ids_share_a_name() -> None:
    assert len({file_name(identity) for identity in IDS}) == len(IDS)


def test_plain_ids_are_their_own_names() -> None:
    assert [file_name(name) for name in ("user-000", "LaMP_2N-7", "a.b")] == [
        "user-000",
        "LaMP_2N-7",
        "a.b",
    ]
    assert file_name("TiN/HfO2/Ti") == "TiN%2FHfO2%2FTi"


@pytest.mark.parametrize("identity", ["", "\ud83d"])
def test_what_is_no_text_has_no_name(identity: str) -> None:
    with pytest.raises(DataError, match="expected"):
        file_name(identity)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (0.0, "0"), (1e-5, "1e-05"), (0.1234561, "0.1234561"), (0.1234564, "0.1234564")],
)
def test_a_number_is_as_short_as_tells_it_from_all_others(value: float, text: str) -> None:
    assert exact(value) == text
    assert float(exact(value)) == value
