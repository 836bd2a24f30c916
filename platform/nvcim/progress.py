"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Update = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a short note such as the loss)."""

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(label: str, console: Console | None = None) -> Iterator[Update]:
    """Show how far the work in the `with` block is; the block calls what it is given after each step.

    Off a terminal a line is printed at the first step, then at most every 10 seconds, and at the last step.
    """
    target = console or Console(stderr=True)
    # Notes name files and devices: they are shown as they are, never read as rich's markup.
    if target.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=target) as bar:
            task = bar.add_task(label, total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
    else:
        yield _lines(label, target)


def _lines(label: str, console: Console) -> Update:
    """Progress as plain lines."""
    started = time.monotonic()
    last: float | None = None

    def update(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if last is not None and done < total and now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        line = f"{label}: {done}/{total} after {now - started:.0f} s"
        console.print(
            f"{line}  {note}" if note else line, markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    return update
