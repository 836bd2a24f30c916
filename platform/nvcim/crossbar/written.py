"""Written arrays: what programming leaves behind for reads, made in one pass where nothing but write noise matters."""

from collections.abc import Mapping as AbstractMapping
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from nvcim.crossbar.collapse import Effective, aged, background, cell_variance, collapse
from nvcim.crossbar.converters import full_scales, joined
from nvcim.crossbar.mapping import Mapping, add_groups
from nvcim.crossbar.network import largest_gain
from nvcim.crossbar.programming import Writing, write_cells, write_collapsed
from nvcim.crossbar.remapping import in_array
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.crossbar.units import joined_units, own_units

# Cells made at once where they are made one by one: bounds memory for many devices.
_CELLS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Written:
    """Arrays as reads see them; devices flattened, groups as in `collapse.Effective`.

    Attributes:
        weight: [devices, groups, in, out]; in bfloat16 without `base`.
        variance: like weight: of a read of each cell, in units of unit^2; None if none depends on the cell.
        uniform: [devices, groups, 1, out], sigma of a read of an input of norm 1 if levels do not matter; or None.
        pedestal: [devices, 1, out], what the digital side subtracts per unit of the inputs' sum; or None.
        base: [devices, groups, 1, out], what every cell of a column holds alike, kept apart so that bfloat16 does not
            round it; None: nothing.
        reach: [devices, groups, row tiles, out], full scales of the ADCs; None if they are ideal or calibrated.
        alphas: what a group's output counts in the sum.
        wear: int32, pulses that each cell has had, by place in the array; broadcasts to [devices, planes, in, out].
        writing: what was written; None for a stack.
        unit: [devices, 1, 1], a power of two per array of extreme weights, whose squares float32 cannot hold; None: 1.
    """

    weight: Tensor
    variance: Tensor | None
    uniform: Tensor | None
    pedestal: Tensor | None
    reach: Tensor | None
    alphas: tuple[float, ...]
    wear: Tensor
    writing: Writing | None
    unit: Tensor | None = None
    base: Tensor | None = None

    @property
    def layout(self) -> str:
        """What reads take from the arrays; crossbars that share it can be read in one call."""
        there = [name for name in _TENSORS if getattr(self, name) is not None]
        return f"{', '.join(there)}; slices that count {', '.join(f'{alpha:g}' for alpha in self.alphas)}"

    def combined(self) -> Tensor:
        """The signed weight [devices, in, out] that all groups and the digital side amount to."""
        cells = self.weight if self.base is None else self.weight.float() + self.base
        total = add_groups(cells, self.alphas)
        return total if self.pedestal is None else total - self.pedestal

    def for_reads(self) -> "Written":
        """The same arrays in units of `unit` if reads need that, because their noise squares the weights."""
        if self.unit is None or self.variance is None:
            return replace(self, unit=None)
        unit = self.unit
        return replace(
            self,
            weight=(self.weight / unit[:, None]).to(self.weight.dtype),
            pedestal=None if self.pedestal is None else self.pedestal / unit,
            base=None if self.base is None else self.base / unit[:, None],
            reach=None if self.reach is None else self.reach / unit[:, None],
            writing=None if self.writing is None else self.writing.in_units(unit),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, without those of `writing`."""
        own = {name: getattr(self, name) for name in (*_TENSORS, "wear")}
        return {name: value for name, value in own.items() if value is not None}

    def to(self, device: torch.device | str) -> "Written":
        """Move all tensors."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self.tensors().items()}
        writing = None if self.writing is None else self.writing.to(device)
        unit = None if self.unit is None else self.unit.to(device)
        return replace(self, **moved, writing=writing, unit=unit)

    @staticmethod
    def names(config: CrossbarConfig) -> set[str]:
        """Names of the tensors that arrays of this config have."""
        mapping = config.mapping()
        present = {
            "weight": True,
            "wear": True,
            "variance": config.noisy and not read_noise_is_uniform(config),
            "uniform": config.noisy and read_noise_is_uniform(config),
            "pedestal": len(mapping.signs) == 1,
            "reach": config.adc_bits is not None,
            "base": len(mapping.signs) == 1 and config.storage == "bfloat16",
        }
        return {name for name, there in present.items() if there}

    @staticmethod
    def from_tensors(state: AbstractMapping[str, Tensor], config: CrossbarConfig) -> "Written":
        """Arrays from what `tensors` and `Writing.tensors` gave."""
        own: dict[str, Any] = {name: state.get(name) for name in _TENSORS[1:]}
        writing = Writing.from_tensors(state)
        own |= {"alphas": _alphas(config), "wear": state["wear"], "unit": _unit(writing, config)}
        return Written(state["weight"], **own, writing=writing)

    @staticmethod
    def stack(members: Sequence["Written"]) -> "Written":
        """Put the devices of several arrays one after the other."""
        own: dict[str, Any] = {name: joined([getattr(one, name) for one in members]) for name in _TENSORS}
        wear = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
        unit = joined_units([(one.unit, one.weight) for one in members])
        return Written(**own, alphas=members[0].alphas, wear=wear, writing=None, unit=unit)


_TENSORS = ("weight", "variance", "uniform", "pedestal", "reach", "base")


def write_arrays(writing: Writing, config: CrossbarConfig, elapsed_s: float = 0.0) -> Written:
    """Write cells, let `elapsed_s` seconds pass, and collapse them; the same arguments give the same arrays.

    Raises:
        ConfigError, DeviceError: settings that the device cannot serve.
    """
    mapping, unit = config.mapping(), _unit(writing, config)
    inner = writing.in_units(unit)
    if _only_write_noise(writing, config, elapsed_s):
        effective, pulses = _in_one_pass(inner, config, mapping), None
    else:
        effective, pulses = _cell_by_cell(inner, config, mapping, elapsed_s)
    wear = torch.ones(1, 1, 1, 1) if pulses is None else pulses
    reach = None
    if config.adc_bits is not None and config.adc_scaling != "calibrated":
        reach = full_scales(effective.weight, config) * largest_gain(config)
    if unit is not None:
        effective = effective._replace(weight=effective.weight * unit[:, None])
        reach = None if reach is None else reach * unit[:, None]
    kept = torch.bfloat16 if config.storage == "bfloat16" else torch.float32
    base = _base(writing, config, mapping) if "base" in Written.names(config) else None
    return Written(
        weight=(effective.weight if base is None else effective.weight - base).to(kept),
        variance=None if effective.variance is None else effective.variance.to(kept),
        uniform=_uniform(writing, config, mapping) if effective.variance is None else None,
        pedestal=_pedestal(writing, config, mapping),
        reach=reach,
        alphas=_alphas(config),
        wear=wear.to(torch.int32),
        writing=writing,
        unit=unit,
        base=base,
    )


def read_noise_is_uniform(config: CrossbarConfig) -> bool:
    """Whether the read noise, if any, is the same for every cell, whatever its level."""
    alike = config.wires is None and not config.array_spread()
    return config.read_noise == 0 and config.read is None and alike


def _unit(writing: Writing, config: CrossbarConfig) -> Tensor | None:
    """See `Written.unit`: from the largest weight of each array."""
    return own_units(writing.scale.amax(dim=2, keepdim=True) * config.mapping().top)


def ages(config: CrossbarConfig) -> bool:
    """Whether time changes anything about these cells or their reads, as far as the device's ageing is known."""
    cell = config.cell()
    moving = any((cell.drift, cell.retention, cell.relaxation))
    return moving or (config.read is not None and cell.read_noise is not None)


def _alphas(config: CrossbarConfig) -> tuple[float, ...]:
    digital = config.accumulate == "digital"
    return tuple(piece.factor for piece in config.mapping().slices) if digital else (1.0,)


def _only_write_noise(writing: Writing, config: CrossbarConfig, elapsed_s: float) -> bool:
    faults = (*config.stuck_rates(), config.array_spread())
    special = (writing.verified is not None, *faults, config.wires, config.read, config.temperature_k)
    return config.accumulate == "analog" and elapsed_s == 0 and not any(special)


def _in_one_pass(writing: Writing, config: CrossbarConfig, mapping: Mapping) -> Effective:
    floor = background(config.cell())
    noisy = config.noisy and not read_noise_is_uniform(config)
    weight, squares = write_collapsed(writing, config, mapping, floor, noisy)
    if squares is not None:
        squares = squares * config.read_noise**2
        if config.read_noise_floor > 0:
            cells = len(mapping.signs) * sum(piece.factor**2 for piece in mapping.slices)
            squares = squares + (writing.scale * config.read_noise_floor).square() * cells
        squares = squares.unsqueeze(1)
    return Effective(weight.unsqueeze(1), squares)


def _cell_by_cell(
    writing: Writing, config: CrossbarConfig, mapping: Mapping, elapsed_s: float
) -> tuple[Effective, Tensor | None]:
    some = max(1, _CELLS_AT_ONCE // (mapping.cells * writing.integers[0].numel()))
    parts, pulses = [], []
    for start in range(0, len(writing.integers), some):
        part = writing.some(slice(start, start + some))
        cells = write_cells(part, config)
        conductance = aged(cells, part, config, elapsed_s)
        variance = (
            None if read_noise_is_uniform(config) else cell_variance(conductance, cells, config, elapsed_s)
        )
        parts.append(collapse(conductance, variance, part, config, mapping))
        if cells.pulses is not None:
            pulses.append(
                cells.pulses if part.places is None else in_array(cells.pulses, part.places, config)
            )
    variances = [part.variance for part in parts if part.variance is not None]
    effective = Effective(torch.cat([p.weight for p in parts]), torch.cat(variances) if variances else None)
    return effective, torch.cat(pulses) if pulses else None


def _uniform(writing: Writing, config: CrossbarConfig, mapping: Mapping) -> Tensor | None:
    if config.read_noise_floor == 0:
        return None
    sides = len(mapping.signs)
    squares = [sides * piece.factor**2 for piece in mapping.slices]
    per_group = [float(sides)] * len(squares) if config.accumulate == "digital" else [sum(squares)]
    sigmas = writing.scale.new_tensor([config.read_noise_floor * sqrt(square) for square in per_group])
    return sigmas[None, :, None, None] * writing.scale[:, None]


def _pedestal(writing: Writing, config: CrossbarConfig, mapping: Mapping) -> Tensor | None:
    if len(mapping.signs) == 2:
        return None
    return writing.scale * _zero(config, mapping)


def _zero(config: CrossbarConfig, mapping: Mapping) -> float:
    """What weight 0 adds to the current of a one-sided array, in integers."""
    return mapping.offset + background(config.cell()) * sum(piece.factor for piece in mapping.slices)


def _base(writing: Writing, config: CrossbarConfig, mapping: Mapping) -> Tensor:
    """What weight 0 amounts to; for a slice with ADCs of its own, a cell at half its range where weights have signs."""
    if config.accumulate == "analog":
        return (writing.scale * _zero(config, mapping))[:, None]
    middle = background(config.cell()) + (0.5 if mapping.offset else 0.0)
    return (writing.scale * middle)[:, None].repeat(1, len(mapping.slices), 1, 1)
