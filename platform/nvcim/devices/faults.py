"""Which cells are stuck, and how far a whole array lies from its design."""

import torch
from torch import Tensor

from nvcim.errors import ConfigError


def stuck_cells(uniforms: Tensor, stuck_on: float, stuck_off: float) -> Tensor:
    """Say which cells are stuck, from one uniform draw each.

    Args:
        uniforms: draws from [0, 1), any shape.
        stuck_on: probability of a cell stuck at its highest conductance.
        stuck_off: probability of one stuck at its lowest.

    Returns:
        int8 like `uniforms`: 1 stuck on, -1 stuck off, 0 fine.

    Raises:
        ConfigError: a probability outside 0..1, or both above 1 together.
    """
    for field, value in (("stuck_on", stuck_on), ("stuck_off", stuck_off)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{field} must be within 0..1 (given: {value})")
    if stuck_on + stuck_off > 1:
        raise ConfigError("stuck_on and stuck_off must not add up to more than 1")
    on = uniforms < stuck_on
    # Each end of the interval has its own fault, so raising one probability leaves the other's cells as they are.
    off = uniforms >= 1 - stuck_off
    return on.to(torch.int8) - off.to(torch.int8)


def with_stuck(conductance: Tensor, stuck: Tensor) -> Tensor:
    """Put stuck cells where they are stuck: normalised conductance 1 for on, 0 for off, else unchanged.

    Both tensors broadcast; `stuck` is from `stuck_cells`.
    """
    ends = (stuck > 0).to(conductance.dtype)
    return torch.where(stuck == 0, conductance, ends)


def array_factor(normals: Tensor, array_sigma: float) -> Tensor:
    """Process variation of each array: the factor max(1 + array_sigma * normal, 0) on all its conductances.

    It multiplies siemens (`nvcim.devices.conductance.scaled`). For a differential pair g_min cancels, so there
    the factor may as well multiply the normalised conductance.

    Args:
        normals: one standard normal draw per array, any shape.
        array_sigma: relative standard deviation.

    Raises:
        ConfigError: `array_sigma` is negative or not finite.
    """
    if not 0 <= array_sigma < float("inf"):
        raise ConfigError(f"array_sigma must not be negative (given: {array_sigma})")
    return (normals * array_sigma + 1).clamp_(min=0)
