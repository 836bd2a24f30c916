"""What a set of weight levels becomes on a crossbar, and how to choose levels that its cells can hold.

An array holds integers |q| <= top = 2^(b-1) - 1 times a step. As crossbars are written, the step is max|w| / top, so
the largest weight fills the cells. Powers of two then miss the grid, all but the largest: at 4 bits 1, 1/2, 1/4
become 7, 3.5, 1.75 steps. Two things put them on it:

- a step that is a power of two, the smallest with top * step >= max|w|. `with_reference_columns` makes the array take
  it, by one more column per matrix that holds a single weight, top * step, and is not read;
- no more powers than the grid then has: q = 1, 2, 4, ..., 2^(b-2), which are b - 1 (`crossbar_inq`).

Cells miss their level by an absolute error, and a larger step makes that larger. So neither step is always better:
the expected squared error of a stored weight is

    E (stored - w)^2 = (step * mean[q] - w)^2 + step^2 * variance[q],
    mean[q] = sum over cells of f g[l] (less the offset),   variance[q] = sum over cells of f^2 sd[l]^2,

with f what a cell's full conductance is worth in integers, g[l] and sd[l] the catalogue's conductance of level l
and its spread. `steps_by_error` takes the step with the smaller sum, layer by layer, and `best_levels` the subset of
the grid that does best.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nvcim.analog import analogize
from nvcim.analog.convolution import Convolution
from nvcim.analog.replacing import replace_modules
from nvcim.crossbar import CrossbarConfig
from nvcim.crossbar.collapse import background
from nvcim.crossbar.mapping import quantize_symmetric
from nvcim.crossbar.programming import level_tables
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import INQSettings
from nvcim.quantization.inference import inference_copy

Step = Literal["largest", "power_of_two"]
"""What decides an array's step: its largest weight, or the next power of two that still holds it."""

_BINS = 1024

# A reference column must leave at most this share of the error, for the column of cells that it costs.
_WORTH = 0.95


@dataclass(frozen=True)
class CellTable:
    """What integers read back as, right after one write pulse per cell: mean and variance, in steps and steps^2.

    Both float64 [2 * top + 1], entry q + top for the integer q.
    """

    top: int
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class LevelFit:
    """What the values of a matrix become on an array, write pulses that miss their level left out.

    values, kept: distinct values before and after. on_grid: how many of them are a whole number of steps, to float32.
    relative_error: rms of stored less wanted, over rms of wanted; leakage of the lowest level is part of it.
    zeroed: share of the nonzero weights that become zero.
    relative_spread: rms of what write pulses add, expected, over rms of wanted.
    """

    values: int
    kept: int
    on_grid: int
    relative_error: float
    zeroed: float
    relative_spread: float

    @property
    def expected_error(self) -> float:
        """Both errors together: sqrt(relative_error^2 + relative_spread^2)."""
        return math.hypot(self.relative_error, self.relative_spread)


def cell_table(config: CrossbarConfig) -> CellTable:
    """Mean and variance of every integer on these cells; write-verify leaves less variance than is said here.

    Raises:
        ConfigError, DeviceError: settings that no array can have.
    """
    mapping, cell = config.mapping(), config.cell()
    width = level_tables(cell, config)[1].double()
    raised = torch.tensor(cell.level_conductance, dtype=torch.float64) + background(cell)
    integers = torch.arange(-mapping.top, mapping.top + 1, dtype=torch.int32)
    mean = torch.full(integers.shape, -float(mapping.offset), dtype=torch.float64)
    variance = torch.zeros_like(mean)
    for side, sign in enumerate(mapping.signs):
        for index, piece in enumerate(mapping.slices):
            levels = mapping.levels(integers.clone(), side, index)
            mean += sign * piece.factor * raised[levels]
            variance += piece.factor**2 * width[levels].square()
    return CellTable(mapping.top, mean, variance)


def array_integers(matrix: Tensor, config: CrossbarConfig, step: Step = "largest") -> tuple[Tensor, Tensor]:
    """Integers and step of a matrix on an array, as the crossbar rounds them.

    Args:
        matrix: [in, out], or [groups, in, out] for arrays of their own; finite.
        config: its weight_bits, and `scale_per` (column: a step per output).
        step: see `Step`.

    Returns:
        integers, int16, like `matrix`; step, float32 [..., 1, out].

    Raises:
        ConfigError: a step per output that is to be a power of two.
    """
    flat = matrix.detach().float().reshape(-1, *matrix.shape[-2:])
    if step == "power_of_two":
        flat = torch.cat([flat, _reference(flat, config)], dim=2)
    integers, scale = quantize_symmetric(flat, config.weight_bits, config.scale_per == "column")
    outputs = matrix.shape[-1]
    shape = matrix.shape[:-2]
    return (
        integers[..., :outputs].reshape(matrix.shape),
        scale[..., :outputs].reshape(*shape, 1, outputs),
    )


