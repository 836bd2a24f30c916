"""Progress is a bar on a terminal and a few plain lines elsewhere."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from nvcim.progress import progress


def test_off_a_terminal_progress_is_few_plain_lines() -> None:
    stream = io.StringIO()
    with progress("training", Console(file=stream, force_terminal=False)) as update:
        for step in range(1, 101):
            update(step, 100, f"loss [{step}]")
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]
    assert lines[-1].endswith("loss [100]")


def test_off_a_terminal_a_line_comes_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("nvcim.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress("x", Console(file=stream, force_terminal=False)) as update:
        for step in range(1, 10):
            update(step, 9, "")
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/9", "4/9", "7/9", "9/9"]


def test_on_a_terminal_progress_is_a_bar() -> None:
    stream = io.StringIO()
    with progress("training", Console(file=stream, force_terminal=True, width=100)) as update:
        update(50, 100, "loss 0.5")
    assert "━" in stream.getvalue()
    assert "50/100" in stream.getvalue()


@pytest.mark.parametrize("name", ["slide [x=512,y=0]", "cell[red]", "[/tmp]", ":dog:"])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_is_shown_as_it_is(name: str, terminal: bool) -> None:
    stream = io.StringIO()
    with progress(f"of {name}", Console(file=stream, force_terminal=terminal, width=100)) as update:
        update(50, 100, f"at {name}")
    plain = Text.from_ansi(stream.getvalue()).plain
    assert f"of {name}" in plain
    assert f"at {name}" in plain
