"""Which word line and which bit line of a tile holds what, so that stuck cells do the least harm.

A chip is tested before it is programmed, so its stuck cells are known. Within a tile, rows of the weight may then lie
on any word lines and columns on any bit lines. Putting logical row i on physical row p costs the squared error that the
stuck cells of p make in the weights of row i, in integers of the weight, with all other cells at their nominal levels:

    cost[i, p] = sum_j (sum_k factor_k * stuck_k[p, j] * (end_k[p, j] - target_k[i, j]))**2

over columns j and planes k. The assignment of least cost is found exactly (Crouse, "On implementing 2D rectangular
assignment algorithms", IEEE TAES 2016, as scipy has it). `columns` does the same for bit lines; `both` alternates until
neither helps, which is a local optimum.

What is assumed of the hardware: a tile reads its inputs from, and adds its outputs to, registers by a table of
addresses, so each tile has an order of its own, while the sides and slices of a weight, which share drivers and are
summed in the analog domain, share that of their tile. Lines never leave their tile, so the sums that an ADC sees and
the tile's process variation stay what they are. The tables' cost in area and energy is not modelled.

The rest of the engine sees cells where their weights are ("logical"): write noise, ageing and reads are draws of their
own for every cell and write, so only what belongs to a place in the array has to be moved: stuck cells, wires, wear
and the errors of ADCs.
"""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nvcim.crossbar.settings import CrossbarConfig, Remap

# Rounds of `both`: each helps less than the one before it, and most tiles are done after three.
_ROUNDS = 8
# Costs are compared in steps of 1/1024 of a squared integer, so that the order in which a machine adds them up does not
# choose between equal ones; the offset keeps dyadic fractions, which are usual, off the edges of the steps.
_STEPS, _OFFSET = 1024, 1 / 3


class Places(NamedTuple):
    """Where the lines of the weight lie in the array: permutations within each tile, int32.

    rows: [devices, in, column tiles], the word line of each input. columns: [devices, row tiles, out], the bit line of
    each output.
    """

    rows: Tensor
    columns: Tensor


def unmoved(shape: torch.Size, config: CrossbarConfig) -> Places:
    """Every line where weights of this shape [devices, in, out] have it, on the CPU."""
    by_row, by_column = place_shapes(shape, config)
    rows = torch.arange(shape[1], dtype=torch.int32)[:, None].expand(by_row).clone()
    columns = torch.arange(shape[2], dtype=torch.int32).expand(by_column).clone()
    return Places(rows, columns)