def level_fit(matrix: Tensor, config: CrossbarConfig, step: Step = "largest") -> LevelFit:
    """Say what becomes of a matrix; arguments as `array_integers`.

    Raises:
        ConfigError: as `array_integers`; a matrix of zeros, which has no relative error.
    """
    wanted = matrix.detach().double()
    norm = float(wanted.norm())
    if norm == 0:
        raise ConfigError("a matrix of zeros has no relative error")
    integers, scale = array_integers(matrix, config, step)
    table = cell_table(config)
    index = integers.long() + table.top
    factor = scale.double()
    rounded = (integers.float() * scale).double()
    nonzero = wanted != 0
    return LevelFit(
        values=_distinct(wanted),
        kept=_distinct(rounded),
        on_grid=_distinct(wanted[wanted == rounded]),
        relative_error=float((table.mean[index] * factor - wanted).norm()) / norm,
        zeroed=float((nonzero & (integers == 0)).sum() / nonzero.sum()),
        relative_spread=float((table.variance[index].sqrt() * factor).norm()) / norm,
    )


def crossbar_inq(config: CrossbarConfig) -> INQSettings:
    """INQ with exactly the powers of two that these arrays hold: b - 1 for b-bit weights.

    They lie on the cells' grid on an array whose step is a power of two (`with_reference_columns`). How a weight's bits
    are cut into slices and sides changes nothing, since every integer up to 2^(b-1) - 1 has its cells. `bits` is what
    such a weight takes in a file: one code for zero, one for each signed power.

    Example:
        >>> crossbar_inq(CrossbarConfig(weight_bits=4)).exponents  # 1, 1/2, 1/4 of the largest
        3
    """
    exponents = config.weight_bits - 1
    return INQSettings(bits=max(2, math.ceil(math.log2(2 * exponents + 1))), exponents=exponents)


def best_levels(matrix: Tensor, config: CrossbarConfig, count: int) -> tuple[int, ...]:
    """The `count` magnitudes q of the grid with the least expected squared error over a matrix's weights.

    Exact (dynamic programming) for up to 1024 distinct magnitudes; beyond, weights within 1/1024 of the largest share
    a level. The step is max|w| / top, so top is always among them. Ordered levels serve ordered weights whatever their
    variances, because the error's difference between two levels is linear in w.

    Args:
        matrix: [in, out], finite, not all zero.
        config: differential scheme, one step for the device.
        count: 1 to top + 1, zero included if it is among the best.

    Returns:
        Ascending integers in 0..top, the last one top.

    Raises:
        ConfigError: another scheme, a step per column, a count out of range, or a matrix of zeros.
    """
    table = _symmetric_table(config)
    if not 1 <= count <= table.top + 1:
        raise ConfigError(
            f"count must lie in 1..{table.top + 1} for {config.weight_bits}-bit weights: {count}"
        )
    ratio = _ratios(matrix, table.top)
    mean, variance = table.mean[table.top :].numpy(), table.variance[table.top :].numpy()
    cost = _bin_costs(ratio.flatten().numpy(), mean, variance, table.top)
    # least[j]: least cost of the weights so far, the last of them on level j; one plane per number of levels used.
    least = np.full((count, table.top + 1), np.inf)
    least[0] = cost[0]
    came = np.zeros((len(cost), count, table.top + 1), dtype=np.int32)
    for row in range(1, len(cost)):
        before = np.full_like(least, np.inf)
        origin = np.tile(np.arange(table.top + 1, dtype=np.int32), (count, 1))
        if count > 1:
            before[1:, 1:], origin[1:, 1:] = _running_least(least[:-1, :-1])
        stays = least <= before
        came[row] = np.where(stays, -1, origin)
        least = np.where(stays, least, before) + cost[row]
    return _traced(least, came, table.top, count)


