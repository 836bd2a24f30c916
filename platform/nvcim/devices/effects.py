"""What a cell does besides holding a level: noise, ageing, temperature, writing. Each is optional in a catalogue.

Conductances here are absolute (siemens) or relative to `g_max`; a law's argument is G / g_max. A field that holds
values per level takes one value for each level, or a single one for all of them; between levels they are
interpolated linearly.
"""

import math
from itertools import pairwise
from typing import Annotated

from pydantic import Field, FiniteFloat, model_validator

from nvcim.config import Settings

Positive = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]


class SigmaLaw(Settings):
    """Measured spread of a write: max(c0 + c1 x + c2 x^2 + ..., 0) microsiemens, x = G / g_max."""

    coefficients_us: tuple[FiniteFloat, ...] = Field(min_length=1, description="c0, c1, ... in microsiemens")

    def siemens(self, relative: float) -> float:
        """Standard deviation in siemens of a write to the conductance `relative` * g_max."""
        total = math.fsum(c * relative**power for power, c in enumerate(self.coefficients_us))
        return max(total, 0.0) * 1e-6


class LogLaw(Settings):
    """clamp(slope ln x + offset, low, high), x = G / g_max: the form of the drift exponents of Joshi et al. (2020)."""

    slope: FiniteFloat
    offset: FiniteFloat
    low: NonNegative
    high: NonNegative

    @model_validator(mode="after")
    def _check_range(self) -> "LogLaw":
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class PowerLaw(Settings):
    """min(scale * x^-exponent, cap), x = G / g_max: the form of the 1/f coefficient of Joshi et al. (2020)."""

    scale: NonNegative
    exponent: NonNegative
    cap: NonNegative


class ReadNoise(Settings):
    """1/f noise of a read, relative to the conductance: S_G / G^2 = Q^2 / f.

    Integrated from 1 / (t + t_read) to 1 / (2 t_read) for a read of `t_read_s` at time t after the write,

        sd(G) / G = Q sqrt(ln((t + t_read) / (2 t_read)))

    (Joshi et al., Nat. Commun. 11, 2473, 2020, Methods). Q is `coefficient` per level, or `law`. Reads count their
    time from `t0_s` after the write.
    """

    coefficient: tuple[NonNegative, ...] | None = None
    law: PowerLaw | None = None
    t_read_s: Positive
    t0_s: Positive

    @model_validator(mode="after")
    def _check_values(self) -> "ReadNoise":
        if (self.coefficient is None) == (self.law is None):
            raise ValueError("give either coefficient or law")
        if self.t_read_s > self.t0_s:
            raise ValueError("t_read_s must not be above t0_s")
        return self


class Drift(Settings):
    """Power-law drift towards lower conductance: G(t) = G(t0) (t / t0)^-nu, t counted from the write.

    nu differs from cell to cell: |N(mean, sd)|, with the mean and sd of the level that was written (per level, or a
    law of G / g_max).
    """

    t0_s: Positive
    exponent_mean: tuple[NonNegative, ...] | None = None
    exponent_sd: tuple[NonNegative, ...] | None = None
    mean_law: LogLaw | None = None
    sd_law: LogLaw | None = None

    @model_validator(mode="after")
    def _check_values(self) -> "Drift":
        for values, law in (("exponent_mean", "mean_law"), ("exponent_sd", "sd_law")):
            if (getattr(self, values) is None) == (getattr(self, law) is None):
                raise ValueError(f"give either {values} or {law}")
        return self


class Retention(Settings):
    """Loss that every cell shares: G(t) = G(t0) max(1 - loss log10(t / t0), 0), t counted from the write.

    `loss_per_decade` is the relative loss per decade of time, per level.
    """

    t0_s: Positive
    loss_per_decade: tuple[NonNegative, ...]


class Relaxation(Settings):
    """Movement of each cell away from where it was written: the spread of cells at several times after the write.

    `spread[k]` is the whole spread around the target at `times_s[k]`; the first is that of the write itself.
    """

    times_s: tuple[Positive, ...] = Field(min_length=2)
    spread: tuple[SigmaLaw, ...]

    @model_validator(mode="after")
    def _check_values(self) -> "Relaxation":
        if len(self.spread) != len(self.times_s):
            raise ValueError(f"spread has {len(self.spread)} laws, but times_s has {len(self.times_s)} times")
        if any(late <= early for early, late in pairwise(self.times_s)):
            raise ValueError("times_s must rise")
        return self


class Temperature(Settings):
    """Relative change of the conductance per kelvin: G(T) = G (1 + coefficient (T - reference)), per level."""

    coefficient_per_k: tuple[FiniteFloat, ...] = Field(min_length=1)
    reference_k: Positive


class Write(Settings):
    """One write of one cell, verification included where `method` says so; null where no source gives it."""

    energy_j: Positive | None = None
    pulse_s: Positive | None = None
    pulses: Positive | None = Field(default=None, description="mean number of pulses of a write")
    method: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_not_empty(self) -> "Write":
        if all(getattr(self, field) is None for field in type(self).model_fields):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self
