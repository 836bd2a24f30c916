"""Reading an array: products of all tiles, read noise, ADC, and the sum over row tiles.

    y_t = DAC(x)_t @ W_t + sqrt(x_t^2 @ V_t) * eps,     y = sum over row tiles of ADC_t(y_t)

Where it can be, all of it is one compiled pass (`conversion.multiply_and_convert`); elsewhere the products are matrix
multiplications of whole stacks of tiles, and plain torch does the rest.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar import streams
from nvcim.crossbar.conversion import Converters, Noise, convert, multiply_and_convert
from nvcim.crossbar.converters import Adc, Driven, bit_planes, drive, joined, tile_norms, top_code
from nvcim.crossbar.mapping import add_groups
from nvcim.crossbar.network import Network
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.crossbar.units import joined_units

# Partial outputs held at once (8 MiB of float32), without making the matrix products too flat.
_PART_ELEMENTS = 2**21
_LEAST_VECTORS = 64
_SCRATCH_ELEMENTS = 2**22
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ReadPlan:
    """What reads of a programmed array need; devices flattened.

    weight: [devices, groups, in, out]. variance: like weight, or None. uniform: [devices, groups, 1, out], read
    noise of an input of norm 1 where it is the same at every level, or None. alphas: what each group counts. pedestal:
    [devices, 1, out], what the digital side subtracts per unit of the inputs' sum, or None. network: what
    is solved in place of inputs @ weight, or None. unit: [devices, 1, 1], what weights are in units of; None: 1. base:
    [devices, groups, 1, out], what the cells of a column hold besides `weight`; None: nothing.
    """

    weight: Tensor
    variance: Tensor | None
    uniform: Tensor | None
    adc: Adc | None
    alphas: tuple[float, ...]
    pedestal: Tensor | None
    network: Network | None = None
    unit: Tensor | None = None
    base: Tensor | None = None

    def cells(self, devices: slice = slice(None)) -> Tensor:
        """What the bit lines see of some devices: [devices, groups, in, out], float32 or bfloat16."""
        weight = self.weight[devices]
        return weight if self.base is None else weight.float() + self.base[devices]

    @property
    def noisy(self) -> bool:
        """Whether reads differ."""
        return self.variance is not None or self.uniform is not None

    def to(self, device: torch.device | str) -> "ReadPlan":
        """Move all tensors."""
        names = ("weight", "variance", "uniform", "pedestal", "unit", "base")
        own = {name: getattr(self, name) for name in names}
        moved: dict[str, Any] = {
            name: None if value is None else value.to(device) for name, value in own.items()
        }
        adc = None if self.adc is None else self.adc.to(device)
        network = None if self.network is None else self.network.to(device)
        return ReadPlan(**moved, alphas=self.alphas, adc=adc, network=network)

    @staticmethod
    def stack(plans: Sequence["ReadPlan"]) -> "ReadPlan":
        """Put the devices of several plans one after the other."""
        names = ("weight", "variance", "uniform", "pedestal", "base")
        adcs = [plan.adc for plan in plans if plan.adc is not None]
        own: dict[str, Any] = {name: joined([getattr(plan, name) for plan in plans]) for name in names}
        networks = [plan.network for plan in plans if plan.network is not None]
        network = Network.stack(networks) if networks else None
        unit = joined_units([(plan.unit, plan.weight) for plan in plans])
        adc = Adc.stack(adcs) if adcs else None
        return ReadPlan(**own, alphas=plans[0].alphas, adc=adc, network=network, unit=unit)


@dataclass
class Counts:
    """Conversions so far, and how many of them were beyond the converter's range."""

    adc_reads: int = 0
    adc_clipped: int = 0
    dac_clipped: int = 0


def read_array(
    x: Tensor, plan: ReadPlan, config: CrossbarConfig, keys: Tensor, first: Tensor, counts: Counts
) -> Tensor:
    """Read an array once per input vector.

    Args:
        x: [devices or 1, vectors, in], float32.
        plan: the array.
        config: its periphery.
        keys: [devices], int64: of the read noise.
        first: [devices], int64: number of the first read.
        counts: added to.

    Returns:
        [devices, vectors, out], float32.
    """
    return read_driven(drive(x, config), plan, config, keys, first, counts)


def read_driven(
    driven: Driven, plan: ReadPlan, config: CrossbarConfig, keys: Tensor, first: Tensor, counts: Counts
) -> Tensor:
    """`read_array` of vectors that were driven before; `driven.x` is [devices or 1, vectors, in]."""
    counts.dac_clipped += driven.clipped
    count = driven.x.shape[1]
    if plan.adc is None and plan.network is None and not plan.noisy and config.input_coding == "analog":
        return _output(_ideal_product(driven.x, _whole(plan)), driven, plan)
    y = torch.empty(
        plan.weight.shape[0], count, plan.weight.shape[-1], dtype=torch.float32, device=driven.x.device
    )
    for one in (step.through(plan.network, config.rows) for step in _passes(driven, config)):
        for devices, vectors in _chunks(plan, count, config.rows):
            counts.adc_clipped += _read(one, devices, vectors, y, plan, config, keys, first)
        tiles = len(plan.alphas) * one.norms.shape[-1]
        counts.adc_reads += 0 if plan.adc is None else y.numel() * tiles
    if config.input_coding == "bit_serial":
        assert config.dac_bits is not None  # the settings see to it
        y = y * (driven.full_scale / top_code(config.dac_bits)).clamp(min=_TINY)
    return _output(y, driven, plan)