def on_levels(matrix: Tensor, config: CrossbarConfig, magnitudes: Sequence[int]) -> Tensor:
    """Put every weight on the signed magnitude with the least expected squared error, [in, out] like `matrix`.

    The largest weight takes the largest magnitude, so that the array keeps its step.

    Raises:
        ConfigError: as `best_levels`; magnitudes beyond the grid, or without its top.
    """
    table = _symmetric_table(config)
    chosen = torch.tensor(sorted(set(magnitudes)), dtype=torch.int64)
    if len(chosen) == 0 or int(chosen[0]) < 0 or int(chosen[-1]) != table.top:
        raise ConfigError(f"magnitudes must lie in 0..{table.top} and hold {table.top}: {list(magnitudes)}")
    ratio = _ratios(matrix, table.top)
    mean, variance = table.mean[table.top + chosen], table.variance[table.top + chosen]
    error = (mean - ratio[..., None]).square() + variance
    level = chosen[error.argmin(dim=-1)]
    level[ratio >= table.top * (1 - 1e-6)] = table.top
    step = matrix.detach().abs().amax() / table.top
    return torch.sign(matrix.detach()) * (level.float() * step)


def with_best_levels(model: nn.Module, config: CrossbarConfig, count: int) -> nn.Module:
    """A copy whose convolutions have their weights on the best `count` magnitudes of the arrays' grid, untrained.

    Every matrix (one per group) has levels of its own; a matrix of zeros stays. See `best_levels`.

    Raises:
        ConfigError: as `best_levels`.
        ModelError: as `inference_copy`.
    """
    copied = inference_copy(model)
    for module in copied.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        placed = [
            on_levels(matrix, config, best_levels(matrix, config, count)) if bool(matrix.any()) else matrix
            for matrix in matrix_of(module)
        ]
        module.weight.data.copy_(Convolution.of(module).kernels(torch.stack(placed)))
    return copied


def steps_by_error(model: nn.Module, config: CrossbarConfig) -> dict[str, Step]:
    """For every convolution of a model the step with the smaller expected error.

    A power of two must err less by a twentieth, since it costs a column.

    Raises:
        ConfigError: as `array_integers`.
    """
    found: dict[str, Step] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        matrix = matrix_of(module)
        if config.scale_per == "column" or not bool(matrix.any()):
            found[name] = "largest"
            continue
        errors = {s: level_fit(matrix, config, s).expected_error for s in ("largest", "power_of_two")}
        found[name] = "power_of_two" if errors["power_of_two"] < _WORTH * errors["largest"] else "largest"
    return found


def on_crossbars(
    model: nn.Module, config: CrossbarConfig, generator: Generator, steps: Mapping[str, Step] | None = None
) -> nn.Module:
    """`analogize` with the steps that are asked for: a copy of `model`, its convolutions on arrays.

    A matrix whose step is a power of two gets one more column (`with_reference_columns`), in a tile of its own as far
    as the matrix fits one tile, so that it does not widen the range of the others' ADC.

    Args:
        model: left as it is; quantized weights are written as they read.
        config: of every crossbar.
        generator: of the programming draws.
        steps: by name of a convolution; left out, the largest weight's.

    Raises:
        ConfigError, DeviceError: as `analogize`.
        ModelError: `steps` names a module that is no convolution of the model.
    """
    chosen = [name for name, step in (steps or {}).items() if step == "power_of_two"]
    wide = with_reference_columns(model, config, chosen)
    layers = {}
    for name in chosen:
        column = wide.get_submodule(name)
        assert isinstance(column, ReferenceColumn)
        layers[f"{name}.conv"] = config.model_copy(update={"cols": min(config.cols, column.outputs)})
    return analogize(wide, config, generator, layers=layers)


