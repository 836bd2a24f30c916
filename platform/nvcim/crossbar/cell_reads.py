"""The slow reference of read noise: every cell draws its own noise for every vector, then the array is solved.

`reading` draws one Gaussian per output instead, which is exact for independent Gaussian cells behind ideal wires. This
mode covers what that does not: a noisy conductance cannot fall below zero siemens, and wires see the noisy cells.
"""

from math import inf

import torch
from torch import Tensor

from nvcim.crossbar import streams
from nvcim.crossbar.collapse import aged, background, cell_variance, collapse
from nvcim.crossbar.counter_rng import normals
from nvcim.crossbar.programming import Writing, write_cells
from nvcim.crossbar.reading import Counts, ReadPlan, read_array
from nvcim.crossbar.settings import CrossbarConfig


def read_every_cell(
    x: Tensor,
    plan: ReadPlan,
    writing: Writing,
    config: CrossbarConfig,
    keys: Tensor,
    first: Tensor,
    elapsed_s: float,
    counts: Counts,
) -> Tensor:
    """Read an array once per vector, each read with cells of its own.

    Args:
        x: [devices or 1, vectors, in], float32.
        plan: of the quiet array, for its converters.
        writing, config, elapsed_s: what the cells are.
        keys, first: [devices], int64: streams of the read noise, and the number of the first read.
        counts: added to.

    Returns:
        [devices, vectors, out].
    """
    writing = writing.in_units(plan.unit)
    cells, mapping = write_cells(writing, config), config.mapping()
    conductance = aged(cells, writing, config, elapsed_s)
    variance = cell_variance(conductance, cells, config, elapsed_s)
    assert variance is not None  # the mode is for noisy reads
    cell = config.cell()
    # Where the range is unknown, nobody knows where zero siemens lies below the lowest level.
    known = cell.g_min is not None and cell.g_max is not None
    spread, lowest = variance.sqrt(), -background(cell) if known else -inf
    outputs = []
    for vector in range(x.shape[1]):
        noisy = conductance + spread * _draws(keys, first + vector, conductance.shape)
        weight = collapse(noisy.clamp(min=lowest), None, writing, config, mapping).weight
        quiet = ReadPlan(weight, None, None, plan.adc, plan.alphas, plan.pedestal, unit=plan.unit)
        outputs.append(read_array(x[:, vector : vector + 1], quiet, config, keys, first, counts))
    return torch.cat(outputs, dim=1)


def _draws(keys: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    planes = [
        normals(keys, streams.CELL_READ + plane, index, shape[2] * shape[3]) for plane in range(shape[1])
    ]
    return torch.cat(planes, dim=1).reshape(shape)
