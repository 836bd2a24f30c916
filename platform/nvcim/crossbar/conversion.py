"""From bit-line currents to outputs: read noise, ADC, and the sum over row tiles, in one pass.

Compiled on the CPU (kernel.cpp), in plain torch with the same arithmetic elsewhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar.counter_rng import normals, square_root
from nvcim.crossbar.kernel import ReadArguments, fill, kernel_for

_TINY = torch.finfo(torch.float32).tiny


class Outputs(NamedTuple):
    """Currents of the bit lines before conversion, and what converts them.

    part: [devices, row tiles, vectors, out]. variance: like part. The rest is by vector, [devices, row tiles, vectors],
    or by column, [devices, row tiles, out]: sigma of the uniform noise is noise_row * noise_col, an ADC's step
    adc_row * adc_col; gain, shift and thresholds as in `converters.Adc`. None where there is no such thing.
    """

    part: Tensor
    variance: Tensor | None
    noise_row: Tensor | None
    noise_col: Tensor | None
    adc_row: Tensor | None
    adc_col: Tensor | None
    adc_gain: Tensor | None
    adc_shift: Tensor | None
    thresholds: Tensor | None


class Noise(NamedTuple):
    """Streams of the read noise: keys and number of the first read, [devices] int64 each."""

    keys: Tensor
    first: Tensor
    purpose: int


def convert(outputs: Outputs, noise: Noise, top: float, alpha: float, y: Tensor, fresh: bool) -> int:
    """Add noise, convert, and sum over row tiles: y = alpha * sum (+ y unless `fresh`), in place.

    `y` is [devices, vectors, out], with its outputs side by side. Returns how many outputs were clipped.
    """
    library = None if outputs.thresholds is not None else kernel_for(outputs.part)
    if library is None:
        return _plain_convert(outputs, noise, top, alpha, y, fresh)
    devices, tiles, vectors, columns = outputs.part.shape
    keys, first = noise.keys.contiguous(), noise.first.contiguous()
    arguments = ReadArguments()
    own = outputs._asdict()
    del own["thresholds"]
    fill(arguments, {**own, "keys": keys, "first": first, "out": y})
    fill(arguments, {"devices": devices, "tiles": tiles, "vectors": vectors, "outputs": columns})
    fill(arguments, {"top": top, "alpha": alpha, "accumulate": not fresh, "purpose": noise.purpose})
    fill(arguments, {"threads": torch.get_num_threads()})
    fill(arguments, {"out_device": y.stride(0), "out_vector": y.stride(1)})
    return int(library.nvcim_read(arguments))


def _plain_convert(outputs: Outputs, noise: Noise, top: float, alpha: float, y: Tensor, fresh: bool) -> int:
    """`convert` in plain torch; the order of the operations is that of kernel.cpp."""
    devices, tiles, vectors, columns = outputs.part.shape
    value, clipped = outputs.part, 0
    if outputs.variance is not None or outputs.noise_col is not None:
        drawn = normals(noise.keys, noise.purpose, noise.first, tiles * columns, vectors)
        drawn = drawn.reshape(devices, vectors, tiles, columns).transpose(1, 2)
        if outputs.variance is not None:
            value = value + square_root(outputs.variance) * drawn
        else:
            assert outputs.noise_row is not None
            assert outputs.noise_col is not None
            value = value + outputs.noise_col[:, :, None] * outputs.noise_row[..., None] * drawn
    if outputs.adc_row is not None:
        assert outputs.adc_col is not None
        assert outputs.adc_gain is not None
        step = outputs.adc_row.clamp(min=_TINY)[..., None]
        code = value * outputs.adc_gain[:, :, None] * (1 / step)
        if outputs.adc_shift is not None:
            code = code + outputs.adc_shift[:, :, None]
        code = code.round() if outputs.thresholds is None else _compare(code, outputs.thresholds, top)
        held = code.clamp(-top, top)
        clipped = int(((held != code) & (code == code)).sum())
        value = held * outputs.adc_col[:, :, None] * step
    for tile in range(tiles):
        scaled = value[:, tile] * alpha
        y.copy_(scaled) if fresh and tile == 0 else y.add_(scaled)
    return clipped


def _compare(code: Tensor, thresholds: Tensor, top: float) -> Tensor:
    """Codes that comparators with these thresholds give; beyond the last code they round on, so that clipping shows."""
    columns = code.transpose(2, 3).contiguous()
    found = torch.searchsorted(thresholds.contiguous(), columns).to(code.dtype).sub_(top).transpose(2, 3)
    found = torch.where(code.abs() > top + 0.5, code.round(), found)
    return torch.where(code == code, found, code)
