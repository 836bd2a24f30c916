"""One memory cell: which conductances it can hold, how far a write lands from them, and what happens after.

Conductances are normalised: 0 is the cell's lowest conductance `g_min`, 1 its highest, `g_max`.
"""

from itertools import pairwise
from typing import Any

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from nvcim.config import Settings, parse_settings
from nvcim.devices.effects import (
    Drift,
    NonNegative,
    Positive,
    ReadNoise,
    Relaxation,
    Retention,
    SigmaLaw,
    Temperature,
    Write,
)

REFERENCE_SIGMA = 0.01
"""The global sigma at which `CellDevice.level_sigma` is given (the tables of RoCR and NVCiM-PT)."""

EFFECTS = (
    "read_noise",
    "drift",
    "retention",
    "relaxation",
    "temperature",
    "stuck_on",
    "stuck_off",
    "array_sigma",
    "v0",
    "write",
    "endurance",
)
"""The optional fields of a cell that each need a source of their own."""

IN_SIEMENS = ("sigma_law", "read_noise", "drift", "retention", "relaxation", "temperature")
"""The optional fields that act on siemens, so that they need the conductance range."""

PER_LEVEL = (
    ("read_noise", "coefficient"),
    ("drift", "exponent_mean"),
    ("drift", "exponent_sd"),
    ("retention", "loss_per_decade"),
    ("temperature", "coefficient_per_k"),
)
"""Where an effect may hold one value per level."""


