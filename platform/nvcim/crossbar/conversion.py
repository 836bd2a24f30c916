"""From bit-line currents to outputs: read noise, ADC, and the sum over row tiles, in one pass.

Compiled on the CPU (kernel.cpp), in plain torch elsewhere and where ADCs have code widths of their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar.counter_rng import BLOCK, normals, square_root
from nvcim.crossbar.kernel import ProductArguments, ReadArguments, fill, kernel_for
from nvcim.crossbar.streams import MAX_CYCLES

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

    def of_group(self, group: int, alpha: float) -> "Converters":
        """One group of converters whose columns are [devices, groups, row tiles, out]; `alpha` is the group's own."""
        names = ("noise_col", "adc_col", "adc_gain", "adc_shift", "thresholds")
        own = {name: getattr(self, name) for name in names}
        chosen = {name: value[:, group].contiguous() for name, value in own.items() if value is not None}
        return self._replace(**chosen, alpha=self.alpha * alpha)


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
    alphas: tuple[float, ...],
    converters: Converters,
    noise: Noise,
    y: Tensor,
    fresh: bool,
) -> int | None:
    """Tile products and `convert` of all groups in one compiled pass; None, with nothing done, where that cannot serve.

    Args:
        inputs: [devices or 1, vectors, in].
        weight, variance: [devices, groups, in, out], float32 or bfloat16, contiguous.
        rows: of a tile.
        alphas: what each group counts in the output, besides `converters.alpha`.
        converters: as `convert`, but with a group dimension: by column [devices, groups, row tiles, out].
        noise: of the first group; the next one's streams are MAX_CYCLES further.
        y, fresh: as `convert`.
    """
    library = None if converters.thresholds is not None else kernel_for(weight)
    if library is None:
        return None
    devices, groups, size, columns = weight.shape
    rows = min(rows, size)
    inputs, worth = inputs.contiguous(), torch.tensor(alphas, dtype=torch.float32)
    arguments = ProductArguments()
    shape = (devices, -(-size // rows), inputs.shape[1], columns)
    kept = _fill_read(arguments.read, shape, converters, noise, y, fresh)
    fill(arguments, {"x": inputs, "weight": weight, "variance": variance, "inputs": size, "tile_rows": rows})
    fill(
        arguments,
        {"x_device": 0 if inputs.shape[0] == 1 else inputs.stride(0), "alphas": worth, "groups": groups},
    )
    fill(arguments, {"group_purpose": MAX_CYCLES, "half": weight.dtype == torch.bfloat16})
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