def place_shapes(shape: torch.Size, config: CrossbarConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the rows and columns of `Places` for weights [devices, in, out]."""
    devices, inputs, outputs = shape
    return (devices, inputs, -(-outputs // config.cols)), (devices, -(-inputs // config.rows), outputs)


def find_places(stuck: Tensor, integers: Tensor, scale: Tensor, config: CrossbarConfig) -> Places:
    """Choose the lines of one device's weights by `config.remap`.

    Args:
        stuck: [planes, in, out], int8 from `devices.faults.stuck_cells`: the chip's cells as tested.
        integers: [in, out], the quantised weights.
        scale: [1, out], what an integer of each column is worth.

    Returns:
        For one device, on the CPU; a tile where no order is better keeps its own.
    """
    places = unmoved(integers[None].shape, config)
    mapping, worth = config.mapping(), _relative(scale.double()).square()
    factors = torch.tensor([sign * piece.factor for sign in mapping.signs for piece in mapping.slices])
    nominal = torch.tensor(config.cell().level_conductance, dtype=torch.float64, device=stuck.device)
    for down, top in enumerate(range(0, integers.shape[0], config.rows)):
        for right, left in enumerate(range(0, integers.shape[1], config.cols)):
            tall, wide = slice(top, top + config.rows), slice(left, left + config.cols)
            tile, own = stuck[:, tall, wide], integers[tall, wide].int()
            levels = [
                mapping.levels(own, side, index)
                for side in range(len(mapping.signs))
                for index in range(len(mapping.slices))
            ]
            targets = nominal[torch.stack(levels)]
            rows, columns = tile_orders(tile, targets, factors.to(targets), worth[:, wide], config.remap)
            places.rows[0, tall, right] = rows.int() + top
            places.columns[0, down, wide] = columns.int() + left
    return places


def tile_orders(
    stuck: Tensor, targets: Tensor, factors: Tensor, worth: Tensor, remap: Remap
) -> tuple[Tensor, Tensor]:
    """Choose the order of the lines of one tile: for every logical line the physical one, [rows] and [cols] int64.

    Args:
        stuck: [planes, rows, cols], by physical line.
        targets: like `stuck`, by logical line: normalised conductance to be written, float64.
        factors: [planes], what a plane at full conductance counts, with its sign.
        worth: [1, cols], weight of a column's squared errors.
        remap: rows, columns or both; none keeps the lines as they are.
    """
    rows, columns = torch.arange(stuck.shape[1]), torch.arange(stuck.shape[2])
    if not bool(stuck.any()):
        return rows, columns
    for _ in range(_ROUNDS if remap == "both" else 1):
        moved = False
        if remap in ("rows", "both"):
            cost = line_costs(stuck[:, rows][:, :, columns], targets, factors, worth)
            found = _assigned(cost)
            moved, rows = found is not None, rows if found is None else rows[found]
        if remap in ("columns", "both"):
            cost = line_costs(stuck[:, rows][:, :, columns].mT, targets.mT, factors, worth.mT)
            found = _assigned(cost)
            moved, columns = moved or found is not None, columns if found is None else columns[found]
        if not moved:
            break
    return rows, columns


def line_costs(stuck: Tensor, targets: Tensor, factors: Tensor, worth: Tensor) -> Tensor:
    """Squared error of every logical line on every physical line: [logical, physical], float64.

    The square is multiplied out, which makes it a sum of matrix products of what is physical and what is logical.

    Args:
        stuck, targets: [planes, lines, cells of a line]; see `tile_orders`.
        factors: [planes].
        worth: broadcasts to [logical lines, cells of a line].
    """
    hit = (stuck != 0).to(targets) * factors[:, None, None]
    ends = (hit * (stuck > 0)).sum(dim=0)
    worth = worth.expand(targets.shape[1:])
    total = worth @ ends.square().mT
    for plane, target in enumerate(targets):
        twice = torch.cat([hit[plane : plane + 1], 2 * hit[plane + 1 :], -2 * ends[None]]) * hit[plane]
        others = torch.cat([targets[plane:], torch.ones_like(target)[None]]) * (target * worth)
        total += torch.einsum("kij,kpj->ip", others, twice)
    return total


def _assigned(cost: Tensor) -> Tensor | None:
    """The physical line of each logical line, or None where nothing is better than staying."""
    steps = (cost * _STEPS + _OFFSET).floor().cpu()
    chosen = torch.from_numpy(linear_sum_assignment(steps.numpy())[1])
    better = steps.gather(1, chosen[:, None]).sum() < steps.trace()
    return chosen if bool(better) else None


def _relative(scale: Tensor) -> Tensor:
    largest = scale.amax()
    return scale / largest if largest > 0 else torch.ones_like(scale)


def seen_by_weights(physical: Tensor, places: Places, config: CrossbarConfig) -> Tensor:
    """Cells by place in the array -> by weight: [devices, planes, in, out] both."""
    return physical.flatten(2).gather(2, _cells(physical, places, config)).reshape(physical.shape)


def in_array(logical: Tensor, places: Places, config: CrossbarConfig) -> Tensor:
    """Cells by weight -> by place in the array: [devices, planes, in, out] both; the inverse of `seen_by_weights`."""
    placed = torch.empty_like(logical, memory_format=torch.contiguous_format).flatten(2)
    return placed.scatter_(2, _cells(logical, places, config), logical.flatten(2)).reshape(logical.shape)


def adcs_of_outputs(by_line: Tensor, places: Places) -> Tensor:
    """What each bit line's ADC has -> by output: [devices, groups, row tiles, out, ...] both."""
    index = places.columns.long()[:, None].reshape(
        *(len(places.columns), 1, *places.columns.shape[1:]), *(1,) * (by_line.dim() - 4)
    )
    return by_line.gather(3, index.expand(by_line.shape))


def _cells(like: Tensor, places: Places, config: CrossbarConfig) -> Tensor:
    """The cell of every weight: its index in the array, [devices, planes, in * out] int64."""
    devices, planes, inputs, outputs = like.shape
    where = like.device
    rows = places.rows[:, :, torch.arange(outputs, device=where) // config.cols].long()
    columns = places.columns[:, torch.arange(inputs, device=where) // config.rows]
    return (rows * outputs + columns).reshape(devices, 1, -1).expand(-1, planes, -1)
