"""One memory cell: which conductances it can hold and how far a write lands from them.

Conductances are normalised: 0 is the cell's lowest conductance `g_min`, 1 its highest, `g_max`.
"""

from itertools import pairwise
from typing import Any

from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from nvcim.config import Settings

REFERENCE_SIGMA = 0.01
"""The global sigma at which `CellDevice.level_sigma` is given (the tables of RoCR and NVCiM-PT)."""


class CellDevice(Settings):
    """A memory cell with `2**bits` levels.

    `level_sigma[l]` is the standard deviation of a write to level l, in normalised conductance, when the
    global sigma is 0.01. `level_conductance[l]` is where level l sits nominally; left out, levels are equally
    spaced from 0 to 1. `g_min` and `g_max` are siemens; None where no source gives them.
    """

    name: str = Field(min_length=1)
    technology: str = Field(min_length=1)
    bits: int = Field(ge=1, le=8)
    level_sigma: tuple[FiniteFloat, ...]
    level_conductance: tuple[FiniteFloat, ...]
    g_min: PositiveFloat | None = None
    g_max: PositiveFloat | None = None
    source: str = Field(min_length=1)

    @property
    def levels(self) -> int:
        """Number of levels one cell can hold."""
        return int(2**self.bits)

    def sigma_at(self, sigma: float) -> tuple[float, ...]:
        """Per-level standard deviation at a global `sigma`: table / 0.01 * sigma."""
        return tuple(level / REFERENCE_SIGMA * sigma for level in self.level_sigma)

    @model_validator(mode="before")
    @classmethod
    def _space_levels_equally(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("level_conductance") is not None:
            return fields
        bits = fields.get("bits")
        if not isinstance(bits, int) or not 1 <= bits <= 8:
            return fields  # the field's own check explains it
        top = 2**bits - 1
        return {**fields, "level_conductance": tuple(level / top for level in range(top + 1))}

    @model_validator(mode="after")
    def _check_levels(self) -> "CellDevice":
        for field in ("level_sigma", "level_conductance"):
            count = len(getattr(self, field))
            if count != self.levels:
                raise ValueError(
                    f"{field} has {count} values, but {self.bits} bits mean {self.levels} levels"
                )
        if min(self.level_sigma) < 0:
            raise ValueError("level_sigma must not be negative")
        conductance = self.level_conductance
        if min(conductance) < 0 or max(conductance) > 1:
            raise ValueError("level_conductance is normalised and must lie within 0..1")
        if any(high <= low for low, high in pairwise(conductance)):
            raise ValueError("level_conductance must rise from level to level")
        if self.g_min is not None and self.g_max is not None and self.g_min >= self.g_max:
            raise ValueError("g_min must be below g_max")
        return self
