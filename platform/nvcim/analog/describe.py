"""What of a model lies on crossbars, what stays digital, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from nvcim.analog.attention import AnalogProducts, DigitalProducts
from nvcim.analog.convert import convertible
from nvcim.analog.layers import AnalogLayer
from nvcim.crossbar import Crossbar

_NORMS = _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.LocalResponseNorm
_OTHER_PRODUCTS = (
    nn.Conv1d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Bilinear
)


@dataclass(frozen=True)
class LayerRow:
    """One line of the table.

    Attributes:
        name: as in `named_modules`; empty for the model itself.
        kind: class.
        shape: of the crossbar, [*groups, in, out]; () for a digital module.
        arrays: physical arrays of rows x cols cells.
        cells: in use, of all arrays.
        parameters: of a digital module.
        why: why it stays digital; for an analog one its device.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    arrays: int
    cells: int
    parameters: int
    why: str


def describe(model: nn.Module) -> list[LayerRow]:
    """A row per crossbar layer, and per other module that has parameters or computes attention's products."""
    rows: list[LayerRow] = []
    inside: list[str] = []  # parts of analog layers are theirs
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") or outer == "" for outer in inside):
            continue
        if isinstance(module, AnalogLayer):
            inside.append(name)
            rows.append(_analog(name, module))
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside.append(name)
        own = sum(p.numel() for p in module.parameters(recurse=isinstance(module, nn.MultiheadAttention)))
        why = _why_digital(module, own)
        if why is not None:
            rows.append(LayerRow(name, type(module).__name__, (), 0, 0, own, why))
    return rows


def as_table(rows: Sequence[LayerRow]) -> str:
    """Rows as aligned text, with a line of totals."""
    head = ("layer", "kind", "shape", "arrays", "cells", "digital parameters", "device, or why digital")
    body = [
        (
            *(row.name or "(model)", row.kind, "x".join(map(str, row.shape)) or "-"),
            *(f"{row.arrays:,}", f"{row.cells:,}", f"{row.parameters:,}", row.why),
        )
        for row in rows
    ]
    sums = (sum(getattr(row, field) for row in rows) for field in ("arrays", "cells", "parameters"))
    lines = [head, *body, ("total", "", "", *(f"{total:,}" for total in sums), "")]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def arrays_of(crossbar: Crossbar) -> int:
    """Physical arrays of a crossbar: row tiles x column tiles x sides and slices, for each of its devices."""
    config, (inputs, outputs) = crossbar.config, crossbar.shape[-2:]
    tiles = ceil(inputs / config.rows) * ceil(outputs / config.cols)
    return prod(crossbar.device_shape) * tiles * config.mapping().cells


def _analog(name: str, layer: AnalogLayer) -> LayerRow:
    crossbar = layer.crossbar
    cells = prod(crossbar.shape) * crossbar.config.mapping().cells
    kind, device = type(layer).__name__, crossbar.config.device
    return LayerRow(name, kind, tuple(crossbar.shape), arrays_of(crossbar), cells, 0, device)


def _why_digital(module: nn.Module, parameters: int) -> str | None:
    """The reason, or None for a module that computes nothing with parameters of its own."""
    reasons = (
        (AnalogProducts, "arrays written at every call: none are kept"),
        (DigitalProducts, "both operands change; with_analog_attention puts them on crossbars"),
        (nn.MultiheadAttention, "skipped, or adds keys of its own"),
        (nn.Embedding | nn.EmbeddingBag, "a look-up, not a product"),
        (_NORMS, "scales features; not a matrix product"),
        (_OTHER_PRODUCTS, "no crossbar form of this layer"),
    )
    found = next((why for kind, why in reasons if isinstance(module, kind)), None)
    if found is not None:
        return found
    if parameters == 0:
        return None
    if convertible(module):
        return "skipped"
    if type(module).__name__.endswith("Norm"):
        return "scales features; not a matrix product"
    return "parameters that its own forward uses"
