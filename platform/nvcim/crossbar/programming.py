"""Writing cells: every pulse lands beside its level, by a Gaussian whose width depends on the level.

    g = level_conductance[l] + u * level_sigma[l] / 0.01 * sigma * eps,   eps ~ N(0, 1)

with u = 1 (sigma in units of the full range) or one level step. The draw is not clipped: 0 is the cell's g_min, not
zero siemens, and the published level tables are plain Gaussians.

Draws are counter-based, so the cells of a device are a function of its integers, its key and how often it was
written; nothing of them is stored, and `write_cells` makes them again, the same to the bit.
"""

from collections.abc import Mapping as AbstractMapping
from typing import NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar import streams
from nvcim.crossbar.counter_rng import normals, uniforms
from nvcim.crossbar.kernel import ProgramArguments, fill, kernel_for
from nvcim.crossbar.mapping import Mapping
from nvcim.crossbar.remapping import Places, find_places, seen_by_weights, unmoved
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.devices import CellDevice
from nvcim.devices.faults import stuck_cells, with_stuck


class Writing(NamedTuple):
    """What was asked of the cells of some devices, and the streams that say where they landed.

    integers: [devices, in, out], int16. scale: [devices, 1, out]. keys, writes: [devices], int64: each device's key
    and the number of this write. verified: [devices, in, out] bool, the weights that are read back; None for none.
    row_places, column_places: see `remapping.Places`; None without remapping.
    """

    integers: Tensor
    scale: Tensor
    keys: Tensor
    writes: Tensor
    verified: Tensor | None
    row_places: Tensor | None = None
    column_places: Tensor | None = None

    @property
    def places(self) -> Places | None:
        """Where the lines of the weights lie; None where the weights have them."""
        if self.row_places is None or self.column_places is None:
            return None
        return Places(self.row_places, self.column_places)

    def in_units(self, unit: Tensor | None) -> "Writing":
        """The same weights in units of `unit` [devices, 1, 1]; None: 1."""
        return self if unit is None else self._replace(scale=self.scale / unit)

    def some(self, devices: slice) -> "Writing":
        """The same for some of the devices."""
        return self._replace(**{name: value[devices] for name, value in self.tensors().items()})

    def to(self, device: torch.device | str) -> "Writing":
        """Move all tensors."""
        return self._replace(**{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @staticmethod
    def names(config: CrossbarConfig) -> set[str]:
        """Names of the tensors of a write with this config."""
        names = {"integers", "scale", "keys", "writes"}
        names = names if config.programming.method == "open_loop" else names | {"verified"}
        return names if config.remap == "none" else names | {"row_places", "column_places"}

    @staticmethod
    def from_tensors(state: AbstractMapping[str, Tensor]) -> "Writing":
        """A write from what `tensors` gave."""
        own = [state[name] for name in ("integers", "scale", "keys", "writes")]
        places = state.get("row_places"), state.get("column_places")
        return Writing(own[0], own[1], own[2], own[3], state.get("verified"), *places)


class Cells(NamedTuple):
    """Planes of cells, a plane per side and slice: all [devices, planes, in, out].

    levels: int32, what was to be written. conductance: float32, normalised, what was reached. stuck: int8, 1 on,
    -1 off, 0 fine; None if none can be. pulses: uint8 per cell, None where each got one.
    """

    levels: Tensor
    conductance: Tensor
    stuck: Tensor | None
    pulses: Tensor | None


def level_tables(cell: CellDevice, config: CrossbarConfig) -> tuple[Tensor, Tensor]:
    """Nominal conductance and standard deviation of a write, both normalised: [levels] each, float32."""
    unit = 1.0 if config.sigma_unit == "full_range" else 1.0 / (cell.levels - 1)
    sigma = cell.sigma_at(config.sigma * unit)
    return torch.tensor(cell.level_conductance, dtype=torch.float32), torch.tensor(sigma, dtype=torch.float32)


def write_cells(writing: Writing, config: CrossbarConfig) -> Cells:
    """Write every cell of some devices; the same arguments give the same cells, to the bit."""
    cell, mapping = config.cell(), config.mapping()
    planes = [(side, index) for side in range(len(mapping.signs)) for index in range(len(mapping.slices))]
    levels = torch.stack([mapping.levels(writing.integers.int(), *plane) for plane in planes], dim=1)
    where = levels.device
    nominal, width = (table.to(where) for table in level_tables(cell, config))
    conductance = torch.empty(levels.shape, dtype=torch.float32, device=where)
    pulses = None if writing.verified is None else torch.ones(levels.shape, dtype=torch.uint8, device=where)
    for plane in range(len(planes)):
        target, spread = nominal[levels[:, plane]], width[levels[:, plane]]
        conductance[:, plane] = target + spread * _pulse(writing, plane, 0) if config.sigma > 0 else target
        if pulses is not None and config.sigma > 0:
            _verify(writing, plane, target, spread, conductance[:, plane], pulses[:, plane], config)
    stuck = _stuck(writing.keys, levels.shape, config)
    if stuck is not None and writing.places is not None:
        stuck = seen_by_weights(stuck, writing.places, config)
    if stuck is None:
        return Cells(levels, conductance, None, pulses)
    conductance = with_stuck(conductance, stuck)
    if pulses is not None and writing.verified is not None:
        # No pulse moves a stuck cell: it passes at once where it is stuck at its level, else it has them all.
        tolerance = config.programming.tolerance / (cell.levels - 1)
        missed = (conductance - nominal[levels]).abs() > tolerance
        tried = 1 + missed.to(torch.uint8) * (config.programming.max_pulses - 1)
        pulses = torch.where((stuck != 0) & writing.verified[:, None], tried, pulses)
    return Cells(levels, conductance, stuck, pulses)


def _pulse(writing: Writing, plane: int, pulse: int) -> Tensor:
    """Standard normals of one pulse on a plane: [devices, in, out]."""
    index = writing.writes * streams.MAX_PULSES + pulse
    devices, *shape = writing.integers.shape
    drawn = normals(writing.keys, streams.WRITE + plane, index, shape[0] * shape[1])
    return drawn.reshape(devices, *shape)


def _verify(
    writing: Writing,
    plane: int,
    target: Tensor,
    spread: Tensor,
    conductance: Tensor,
    pulses: Tensor,
    config: CrossbarConfig,
) -> None:
    """Write cells anew, in place, until each lies within the tolerance; after all its pulses, the nearest one stays."""
    assert writing.verified is not None
    tolerance = config.programming.tolerance / (config.cell().levels - 1)
    reached, counts = conductance.reshape(-1).clone(), pulses.reshape(-1).clone()
    missed = (((conductance - target).abs() > tolerance) & writing.verified).flatten().nonzero()[:, 0]
    goal, width = target.flatten()[missed], spread.flatten()[missed]
    for pulse in range(1, config.programming.max_pulses):
        if not len(missed):
            break
        again = goal + width * _pulse(writing, plane, pulse).flatten()[missed]
        before = reached[missed]
        reached[missed] = torch.where((again - goal).abs() < (before - goal).abs(), again, before)
        counts[missed] += 1
        still = (again - goal).abs() > tolerance
        missed, goal, width = missed[still], goal[still], width[still]
    conductance.copy_(reached.view_as(conductance))
    pulses.copy_(counts.view_as(pulses))


def remapped(writing: Writing, config: CrossbarConfig) -> Writing:
    """Choose by `config.remap` which lines of these chips hold which of the weights."""
    if config.remap == "none":
        return writing
    whole = writing.integers.shape
    shape, found = torch.Size([1, config.mapping().cells, *whole[1:]]), []
    for device in range(whole[0]):
        stuck = _stuck(writing.keys[device : device + 1], shape, config)
        if stuck is None:
            found = [unmoved(whole, config)]
            break
        found.append(find_places(stuck[0], writing.integers[device], writing.scale[device], config))
    rows, columns = (torch.cat(lines).to(writing.keys.device) for lines in zip(*found, strict=True))
    return writing._replace(row_places=rows, column_places=columns)


def _stuck(keys: Tensor, shape: torch.Size, config: CrossbarConfig) -> Tensor | None:
    """Stuck cells by place in the array, [devices, planes, in, out], or None if none can be."""
    rates = config.stuck_rates()
    return stuck_map(keys, shape, *rates) if any(rates) else None


def stuck_map(keys: Tensor, shape: torch.Size, stuck_on: float, stuck_off: float) -> Tensor:
    """Which cells of chips are stuck: int8 [devices, planes, in, out], 1 on, -1 off, 0 fine; a function of the keys."""
    planes = [
        uniforms(keys, streams.STUCK + plane, torch.zeros_like(keys), shape[2] * shape[3])
        for plane in range(shape[1])
    ]
    # Below 1, which float32 rounds a few draws to: at a rate of 0 no cell may be stuck off.
    drawn = torch.stack(planes, dim=1).reshape(shape).clamp(max=1 - 2**-24)
    return stuck_cells(drawn, stuck_on, stuck_off)


class Collapsed(NamedTuple):
    """What open-loop differential pairs amount to at their outputs: both [devices, in, out].

    weight: the signed sum over pairs and slices. squares: what reads with a sigma of 1, relative to the conductance,
    would add as variance; None unless asked for.
    """

    weight: Tensor
    squares: Tensor | None


def write_collapsed(
    writing: Writing, config: CrossbarConfig, mapping: Mapping, floor: float, squares: bool
) -> Collapsed:
    """Write cells open-loop and add each weight's pair and slices up at once, in one pass over the weights.

    Args:
        writing: nothing verified.
        config: analog accumulation; no stuck cells.
        mapping: of the config.
        floor: g_min in units of the conductance range.
        squares: whether to make them.
    """
    nominal, width = level_tables(config.cell(), config)
    library = kernel_for(writing.integers)
    if library is None:
        return _plain_collapsed(writing, config, mapping, (nominal + floor, width), squares)
    integers, scale = writing.integers, writing.scale.contiguous()
    keys, writes = writing.keys.contiguous(), (writing.writes * streams.MAX_PULSES).contiguous()
    tables = {"conductance": (nominal + floor), "sigma": width}
    fields = {
        name: torch.tensor([getattr(piece, name) for piece in mapping.slices], dtype=kind)
        for name, kind in (("shift", torch.int32), ("mask", torch.int32), ("stride", torch.int32))
    }
    factors = torch.tensor([piece.factor for piece in mapping.slices], dtype=torch.float32)
    devices, inputs, outputs = integers.shape
    total = torch.empty(integers.shape, dtype=torch.float32)
    result = Collapsed(total, torch.empty_like(total) if squares else None)
    arguments = ProgramArguments()
    fill(
        arguments, {**tables, **fields, "integers": integers, "scale": scale, "factor": factors, "keys": keys}
    )
    fill(arguments, {"write": writes, "total": result.weight, "squares": result.squares})
    fill(
        arguments,
        {
            "devices": devices,
            "cells": inputs * outputs,
            "stride_device": integers.stride(0),
            "outputs": outputs,
            "levels": len(nominal),
        },
    )
    fill(arguments, {"slices": len(mapping.slices), "sides": len(mapping.signs), "offset": mapping.offset})
    fill(arguments, {"spare": mapping.spare, "noisy": config.sigma > 0})
    fill(arguments, {"purpose": streams.WRITE, "threads": torch.get_num_threads()})
    library.nvcim_program(arguments)
    return result


def _plain_collapsed(
    writing: Writing, config: CrossbarConfig, mapping: Mapping, tables: tuple[Tensor, Tensor], squares: bool
) -> Collapsed:
    """The same in plain torch; the order of the operations is that of kernel.cpp."""
    nominal, width = (table.to(writing.integers.device) for table in tables)
    total = torch.zeros(writing.integers.shape, dtype=torch.float32, device=nominal.device)
    summed = torch.zeros_like(total) if squares else None
    for index, piece in enumerate(mapping.slices):
        for side, sign in enumerate(mapping.signs):
            levels = mapping.levels(writing.integers.int(), side, index)
            conductance = nominal[levels]
            if config.sigma > 0:
                plane = side * len(mapping.slices) + index
                conductance = conductance + width[levels] * _pulse(writing, plane, 0)
            total = total + conductance * (sign * piece.factor)
            if summed is not None:
                summed = summed + conductance * conductance * (piece.factor * piece.factor)
    scale = writing.scale
    return Collapsed(total * scale, None if summed is None else summed * (scale * scale))