class _Pass(NamedTuple):
    """One drive of the word lines, of whole inputs or of one bit of them.

    inputs: [devices or 1, vectors, in]. seen: like inputs, what read noise is multiplied by (`Network.seen`). norms,
    rows: [devices or 1, vectors, row tiles], of what is seen and for the ADCs' steps. full_scale: [devices or 1,
    vectors, 1], the input that the DAC's largest code drives. worth: what an input counts in the output. cycle: of
    the bits.
    """

    inputs: Tensor
    seen: Tensor
    norms: Tensor
    rows: Tensor
    full_scale: Tensor
    worth: float
    cycle: int

    def through(self, network: Network | None, rows: int) -> "_Pass":
        """The same, with what the cells of a network see."""
        if network is None or network.v0 is None:
            return self
        seen = network.seen(self.inputs, self.full_scale)
        return self._replace(seen=seen, norms=tile_norms(seen, rows))


def _passes(driven: Driven, config: CrossbarConfig) -> Iterator[_Pass]:
    by_norm = config.adc_scaling == "norm"
    if config.input_coding == "analog":
        rows = driven.norms if by_norm else driven.full_scale.expand_as(driven.norms)
        yield _Pass(driven.x, driven.x, driven.norms, rows, driven.full_scale, 1.0, 0)
        return
    assert config.dac_bits is not None  # the settings see to it
    planes, _ = bit_planes(driven, config.dac_bits)
    whole, top = torch.ones_like(driven.full_scale), config.dac_bits - 1
    norms = tile_norms(planes, config.rows)
    for cycle, bits in enumerate(planes):
        rows = norms[cycle] if by_norm else torch.ones_like(norms[cycle])
        yield _Pass(
            bits, bits, norms[cycle], rows, whole, float(-(2**cycle) if cycle == top else 2**cycle), cycle
        )


