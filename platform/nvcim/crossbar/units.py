"""Powers of two in which vectors and matrices of extreme magnitude are read.

Reads square their inputs and their weights (norms, variances), and float32 ends at 1e38 and near 1e-38: beyond 1e19
squares become infinite, below 1e-19 they fade. A read is homogeneous in both, and dividing by a power of two is exact,
so what lies outside of the safe magnitudes is read in a unit of its own and its outputs are multiplied by it. Where
nothing over- or underflows that changes no bit, so what is read in a unit does not depend on what it is read with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LOW, _HIGH = 2.0**-24, 2.0**24
_EXPONENTS = (-125, 126)  # so that a unit and its reciprocal are normal numbers


def safe(magnitude: float) -> bool:
    """Whether numbers up to this magnitude need no unit."""
    return _LOW <= magnitude <= _HIGH


def own_units(largest: Tensor) -> Tensor | None:
    """Units for vectors or matrices with these largest magnitudes, any shape: like `largest`; None if all are safe.

    What is safe, zero, infinite or NaN has the unit 1.
    """
    low, high = largest.aminmax() if largest.numel() else (torch.ones(()), torch.ones(()))
    if safe(float(low)) and safe(float(high)):
        return None
    extreme = ((largest < _LOW) | (largest > _HIGH)) & (largest > 0) & torch.isfinite(largest)
    if not bool(extreme.any()):
        return None
    exponent = torch.frexp(largest).exponent.clamp(*_EXPONENTS)
    return torch.where(extreme, torch.ldexp(torch.ones_like(largest), exponent), 1.0)


def joined_units(members: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """Units [devices, 1, 1] of several arrays one after the other, None where none has any.

    Args:
        members: units, and the weights [devices, ...] in them.
    """
    if all(unit is None for unit, _ in members):
        return None
    return torch.cat(
        [weight.new_ones(len(weight), 1, 1) if unit is None else unit for unit, weight in members]
    )