class CellDevice(Settings):
    """A memory cell with `2**bits` levels. Every optional field is None where it is unknown or not modelled.

    `level_sigma[l]` is the standard deviation of a write to level l, in normalised conductance, when the
    global sigma is 0.01; a single number holds for all levels. `level_conductance[l]` is where level l sits
    nominally; left out, levels are equally spaced from 0 to 1. `g_min` and `g_max` are siemens; None where no
    source gives them, and a `g_min` of 0 is a cell that turns off fully.

    `sigma_law` gives the spread that was measured on chips in place of `level_sigma`, which is then computed
    from it: a global sigma of 0.01 in units of the full range is the published spread, 0.02 twice that.

    `source` says where levels, sigmas and the conductance range come from; `sources` does so for each of
    EFFECTS, and a value without a source is refused.
    """

    name: str = Field(min_length=1)
    technology: str = Field(min_length=1)
    bits: int = Field(ge=1, le=8)
    level_sigma: tuple[FiniteFloat, ...]
    sigma_law: SigmaLaw | None = None
    level_conductance: tuple[FiniteFloat, ...]
    g_min: NonNegative | None = None
    g_max: Positive | None = None
    source: str = Field(min_length=1)

    read_noise: ReadNoise | None = None
    drift: Drift | None = None
    retention: Retention | None = None
    relaxation: Relaxation | None = None
    temperature: Temperature | None = None
    stuck_on: NonNegative | None = Field(default=None, description="probability of a cell stuck at g_max")
    stuck_off: NonNegative | None = Field(default=None, description="probability of one stuck at g_min")
    array_sigma: NonNegative | None = Field(
        default=None, description="sd from array to array, relative to the conductance"
    )
    v0: Positive | None = Field(default=None, description="volts: I = G v0 sinh(V / v0)")
    write: Write | None = None
    endurance: Positive | None = Field(default=None, description="writes until a cell fails")
    sources: dict[str, str] = Field(default_factory=dict)

    @property
    def levels(self) -> int:
        """Number of levels one cell can hold."""
        return int(2**self.bits)

    @property
    def on_off(self) -> float | None:
        """g_max / g_min; None where either is unknown or the cell turns off fully."""
        return self.g_max / self.g_min if self.g_min and self.g_max else None

    def sigma_at(self, sigma: float) -> tuple[float, ...]:
        """Per-level standard deviation at a global `sigma`: table / 0.01 * sigma."""
        return tuple(level / REFERENCE_SIGMA * sigma for level in self.level_sigma)

    def with_range(self, g_min: float | None = None, g_max: float | None = None) -> "CellDevice":
        """The same cell with other conductances, siemens; None keeps its own.

        A `sigma_law` is read anew at the new conductances, so `level_sigma` follows.

        Raises:
            ConfigError: g_min is not below g_max, or one of them is negative or not finite.
        """
        fields = self.model_dump(exclude={"level_sigma"} if self.sigma_law is not None else set())
        given = {"g_min": g_min, "g_max": g_max}
        changed = {field: value for field, value in given.items() if value is not None}
        return parse_settings(fields | changed, CellDevice, source=f"device {self.name}")

    def describe_sigma(self) -> str:
        """`level_sigma` in a few words: each value of a cell with few levels, else the least and the largest."""
        values = sorted(set(self.level_sigma))
        if len(values) == 1 and self.levels > 16:
            return f"{values[0]:g} at all {self.levels} levels"
        if self.levels > 16:
            return f"{values[0]:.4g} to {values[-1]:.4g} over {self.levels} levels"
        return " ".join(f"{sigma:g}" for sigma in self.level_sigma)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_levels(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        bits = fields.get("bits")
        if not isinstance(bits, int) or not 1 <= bits <= 8:
            return fields  # the field's own check explains it
        filled = dict(fields)
        top = 2**bits - 1
        if filled.get("level_conductance") is None:
            filled["level_conductance"] = tuple(level / top for level in range(top + 1))
        sigma = filled.get("level_sigma")
        if isinstance(sigma, int | float) and not isinstance(sigma, bool):
            filled["level_sigma"] = (sigma,) * (top + 1)
        elif sigma is None and filled.get("sigma_law") is not None:
            filled["level_sigma"] = _sigma_by_law(filled)
        return filled

    @model_validator(mode="after")
    def _check_range(self) -> "CellDevice":
        if self.g_min is not None and self.g_max is not None and self.g_min >= self.g_max:
            raise ValueError("g_min must be below g_max")
        for field in IN_SIEMENS:
            if getattr(self, field) is not None and (self.g_min is None or self.g_max is None):
                raise ValueError(
                    f"{field} acts on siemens and needs g_min and g_max (g_min: 0 for a cell that turns off fully)"
                )
        return self

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
        for effect, field in PER_LEVEL:
            values = getattr(getattr(self, effect), field, None)
            if values is not None and len(values) not in (1, self.levels):
                raise ValueError(
                    f"{effect}.{field} has {len(values)} values; allowed: 1 or {self.levels}, one per level"
                )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> "CellDevice":
        if (self.stuck_on or 0) + (self.stuck_off or 0) > 1:
            raise ValueError("stuck_on and stuck_off must not add up to more than 1")
        for field in EFFECTS:
            if getattr(self, field) is not None and not self.sources.get(field):
                raise ValueError(f"{field} has a value but no source; name it under sources")
        for field in self.sources:
            if field not in EFFECTS:
                raise ValueError(f"sources names '{field}'; allowed: {', '.join(EFFECTS)}")
            if getattr(self, field) is None:
                raise ValueError(f"sources names {field}, which has no value")
        return self

    @model_validator(mode="after")
    def _check_law(self) -> "CellDevice":
        if self.sigma_law is None or self.g_min is None or self.g_max is None:
            return self
        if self.level_sigma != _spread(self.sigma_law, self.level_conductance, self.g_min, self.g_max):
            raise ValueError("level_sigma and sigma_law differ; give one of them")
        return self


def _spread(law: SigmaLaw, conductance: tuple[float, ...], g_min: float, g_max: float) -> tuple[float, ...]:
    """The law at each level, as a fraction of the conductance range, scaled to mean the chip's at REFERENCE_SIGMA."""
    span = g_max - g_min
    return tuple(law.siemens((g_min + level * span) / g_max) / span for level in conductance)


def _sigma_by_law(fields: dict[str, Any]) -> tuple[float, ...]:
    """`level_sigma` of unchecked fields; empty where one of them is wrong, which that field's own check explains."""
    try:
        given = fields["sigma_law"]
        law = given if isinstance(given, SigmaLaw) else SigmaLaw.model_validate(given)
        levels = tuple(float(level) for level in fields["level_conductance"])
        g_min, g_max = float(fields["g_min"]), float(fields["g_max"])
    except (ValidationError, KeyError, TypeError, ValueError):
        return ()
    return _spread(law, levels, g_min, g_max) if 0 <= g_min < g_max else ()