class ReferenceColumn(nn.Module):
    """A convolution whose matrices have one more column each, which holds a single weight and is not read."""

    def __init__(self, conv: nn.Conv2d, config: CrossbarConfig) -> None:
        super().__init__()
        shape, matrix = Convolution.of(conv), matrix_of(conv)
        groups, _, outputs = matrix.shape
        self.outputs = outputs
        wide = torch.cat([matrix, _reference(matrix, config)], dim=2)
        self.conv = nn.Conv2d(
            conv.in_channels,
            groups * (outputs + 1),
            shape.kernel_size,
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
        self.conv.weight = nn.Parameter(shape.kernels(wide).contiguous(), requires_grad=False)
        if conv.bias is not None:
            bias = nn.functional.pad(conv.bias.detach().reshape(groups, outputs), (0, 1)).flatten()
            self.conv.bias = nn.Parameter(bias, requires_grad=False)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution: [batch, in_channels, h, w] -> [batch, out_channels, h, w]."""
        parts = torch.unflatten(self.conv(x), 1, (-1, self.outputs + 1))
        return parts[:, :, :-1].flatten(1, 2)


def with_reference_columns(model: nn.Module, config: CrossbarConfig, names: Sequence[str]) -> nn.Module:
    """A copy of `model` whose named convolutions are `ReferenceColumn`s; it computes the same.

    Raises:
        ModelError: a name that is no convolution of the model.
        ConfigError: a step per column.
    """
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for name in names:
        if name not in convolutions:
            allowed = ", ".join(sorted(convolutions)) or "none"
            raise ModelError(f"'{name}' is no convolution of the model; allowed: {allowed}")

    def widen(name: str, module: nn.Module) -> nn.Module | None:
        return ReferenceColumn(module, config) if isinstance(module, nn.Conv2d) and name in names else None

    return replace_modules(copy.deepcopy(model), widen)


def _distinct(values: Tensor) -> int:
    return len(torch.unique(values))


def matrix_of(conv: nn.Conv2d) -> Tensor:
    """The weights of a convolution as they read, as its arrays hold them: [groups, in, out]."""
    return Convolution.of(conv).matrix(conv.weight.detach())


def _reference(matrix: Tensor, config: CrossbarConfig) -> Tensor:
    """A column [groups, in, 1] whose first weight makes the step a power of two; zeros for a matrix of zeros."""
    if config.scale_per == "column":
        raise ConfigError("a step that is a power of two needs scale_per: device")
    top = config.mapping().top
    largest = matrix.detach().double().abs().amax(dim=(1, 2))
    column = matrix.new_zeros(*matrix.shape[:2], 1)
    # frexp is exact where log2 is not: largest / top = m 2^e with 0.5 <= m < 1, and m = 0.5 is a power itself.
    mantissa, exponent = torch.frexp(largest / top)
    power = torch.ldexp(torch.ones_like(largest), exponent - (mantissa == 0.5).int())
    column[:, 0, 0] = torch.where(largest > 0, top * power, 0.0).to(matrix.dtype)
    return column


def _symmetric_table(config: CrossbarConfig) -> CellTable:
    if config.scheme != "differential" or config.scale_per != "device":
        raise ConfigError(
            f"levels are chosen for scheme: differential with scale_per: device "
            f"(given: {config.scheme}, {config.scale_per})"
        )
    return cell_table(config)


def _ratios(matrix: Tensor, top: int) -> Tensor:
    """Magnitudes in steps of max|w| / top, float64."""
    magnitude = matrix.detach().abs().double()
    largest = float(magnitude.amax())
    if largest == 0:
        raise ConfigError("a matrix of zeros has no levels to choose")
    return magnitude / largest * top


def _bin_costs(
    ratio: NDArray[np.float64], mean: NDArray[np.float64], variance: NDArray[np.float64], top: int
) -> NDArray[np.float64]:
    """Expected squared error of each group of equal (or binned) magnitudes on each level, [groups, levels].

    The last group holds the largest weight, which no level but top may take.
    """
    values, place = np.unique(ratio, return_inverse=True)
    if len(values) > _BINS:
        place = np.minimum((ratio / top * _BINS).astype(np.int64), _BINS - 1)
        place = np.unique(place, return_inverse=True)[1]
    number = np.bincount(place)[:, None]
    first, second = np.bincount(place, ratio)[:, None], np.bincount(place, ratio**2)[:, None]
    cost = second - 2 * first * mean + number * (mean**2 + variance)
    cost[-1, :-1] = np.inf
    return np.asarray(cost)


def _running_least(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Least value up to each column, and the column it stands in."""
    least = np.minimum.accumulate(values, axis=1)
    new = np.ones(values.shape, dtype=bool)
    new[:, 1:] = values[:, 1:] < least[:, :-1]
    columns = np.where(new, np.arange(values.shape[1]), 0)
    return least, np.maximum.accumulate(columns, axis=1).astype(np.int32)


def _traced(least: NDArray[np.float64], came: NDArray[np.int32], top: int, count: int) -> tuple[int, ...]:
    """The levels on the cheapest way to top; where fewer serve as well, the lowest unused ones fill up."""
    used = int(np.argmin(least[:, top]))
    level, levels = top, [top]
    for row in range(len(came) - 1, 0, -1):
        if came[row, used, level] >= 0:
            level, used = int(came[row, used, level]), used - 1
            levels.append(level)
    spare = [q for q in range(top) if q not in levels]
    return tuple(sorted(levels + spare[: count - len(levels)]))
