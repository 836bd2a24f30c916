"""The noise of noise-aware training: the level-wise form, or the crossbar itself in the loop.

    v' = v + max|v| * sigma * c(v) * B * eps,   eps ~ N(0, 1), drawn anew in every forward pass
    c(v) = middle for 0.25 < |v| / max|v| < 0.75, edge otherwise

The four-level form is the published code of the paper's group (EvaXB `set_four`, NeFT `generate_noise`); the
paper's own intervals and factors are not known. c comes from the cell's table of per-level sigmas. B collapses the
slices' independent draws into one; it depends on what sigma is a share of (`sigma_unit`). All of it is a setting.

The level-wise form knows edge and middle levels of a value, not the levels of its bit slices: against the array it is
1 to 4 % too quiet for ordinary values, and up to half for small ones on FeFET6 (docs/fidelity.md). The loop with the
crossbar has no such error, and costs a write per forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from nvcim.config import Settings
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.devices.cell import REFERENCE_SIGMA

MIDDLE = (0.25, 0.75)
"""Interval of |v| / max|v| that counts as middle levels (EvaXB)."""


class LevelNoiseSettings(Settings):
    """The level-wise form: where the levels change, how strong each is, and how slices add up."""

    interval: tuple[float, float] = Field(
        MIDDLE, description="of |v| / max|v|, exclusive: middle levels (EvaXB; the paper's own are not known)"
    )
    edge: float | None = Field(
        None, ge=0, description="c at edge levels; null: mean of the cell's outer levels' sigmas / 0.01"
    )
    middle: float | None = Field(
        None, ge=0, description="c at middle levels; null: mean of the cell's inner levels' sigmas / 0.01"
    )
    slicing: Literal["array", "neft", "evaxb"] = Field(
        "array",
        description="B: as the array's sigma_unit has it; sqrt(sum 4^(i m)) / sum 2^(i m), i from 0 (NeFT); "
        "sqrt(sum 2^(-2 i m)), i from 1 (EvaXB)",
    )

    @model_validator(mode="after")
    def _rising(self) -> "LevelNoiseSettings":
        if not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval must be two rising numbers, 0 or more (given: {list(self.interval)})")
        return self


@dataclass(frozen=True)
class LevelNoise:
    """Standard deviation relative to max|v| at edge and middle levels, and the interval of the middle ones."""

    edge: float
    middle: float
    interval: tuple[float, float] = MIDDLE


def level_noise(
    config: CrossbarConfig, share: float = 1.0, settings: LevelNoiseSettings | None = None
) -> LevelNoise:
    """The level-wise noise that stands for writing to this crossbar, times `share`.

    B is sqrt(sum_i 4^(i m)) / sum_i 2^(i m) in units of the full range (NeFT), and a (2^m - 1)-th of it in units of one
    level step (SWIM, EvaXB); m bits per cell, i over the slices of a magnitude. Both cells of a differential pair are
    written: a value's own side at its level, the other side at level 0, an edge level.

    Args:
        config: device, sigma and mapping (differential pairs).
        share: of the noise; 0 trains without.
        settings: left out, all from the device's table and the config.
    """
    settings = settings or LevelNoiseSettings()
    table = [sigma / REFERENCE_SIGMA for sigma in config.cell().level_sigma]
    inner = table[1:-1] or table
    edge = (table[0] + table[-1]) / 2 if settings.edge is None else settings.edge
    middle = sum(inner) / len(inner) if settings.middle is None else settings.middle
    zero = table[0] if settings.edge is None else settings.edge
    scale = share * config.sigma * _slicing(config, settings)
    return LevelNoise(math.hypot(edge, zero) * scale, math.hypot(middle, zero) * scale, settings.interval)


def _slicing(config: CrossbarConfig, settings: LevelNoiseSettings) -> float:
    """B for one side of a pair."""
    cell = config.cell()
    slices = -(-(config.weight_bits - 1) // cell.bits)
    if settings.slicing == "evaxb":
        return math.sqrt(sum(4.0 ** (-i * cell.bits) for i in range(1, slices + 1)))
    weights = [2.0 ** (i * cell.bits) for i in range(slices)]
    factor = math.sqrt(sum(w * w for w in weights)) / sum(weights)
    by_step = settings.slicing == "array" and config.sigma_unit == "level_step"
    return factor / (cell.levels - 1) if by_step else factor


def add_level_noise(
    values: Tensor, noises: Sequence[LevelNoise], generators: Sequence[torch.Generator]
) -> Tensor:
    """Add noise to each job's values; gradients pass unchanged.

    Args:
        values: [jobs, n, width].
        noises: one per job.
        generators: one per job, so that a job's draws do not depend on the batch it is in.
    """
    peak = values.detach().abs().amax(dim=(1, 2), keepdim=True)
    share = values.detach().abs() / peak.clamp_min(1e-12)
    own = torch.tensor(
        [(noise.edge, noise.middle, *noise.interval) for noise in noises], device=values.device
    )
    edge, middle, low, high = own.reshape(-1, 4, 1, 1).unbind(1)
    sigma = torch.where((share > low) & (share < high), middle, edge)
    eps = torch.stack([torch.randn(values.shape[1:], generator=generator) for generator in generators])
    return values + peak * sigma * eps.to(values.device)


def crossbar_in_the_loop(
    codes: Tensor,
    configs: Sequence[CrossbarConfig],
    generators: Sequence[torch.Generator],
    read: Literal["cells", "converters"] = "cells",
) -> Tensor:
    """Codes as they come back from freshly written arrays; gradients pass straight through.

    Args:
        codes: [jobs, n, width]. A job's codes that hold NaN or infinity come back as they are.
        configs: one per job; jobs of one config are written in one call.
        generators: one per job: each call draws fresh cells, which do not depend on the batch a job is in.
        read: the cells' weights themselves, or driven row by row through DAC and ADC, as a prompt memory reads.

    Returns:
        [jobs, n, width], where the codes are.
    """
    flat = codes.detach().to("cpu", torch.float32).flatten(1)
    back = flat.clone()
    finite = flat.isfinite().all(1).tolist()
    groups: dict[CrossbarConfig, list[int]] = {}
    for job, config in enumerate(configs):
        if finite[job]:
            groups.setdefault(config, []).append(job)
    for config, jobs in groups.items():
        written = Crossbar.program(flat[jobs][..., None], config, [generators[job] for job in jobs])
        if read == "cells":
            back[jobs] = written.read_weight()[..., 0]
        else:
            back[jobs] = written.matmul(torch.eye(flat.shape[1]))[..., 0]
    # Not codes + (back - codes): the value is exactly what the array gave.
    return _StraightThrough.apply(codes, back.reshape(codes.shape).to(codes))  # type: ignore[no-any-return, no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    """The second argument's value with the first one's gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, codes: Tensor, back: Tensor) -> Tensor:
        return back

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
