"""docs/fidelity.md: every section's text with the figures that were just computed."""

from pathlib import Path
from types import ModuleType

from tests.fidelity import group_noise, monotone, published, read_noise, reproducibility, wire_tables

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
SECTIONS: tuple[ModuleType, ...] = (
    group_noise,
    wire_tables,
    read_noise,
    monotone,
    published,
    reproducibility,
)

HEAD = """\
# Fidelity of the crossbar engine

What is exact, what is right on average, what is approximate and by how much, and what is not modelled. All of it is
simulation held against closed forms, other solvers and published fits; nothing here was measured on a chip.

Written by `make fidelity` (`.venv/bin/python -m tests.fidelity`). The text and the figures come from
`tests/fidelity/`, where a module computes each section and a test holds bounds on it and checks that this page is
what the command writes. Seeds are fixed and named; draws do not depend on the machine, rounding errors do, so those
are given as powers of ten. Statistical bounds in the tests are so wide that a false alarm is rarer than 1 in a
million.
"""


def page() -> str:
    """The whole page, computed now."""
    return "\n".join([HEAD, *(section.section() for section in SECTIONS)])


def committed(section: ModuleType) -> str:
    """A section's part of the page as it stands in the repository."""
    text = PAGE.read_text(encoding="utf-8")
    number = SECTIONS.index(section) + 1
    begin = text.index(f"\n## {number}. ") + 1
    end = text.find(f"\n## {number + 1}. ")
    return text[begin:] if end < 0 else text[begin:end]
