"""From bit-line currents to outputs: read noise, ADC, and the sum over row tiles, in one pass.

Compiled on the CPU (kernel.cpp), in plain torch with the same arithmetic elsewhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar.counter_rng import BLOCK, normals, square_root
from nvcim.crossbar.kernel import ProductArguments, ReadArguments, fill, kernel_for

_TINY = torch.finfo(torch.float32).tiny


class Converters(NamedTuple):
    """Read noise and ADCs of some vectors on some devices.

    By vector, [devices, row tiles, vectors], or by column, [devices, row tiles, out]: sigma of the uniform noise is
    noise_row * noise_col, an ADC's step adc_row * adc_col; gain, shift and thresholds as in `converters.Adc`. None
    where there is no such thing. top: the largest code. alpha: what this read counts in the output.
    """

    noise_row: Tensor | None
    noise_col: Tensor | None
    adc_row: Tensor | None
    adc_col: Tensor | None
    adc_gain: Tensor | None
    adc_shift: Tensor | None
    thresholds: Tensor | None
    top: float
    alpha: float


class Noise(NamedTuple):
    """Streams of the read noise: keys and number of the first read, [devices] int64 each."""

    keys: Tensor
    first: Tensor
    purpose: int


def multiply_and_convert(
    inputs: Tensor,
    weight: Tensor,
    variance: Tensor | None,
    rows: int,
    converters: Converters,
    noise: Noise,
    y: Tensor,
    fresh: bool,
) -> int | None:
    """Tile products and `convert` in one compiled pass; None, with nothing done, where that does not serve.

    Args:
        inputs: [devices or 1, vectors, in].
        weight, variance: [devices, in, out], float32 or bfloat16, each device's own contiguous.
        rows: of a tile.
        converters, noise, y, fresh: as `convert`.
    """
    library = None if converters.thresholds is not None else kernel_for(weight)
    if library is None:
        return None
    devices, size, columns = weight.shape
    inputs = inputs.contiguous()
    arguments = ProductArguments()
    shape = (devices, -(-size // rows), inputs.shape[1], columns)
    kept = _fill_read(arguments.read, shape, converters, noise, y, fresh)
    fill(arguments, {"x": inputs, "weight": weight, "variance": variance, "inputs": size, "tile_rows": rows})
    shared = inputs.shape[0] == 1
    arguments.half = weight.dtype == torch.bfloat16
    fill(arguments, {"x_device": 0 if shared else inputs.stride(0), "weight_device": weight.stride(0)})
    clipped = int(library.nvcim_product_read(arguments))
    del kept
    return clipped


def convert(
    part: Tensor, variance: Tensor | None, converters: Converters, noise: Noise, y: Tensor, fresh: bool
) -> int:
    """Add noise, convert, and sum over row tiles: y = alpha * sum (+ y unless `fresh`), in place.

    Args:
        part: [devices, row tiles, vectors, out], currents of the bit lines.
        variance: like part, of noise that depends on the cells; None for none.
        converters, noise: what comes between part and y.
        y: [devices, vectors, out], with its outputs side by side.
        fresh: whether y holds nothing yet.

    Returns:
        How many outputs were clipped.
    """
    library = None if converters.thresholds is not None else kernel_for(part)
    if library is None:
        return _plain_convert(part, variance, converters, noise, y, fresh)
    arguments = ReadArguments()
    kept = _fill_read(arguments, tuple(part.shape), converters, noise, y, fresh)
    fill(arguments, {"part": part, "variance": variance})
    clipped = int(library.nvcim_read(arguments))
    del kept
    return clipped


def _fill_read(
    arguments: ReadArguments,
    shape: tuple[int, ...],
    converters: Converters,
    noise: Noise,
    y: Tensor,
    fresh: bool,
) -> list[Tensor]:
    """Returns tensors that the arguments point into: the caller holds them until the kernel is done."""
    keys, first = noise.keys.contiguous(), noise.first.contiguous()
    own = converters._asdict()
    del own["thresholds"]
    fill(arguments, {**own, "keys": keys, "first": first, "out": y, "accumulate": not fresh})
    fill(arguments, dict(zip(("devices", "tiles", "vectors", "outputs"), shape, strict=True)))
    fill(arguments, {"purpose": noise.purpose, "threads": torch.get_num_threads()})
    fill(arguments, {"out_device": y.stride(0), "out_vector": y.stride(1)})
    return [keys, first]


def _plain_convert(
    part: Tensor, variance: Tensor | None, converters: Converters, noise: Noise, y: Tensor, fresh: bool
) -> int:
    """`convert` in plain torch; the order of the operations is that of kernel.cpp."""
    devices, tiles, vectors, columns = part.shape
    value, clipped, top = part, 0, converters.top
    if variance is not None or converters.noise_col is not None:
        padded = -(-columns // BLOCK) * BLOCK
        drawn = normals(noise.keys, noise.purpose, noise.first, tiles * padded, vectors)
        drawn = drawn.reshape(devices, vectors, tiles, padded)[..., :columns].transpose(1, 2)
        if variance is not None:
            value = value + square_root(variance) * drawn
        else:
            assert converters.noise_row is not None
            assert converters.noise_col is not None
            value = value + converters.noise_col[:, :, None] * converters.noise_row[..., None] * drawn
    if converters.adc_row is not None:
        assert converters.adc_col is not None
        assert converters.adc_gain is not None
        step = converters.adc_row.clamp(min=_TINY)[..., None]
        code = value * converters.adc_gain[:, :, None] * (1 / step)
        if converters.adc_shift is not None:
            code = code + converters.adc_shift[:, :, None]
        code = code.round() if converters.thresholds is None else _compare(code, converters.thresholds, top)
        held = code.clamp(-top, top)
        clipped = int(((held != code) & (code == code)).sum())
        value = held * converters.adc_col[:, :, None] * step
    for tile in range(tiles):
        scaled = value[:, tile] * converters.alpha
        y.copy_(scaled) if fresh and tile == 0 else y.add_(scaled)
    return clipped


def _compare(code: Tensor, thresholds: Tensor, top: float) -> Tensor:
    """Codes that comparators with these thresholds give; beyond the last code they round on, so that clipping shows."""
    columns = code.transpose(2, 3).contiguous()
    found = torch.searchsorted(thresholds.contiguous(), columns).to(code.dtype).sub_(top).transpose(2, 3)
    found = torch.where(code.abs() > top + 0.5, code.round(), found)
    return torch.where(code == code, found, code)
