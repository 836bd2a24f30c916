"""The level-wise noise of noise-aware training, and how strong it is for a cell and a mapping.

    v' = v + max|v| * sigma * c(v) * B * eps,   eps ~ N(0, 1), drawn anew in every forward pass
    c(v) = middle for 0.25 < |v| / max|v| < 0.75, edge otherwise

The four-level form is the published code of the paper's group (EvaXB `set_four`, NeFT `generate_noise`); the
paper's own intervals and factors are not known. c comes from the cell's table of per-level sigmas. B collapses the
slices' independent draws into one; it depends on what sigma is a share of (`sigma_unit`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.crossbar import CrossbarConfig
from nvcim.devices.cell import REFERENCE_SIGMA

MIDDLE = (0.25, 0.75)
"""Interval of |v| / max|v| that counts as middle levels (EvaXB)."""


@dataclass(frozen=True)
class LevelNoise:
    """Standard deviation relative to max|v| at edge and middle levels."""

    edge: float
    middle: float


def level_noise(config: CrossbarConfig, share: float = 1.0) -> LevelNoise:
    """The level-wise noise that stands for writing to this crossbar, times `share`.

    B is sqrt(sum_i 4^(i m)) / sum_i 2^(i m) in units of the full range (NeFT), and a (2^m - 1)-th of it in units of one
    level step (SWIM, EvaXB); m bits per cell, i over the slices of a magnitude. Both cells of a differential pair are
    written: a value's own side at its level, the other side at level 0, an edge level.
    """
    cell = config.cell()
    slices = -(-(config.weight_bits - 1) // cell.bits)
    weights = [2.0 ** (i * cell.bits) for i in range(slices)]
    factor = sum(w * w for w in weights) ** 0.5 / sum(weights)
    if config.sigma_unit == "level_step":
        factor /= cell.levels - 1
    edge = (cell.level_sigma[0] + cell.level_sigma[-1]) / 2
    inner = cell.level_sigma[1:-1] or cell.level_sigma
    middle = sum(inner) / len(inner)
    scale = share * config.sigma / REFERENCE_SIGMA * factor
    zero = cell.level_sigma[0]
    return LevelNoise(math.hypot(edge, zero) * scale, math.hypot(middle, zero) * scale)


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
    middle = torch.tensor([noise.middle for noise in noises], device=values.device)[:, None, None]
    edge = torch.tensor([noise.edge for noise in noises], device=values.device)[:, None, None]
    sigma = torch.where((share > MIDDLE[0]) & (share < MIDDLE[1]), middle, edge)
    eps = torch.stack([torch.randn(values.shape[1:], generator=generator) for generator in generators])
    return values + peak * sigma * eps.to(values.device)
