"""A made-up cell that has every effect, for tests of the formulas. Its numbers are chosen for the arithmetic."""

from collections.abc import Callable
from typing import Any

import pytest

from nvcim.devices import EFFECTS, CellDevice

MakeCell = Callable[..., CellDevice]


@pytest.fixture
def make_cell() -> MakeCell:
    """A 2-bit cell of 10 to 110 microsiemens; keyword arguments add or replace fields."""

    def build(**fields: Any) -> CellDevice:
        given = {
            "name": "Test",
            "technology": "test",
            "bits": 2,
            "level_sigma": 0.01,
            "g_min": 1e-5,
            "g_max": 1.1e-4,
            "source": "made up for a test",
            "sources": {field: "made up for a test" for field in EFFECTS if fields.get(field) is not None},
        }
        return CellDevice.model_validate(given | fields)

    return build
