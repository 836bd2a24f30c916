"""DAC and ADC: uniform, symmetric about zero, 2**bits - 1 codes.

Ranges belong to one input vector and one tile, never to a batch, so a result does not depend on what it is
packed with. The DAC's full scale is the largest magnitude of the vector. The ADC's is set by the digital
side, which knows the vector it drives: `adc_range * |x_tile|_2 * max over the tile's columns of |w|_2`. By
Cauchy and Schwarz no output exceeds that at `adc_range` 1 (read noise aside), so a good match never clips.
"""

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def top_code(bits: int) -> int:
    """Largest code of a symmetric converter."""
    return int(2 ** (bits - 1)) - 1


def drive(x: Tensor, bits: int) -> Tensor:
    """Round each input vector to what a DAC can drive. x and result: [..., in_features]."""
    step = (x.abs().amax(dim=-1, keepdim=True) / top_code(bits)).clamp_min_(_TINY)
    return (x / step).round_().mul_(step)


def adc_step(weight: Tensor, cols: int, bits: int, adc_range: float) -> Tensor:
    """Smallest step of a tile's ADC for an input of norm 1.

    Args:
        weight: [..., rows, out_features], as programmed: one tile high.
        cols: outputs per tile.
        bits: of the ADC.
        adc_range: full scale, as a fraction of the largest possible output.

    Returns:
        [..., out_features], the same for all outputs of a tile.
    """
    out_features = weight.shape[-1]
    norms = torch.linalg.vector_norm(weight, dim=-2)
    tops = [part.amax(dim=-1, keepdim=True).expand_as(part) for part in norms.split(cols, dim=-1)]
    return torch.cat(tops, dim=-1)[..., :out_features] * (adc_range / top_code(bits))


def digitise(output: Tensor, step: Tensor, bits: int) -> Tensor:
    """Round outputs to multiples of `step` (broadcastable), clipped to the range; in place."""
    top = top_code(bits)
    step = step.clamp_min(_TINY)
    return output.div_(step).round_().clamp_(-top, top).mul_(step)