def _chunks(plan: ReadPlan, vectors: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Devices and vectors whose partial outputs are held at once."""
    devices, _, inputs, columns = plan.weight.shape
    per_vector = -(-inputs // rows) * columns
    tall = max(1, min(max(_LEAST_VECTORS, _PART_ELEMENTS // per_vector), vectors))
    many = max(1, _PART_ELEMENTS // (per_vector * tall))
    if plan.base is not None:  # then weights are made anew for each chunk
        many = min(many, max(1, _PART_ELEMENTS // plan.weight[0].numel()))
    for device in range(0, devices, many):
        for vector in range(0, vectors, tall):
            yield slice(device, min(device + many, devices)), slice(vector, min(vector + tall, vectors))


def _read(
    one: _Pass,
    devices: slice,
    vectors: slice,
    y: Tensor,
    plan: ReadPlan,
    config: CrossbarConfig,
    keys: Tensor,
    first: Tensor,
) -> int:
    """Read some vectors on some devices into y; returns how many outputs were clipped."""
    own = slice(None) if one.inputs.shape[0] == 1 else devices
    inputs, weight, target = one.inputs[own, vectors], plan.cells(devices), y[devices, vectors]
    variance = None if plan.variance is None else plan.variance[devices].to(weight.dtype)
    noise = Noise(keys[devices], first[devices] + vectors.start, streams.READ + one.cycle)
    converters = _converters(one, own, devices, vectors, plan, config)
    if plan.network is None:
        clipped = multiply_and_convert(
            inputs, weight, variance, config.rows, plan.alphas, converters, noise, target, one.cycle == 0
        )
        if clipped is not None:
            return clipped
    clipped, squares = 0, None if variance is None else one.seen[own, vectors].square()
    for group, alpha in enumerate(plan.alphas):
        if plan.network is None:
            part = tile_products(inputs, weight[:, group], config.rows, 0)
        else:
            part = plan.network.products(inputs, one.full_scale[own, vectors], devices, group)
        spread = None
        if squares is not None and variance is not None:
            spread = tile_products(squares, variance[:, group], config.rows, 1)
        stream = noise._replace(purpose=noise.purpose + group * streams.MAX_CYCLES)
        fresh = one.cycle == 0 and group == 0
        clipped += convert(part, spread, converters.of_group(group, alpha), stream, target, fresh)
    return clipped


def _converters(
    one: _Pass, own: slice, devices: slice, vectors: slice, plan: ReadPlan, config: CrossbarConfig
) -> Converters:
    tiles = one.norms.shape[-1]
    shape = (devices.stop - devices.start, tiles, vectors.stop - vectors.start)

    def by_vector(values: Tensor) -> Tensor:
        return values[own, vectors].transpose(1, 2).expand(shape).contiguous()

    def by_column(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[devices].contiguous()

    uniform, adc = plan.uniform, plan.adc
    return Converters(
        noise_row=None if uniform is None else by_vector(one.norms),
        noise_col=None if uniform is None else by_column(uniform.expand(-1, -1, tiles, -1)),
        adc_row=None if adc is None else by_vector(one.rows),
        adc_col=None if adc is None else by_column(adc.col),
        adc_gain=None if adc is None else by_column(adc.gain),
        adc_shift=None if adc is None else by_column(adc.shift),
        thresholds=None if adc is None else by_column(adc.thresholds),
        top=0.0 if config.adc_bits is None else float(top_code(config.adc_bits)),
        alpha=one.worth,
    )


def tile_currents(x: Tensor, plan: ReadPlan, config: CrossbarConfig) -> Iterator[Tensor]:
    """What the ADCs of each group see, in units of their `row`: [devices, row tiles, vectors, out] per group.

    Input cycles of a bit-serial array come as more vectors. Without noise; for calibration.
    """
    passes, cells = list(_passes(drive(x, config), config)), plan.cells()
    for group in range(plan.weight.shape[1]):
        parts = []
        for one in passes:
            row = one.rows.transpose(1, 2)[..., None].clamp(min=_TINY)
            if plan.network is None:
                part = tile_products(one.inputs, cells[:, group], config.rows)
            else:
                part = plan.network.products(one.inputs, one.full_scale, slice(None), group)
            parts.append(part / row)
        yield torch.cat(parts, dim=2)


class _Scratch(threading.local):
    """Memory for partial outputs that a thread uses again: fresh pages would cost a third of the product's time."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}


_SCRATCH = _Scratch()


def _memory(shape: tuple[int, ...], slot: int | None, device: torch.device) -> Tensor:
    size = prod(shape)
    if slot is None or device.type != "cpu" or size > _SCRATCH_ELEMENTS:
        return torch.empty(shape, dtype=torch.float32, device=device)
    if slot not in _SCRATCH.buffers or _SCRATCH.buffers[slot].numel() < size:
        with torch.inference_mode(False):  # kept for later reads, which may be outside of it
            _SCRATCH.buffers[slot] = torch.empty(size, dtype=torch.float32)
    return _SCRATCH.buffers[slot][:size].view(shape)


def tile_products(inputs: Tensor, weight: Tensor, rows: int, slot: int | None = None) -> Tensor:
    """Products of every row tile.

    Args:
        inputs: [devices or 1, vectors, in].
        weight: [devices, in, out].
        rows: of a tile; the last tile may be shorter.
        slot: of the thread's memory for the result, which the next call with the same slot overwrites; None: fresh.

    Returns:
        [devices, row tiles, vectors, out].
    """
    weight = weight.float()
    devices, size, outputs = weight.shape
    vectors, whole = inputs.shape[1], size // rows
    part = _memory((devices, -(-size // rows), vectors, outputs), slot, weight.device)
    if whole:
        tiled = torch.unflatten(inputs[..., : whole * rows], -1, (whole, rows)).transpose(1, 2)
        cells = torch.unflatten(weight[:, : whole * rows], 1, (whole, rows))
        if devices == 1:
            torch.bmm(tiled[0], cells[0], out=part[0, :whole])
        else:
            part[:, :whole] = torch.matmul(tiled, cells)
    if whole < part.shape[1]:
        part[:, whole] = inputs[..., whole * rows :] @ weight[:, whole * rows :]
    return part


def _ideal_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [devices or 1, vectors, in] @ weight [devices, in, out]; compiled, summed in the order of the inputs."""
    y = torch.empty(len(weight), x.shape[1], weight.shape[-1], dtype=torch.float32, device=x.device)
    quiet = Noise(*(torch.zeros(len(weight), dtype=torch.int64, device=x.device),) * 2, streams.READ)
    none = Converters(None, None, None, None, None, None, None, 0.0, 1.0)
    done = multiply_and_convert(x, weight[:, None], None, weight.shape[1], (1.0,), none, quiet, y, True)
    return x @ weight if done is None else y


def _whole(plan: ReadPlan) -> Tensor:
    """Weights of all groups in one: [devices, in, out]."""
    cells = plan.cells()
    return cells[:, 0].float() if plan.alphas == (1.0,) else add_groups(cells, plan.alphas)


def _output(y: Tensor, driven: Driven, plan: ReadPlan) -> Tensor:
    """What the digital side makes of converted sums: the pedestal off, and out of the units of inputs and weights."""
    y = y if plan.pedestal is None else y - driven.x.sum(dim=-1, keepdim=True) * plan.pedestal
    units = [unit for unit in (driven.unit, plan.unit) if unit is not None]
    return y * prod(units[1:], start=units[0]) if units else y
