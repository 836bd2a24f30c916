"""The resistance of a crossbar's wires, as one effective conductance matrix per array.

With linear cells the array is a linear map from driver voltages to sensed currents, so the wires can be folded
into the cells once, after programming: `currents = voltages @ effective_conductance(conductance, wires)`.

The exact method is nested dissection. A block of cells is described by its response at the ends of its lines:
inputs are the voltage at a line's near end and the current drawn from its far end, outputs the current entering
the near end and the voltage at the far end (near: towards the driver or the sense amplifier). The response is a
symmetric matrix (reciprocity). Joining two blocks along their common lines eliminates the lines' inner ends with
a few matrix products, so an n x n array costs O(n^3) altogether. What is stored is the deviation from ideal
wires, so a small resistance cancels nothing: float32 keeps its accuracy and zero resistance needs no limit.
"""

import math
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.errors import ConfigError

LUMP_LINES = 8  # lines per side that the fast approximation lumps into one
LEAF_LINES = 4  # cells per side of a block that is solved directly; larger blocks are joined from halves
# Cells solved at once: on a CPU what keeps the caches warm and the calls few, elsewhere a few GiB.
CHUNK_CELLS = {"exact": {"cpu": 1 << 14, "cuda": 1 << 22}, "fast": {"cpu": 1 << 18, "cuda": 1 << 25}}


class Wires(Settings):
    """Parasitic resistances of an array in ohm, and which ends of its lines are connected.

    A driver feeds a word line through `r_driver_ohm` and one segment, a sense amplifier (virtual ground) takes
    a bit line's current through one segment and `r_sense_ohm`; neighbouring cells of a line are one segment
    apart. With `both`, each end has its own driver or amplifier, and an output is the sum of its two currents.
    """

    r_word_ohm: float = Field(ge=0, allow_inf_nan=False, description="one segment of a word line")
    r_bit_ohm: float = Field(ge=0, allow_inf_nan=False, description="one segment of a bit line")
    r_driver_ohm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    r_sense_ohm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    drive: Literal["left", "right", "both"] = "left"
    sense: Literal["bottom", "top", "both"] = "bottom"
    method: Literal["exact", "fast"] = "exact"

    @property
    def ideal(self) -> bool:
        """Whether no wire, driver or amplifier has any resistance."""
        return not (self.r_word_ohm or self.r_bit_ohm or self.r_driver_ohm or self.r_sense_ohm)


def effective_conductance(conductance: Tensor, wires: Wires) -> Tensor:
    """The conductances that an array with ideal wires would need to give the same currents.

    Args:
        conductance: [..., rows, cols], siemens, float32 or float64, zero or positive.
        wires: the resistances and the method.

    Returns:
        [..., rows, cols], siemens, same dtype: `currents = voltages @ effective`. Differentiable with respect
        to `conductance` (once).

    Raises:
        ConfigError: a conductance that is negative or not finite, another dtype, or fewer than two dimensions.
    """
    check_conductance(conductance)
    if wires.ideal or conductance.numel() == 0:
        return conductance.clone()
    rows, cols = conductance.shape[-2:]
    flat = conductance.reshape(-1, rows, cols)
    return _Effective.apply(flat, wires).reshape(conductance.shape)  # type: ignore[no-any-return, no-untyped-call]


def check_conductance(conductance: Tensor) -> None:
    """Refuse conductances that no array of cells can have.

    Raises:
        ConfigError: as `effective_conductance`.
    """
    if conductance.dim() < 2:
        raise ConfigError(f"conductance: expected [..., rows, cols], found {conductance.dim()} dimension(s)")
    if conductance.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"conductance: expected float32 or float64, found {conductance.dtype}")
    if not bool(torch.isfinite(conductance).all()):
        raise ConfigError("conductance: every value must be finite (siemens), found NaN or infinity")
    if bool((conductance < 0).any()):
        raise ConfigError(f"conductance: must be at least 0 siemens, found {conductance.min().item():.3g}")


class _Effective(torch.autograd.Function):
    """Runs the method chunk by chunk; the backward pass repeats a chunk, so memory does not grow with tiles."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, flat: Tensor, wires: Wires) -> Tensor:
        ctx.save_for_backward(flat)
        ctx.wires = wires  # type: ignore[attr-defined]
        return torch.cat([_solve(part, wires) for part in torch.split(flat, _chunk(flat, wires))])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors  # type: ignore[attr-defined]
        wires: Wires = ctx.wires  # type: ignore[attr-defined]
        size = _chunk(flat, wires)
        parts: list[Tensor] = []
        for part, outer in zip(torch.split(flat, size), torch.split(gradient, size), strict=True):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                parts.extend(torch.autograd.grad(_solve(leaf, wires), leaf, outer))
        return torch.cat(parts), None


def _chunk(flat: Tensor, wires: Wires) -> int:
    """How many tiles of `flat` [tiles, rows, cols] to solve at once."""
    limits = CHUNK_CELLS[wires.method]
    return max(1, limits.get(flat.device.type, limits["cuda"]) // flat[0].numel())


def _solve(tiles: Tensor, wires: Wires) -> Tensor:
    """Effective conductance of [tiles, rows, cols], by the method that `wires` names."""
    method = _exact if wires.method == "exact" else _fast
    return _flip(method(_flip(tiles, wires), wires), wires)


def _flip(tiles: Tensor, wires: Wires) -> Tensor:
    """Turn the tiles so that row 0 is nearest to the sensed end and column 0 to the driven end, or back."""
    turned = [-1] if wires.drive == "right" else []
    if wires.sense != "top":
        turned.append(-2)
    return tiles.flip(turned)


# The exact method --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ends:
    """Where the near and the far ends of a block's word lines, or of its bit lines, stand in its response: runs."""

    near: list[slice]
    far: list[slice]


@dataclass(frozen=True)
class _Block:
    """The response of a block of cells.

    `response` [batch, ports, ports] maps (near voltages, far currents drawn) to (near currents entering, far
    voltages), less the identities that ideal wires give: near current = far current, far = near voltage.
    """

    response: Tensor
    word: _Ends
    bit: _Ends


def _exact(tiles: Tensor, wires: Wires) -> Tensor:
    """Effective conductance of oriented tiles [tiles, rows, cols] by nested dissection."""
    rows, cols = tiles.shape[-2:]
    far_word = wires.drive == "both" and wires.r_word_ohm + wires.r_driver_ohm > 0
    far_bit = wires.sense == "both" and wires.r_bit_ohm + wires.r_sense_ohm > 0
    along_words = cols >= rows
    if max(rows, cols) <= LEAF_LINES:
        block = _leaf(tiles, wires)
        block = _drop(block, word=not far_word, bit=not far_bit)
    else:
        near, far = _halves(tiles, along_words, wires)
        # Ends that hang open at the array's edge draw no current and are not asked for.
        near = _drop(near, word=not along_words and not far_word, bit=along_words and not far_bit)
        far = _drop(far, word=not far_word, bit=not far_bit)
        block = _join(near, far, along_words)
    return _terminate(block, wires)


def _drop(block: _Block, word: bool, bit: bool) -> _Block:
    """The block with the far ends of its word lines, its bit lines, or both left open."""
    return replace(
        block,
        word=replace(block.word, far=[]) if word else block.word,
        bit=replace(block.bit, far=[]) if bit else block.bit,
    )


def _network(cells: Tensor, wires: Wires) -> _Block:
    """The block of cells [batch, rows, cols], halved along its longer side until it is small."""
    rows, cols = cells.shape[-2:]
    if max(rows, cols) <= LEAF_LINES:
        return _leaf(cells, wires)
    along_words = cols >= rows
    near, far = _halves(cells, along_words, wires)
    return _join(near, far, along_words)


def _halves(cells: Tensor, along_words: bool, wires: Wires) -> tuple[_Block, _Block]:
    """The blocks of the nearer and the farther half of cells [batch, rows, cols]."""
    side = -1 if along_words else -2
    size = cells.shape[side]
    if size % 2:
        near, far = torch.split(cells, [size // 2 + 1, size // 2], side)
        return _network(near, wires), _network(far, wires)
    # Equal halves become a batch: the small blocks of a tile are all solved in the same few calls.
    pair = _network(torch.cat(torch.split(cells, size // 2, side)), wires)
    near_response, far_response = pair.response.chunk(2)
    return replace(pair, response=near_response), replace(pair, response=far_response)


def _leaf(cells: Tensor, wires: Wires) -> _Block:
    """A small block of cells [batch, rows, cols], solved directly.

    With cell currents I, cell drops V = B e - K I for port inputs e, where K holds the wire resistance that two
    cells share; I = G V then gives the response B' (1 + G K)^-1 G B, plus the bare wires at the far ends.
    """
    rows, cols = cells.shape[-2:]
    step_word = wires.r_word_ohm * torch.arange(1, cols + 1).to(cells)
    step_bit = wires.r_bit_ohm * torch.arange(1, rows + 1).to(cells)
    eye_rows, eye_cols = torch.eye(rows).to(cells), torch.eye(cols).to(cells)
    shared = torch.kron(eye_rows, torch.minimum(step_word[:, None], step_word))
    shared = shared + torch.kron(torch.minimum(step_bit[:, None], step_bit), eye_cols)
    ports = torch.cat(
        [
            torch.kron(eye_rows, torch.ones_like(step_word)[:, None]),
            torch.kron(eye_rows, -step_word[:, None]),
            torch.kron(-torch.ones_like(step_bit)[:, None], eye_cols),
            torch.kron(step_bit[:, None], eye_cols),
        ],
        dim=1,
    )
    bare = torch.zeros(2 * (rows + cols)).to(cells)
    bare[rows : 2 * rows] = -step_word[-1]
    bare[2 * rows + cols :] = -step_bit[-1]
    flat = cells.reshape(-1, rows * cols)
    loop = torch.eye(rows * cols).to(cells) + flat[..., :, None] * shared
    cell_currents = torch.linalg.solve(loop, flat[..., :, None] * ports)
    response = ports.mT @ cell_currents + torch.diag(bare)
    edges = pairwise(accumulate((rows, rows, cols, cols), initial=0))
    near_word, far_word, near_bit, far_bit = ([slice(a, b)] for a, b in edges)
    return _Block(response, _Ends(near_word, far_word), _Ends(near_bit, far_bit))


def _join(near: _Block, far: _Block, along_words: bool) -> _Block:
    """Connect the far ends of one block's lines to the near ends of the other's.

    With N and F the two responses, f the near block's far ends, n the far block's near ends and e all other
    inputs, the inner voltages are x = N_ff p + N_fe e and the inner currents p = F_nn x + F_ne e, hence
    (1 - N_ff F_nn) x = N_fe e + N_ff F_ne e. Here -N_ff is a source resistance and F_nn a load conductance.
    """
    line_n, cross_n = (near.word, near.bit) if along_words else (near.bit, near.word)
    line_f, cross_f = (far.word, far.bit) if along_words else (far.bit, far.word)
    here = _ordered(near.response, line_n.far + line_n.near + cross_n.near + cross_n.far)
    there = _ordered(far.response, line_f.near + line_f.far + cross_f.near + cross_f.far)
    lines, split = _count(line_n.far), here.shape[-1] - _count(line_n.far)
    near_ends, far_ends = slice(0, lines), slice(split, split + _count(line_f.far))
    source, source_out = here[:, :lines, :lines], here[:, :lines, lines:]
    load, load_out = there[:, :lines, :lines], there[:, :lines, lines:]

    mixed = source @ load
    solved = torch.linalg.solve(torch.eye(lines).to(mixed) - mixed, torch.cat([mixed, source], dim=-1))
    excess, inner = solved[..., :lines], solved[..., lines:]  # (1 - N_ff F_nn)^-1 less 1; the same times N_ff

    # Each "+=" that names the ends of a line adds what the identity of an ideal line contributes.
    volts = torch.cat([source_out + excess @ source_out, inner @ load_out], dim=-1)
    volts[..., near_ends] += excess
    volts[..., far_ends] += inner[..., : _count(line_f.far)]
    amperes = load @ volts
    amperes[..., split:] += load_out
    amperes[..., near_ends] += load
    top = source_out.mT @ amperes
    top[..., :split] += here[:, lines:, lines:]
    top[:, near_ends] += amperes
    top[..., far_ends] += source_out.mT[..., : _count(line_f.far)]
    bottom = load_out.mT @ volts
    bottom[..., split:] += there[:, lines:, lines:]
    bottom[:, : _count(line_f.far)] += volts[:, : _count(line_f.far)]
    bottom[..., near_ends] += load_out.mT
    line, cross = _joined_ends(line_n, cross_n, line_f, cross_f)
    response = torch.cat([top, bottom], dim=-2)
    return _Block(response, line, cross) if along_words else _Block(response, cross, line)


def _joined_ends(line_n: _Ends, cross_n: _Ends, line_f: _Ends, cross_f: _Ends) -> tuple[_Ends, _Ends]:
    """Where `_join` leaves the ends: the near block's first, then the far block's; crossing lines side by side."""
    parts = (line_n.near, cross_n.near, cross_n.far, line_f.far, cross_f.near, cross_f.far)
    borders = accumulate(map(_count, parts), initial=0)
    runs = [[slice(a, b)] if b > a else [] for a, b in pairwise(borders)]
    return _Ends(runs[0], runs[3]), _Ends(runs[1] + runs[4], runs[2] + runs[5])


def _count(runs: list[slice]) -> int:
    """How many ports runs of them hold."""
    return sum(run.stop - run.start for run in runs)


def _ordered(response: Tensor, runs: list[slice]) -> Tensor:
    """Rows and columns of a response [batch, ports, ports], put in the order of `runs`."""
    rows = torch.cat([response[:, run] for run in runs], dim=-2)
    return torch.cat([rows[:, :, run] for run in runs], dim=-1)


def _terminate(block: _Block, wires: Wires) -> Tensor:
    """Connect drivers and sense amplifiers: the sensed currents per volt on each driver, [..., rows, cols].

    A near end at voltage u takes u = x - R_driver i. A driven far end joins its driver through one segment and
    R_driver; less the near end's equation, so that x, much larger than the drop, cancels exactly. Bit lines
    likewise with x = 0. All current of a bit line's cells ends in its amplifiers.
    """
    word, bit = block.word, block.bit
    response = _ordered(block.response, word.near + word.far + bit.near + bit.far)
    ports, rows, cols = response.shape[-1], _count(word.near), _count(bit.near)
    inputs = torch.eye(ports).to(response)[:, :rows]
    bits = slice(rows + _count(word.far), rows + _count(word.far) + cols)
    if wires.r_driver_ohm or wires.r_sense_ohm or word.far or bit.far:
        system = torch.eye(ports).to(response).expand_as(response).clone()
        _attach(
            system, response, 0, _count(word.near), _count(word.far), (wires.r_driver_ohm, wires.r_word_ohm)
        )
        _attach(system, response, bits.start, cols, _count(bit.far), (wires.r_sense_ohm, wires.r_bit_ohm))
        state = torch.linalg.solve(system, inputs.expand(*response.shape[:-2], -1, -1))
        currents: Tensor = response[..., bits, :] @ state
        return -currents.mT
    return -response[..., bits, :rows].mT


def _attach(
    system: Tensor, response: Tensor, start: int, lines: int, far: int, ohms: tuple[float, float]
) -> None:
    """Write the end equations of one kind of line into `system` [..., ports, ports], of unit diagonal so far.

    `ohms` are the resistance of a driver or amplifier and of a segment.
    """
    r_end, r_segment = ohms
    near = slice(start, start + lines)
    system[..., near, :] += r_end * response[..., near, :]
    if far:
        ends = slice(start + lines, start + 2 * lines)
        identity = torch.eye(lines).to(system)
        system[..., near, ends] += r_end * identity
        # Scaled by the loop's resistance to make the unknown current's coefficient of order one.
        loop = 2 * r_end + r_segment
        system[..., ends, :] = (r_end * response[..., near, :] - response[..., ends, :]) / loop
        system[..., ends, ends] += identity


# The fast approximation --------------------------------------------------------------------------------------


def _fast(tiles: Tensor, wires: Wires) -> Tensor:
    """Effective conductance of oriented tiles [tiles, rows, cols], approximately: direct paths and the rest.

    Seen as paths from driver i to amplifier j, the current that passes from word to bit lines only once is exact
    and cheap: each word line alone with its bit lines grounded, times each bit line alone with its word lines
    grounded. What wanders over several cells is smooth, so it is taken from a coarse array of lumps of
    `LUMP_LINES` lines (solved exactly), less the coarse array's own direct paths, and spread over a lump's rows
    and columns by how much of their direct current is lost there.

    Error against the exact method, 128 x 128, both wires alike, conductances uniform in 1..100 uS, sensed at one
    end, as rms over the matrix (in brackets, of the outputs of uniform inputs): 0.16 % (0.10 %) at 1 ohm and
    1.0 % (0.7 %) at 5 ohm, where ignoring the wires is 57 % and 246 % off. It takes about a fourteenth of the
    exact method's time on a CPU, batched.
    """
    rows, cols = tiles.shape[-2:]
    word = _line(wires.r_driver_ohm, wires.r_word_ohm, wires.drive == "both")
    bit = _line(wires.r_sense_ohm, wires.r_bit_ohm, wires.sense == "both")
    gather_rows, spread_rows = _lumps(rows, tiles)
    gather_cols, spread_cols = _lumps(cols, tiles)
    per_row, per_col = rows / gather_rows.shape[0], cols / gather_cols.shape[0]

    to_cells, from_cells = _attenuation(tiles, word), _attenuation(tiles.mT, bit).mT
    direct = to_cells * tiles * from_cells
    # The small term keeps the shares defined where a wire is ideal and nothing is lost.
    row_loss = (to_cells * tiles * (1.001 - from_cells)).sum(-1, keepdim=True)
    col_loss = (from_cells * tiles * (1.001 - to_cells)).sum(-2, keepdim=True)
    row_loss = row_loss / row_loss.mean(-2, keepdim=True).clamp_min(1e-30)
    col_loss = col_loss / col_loss.mean(-1, keepdim=True).clamp_min(1e-30)

    coarse = gather_rows @ tiles @ gather_cols.mT
    coarse_word, coarse_bit = word.lumped(per_col, per_row), bit.lumped(per_row, per_col)
    once = _attenuation(coarse, coarse_word) * coarse * _attenuation(coarse.mT, coarse_bit).mT
    wandering = _exact(coarse, _coarse_wires(wires, coarse_word, coarse_bit)) - once
    shares = (gather_rows @ row_loss) * (col_loss @ gather_cols.mT)
    density = wandering / shares.clamp_min(1e-30)
    return direct + (spread_rows @ density @ spread_cols.mT) * row_loss * col_loss


@dataclass(frozen=True)
class _Line:
    """Resistances of one kind of line in ohm: source to first cell, cell to cell, and whether both ends are fed."""

    end: float
    segment: float
    both: bool

    def lumped(self, along: float, across: float) -> "_Line":
        """The line of a coarse array whose lumps hold `along` cells of each of `across` parallel lines."""
        end = self.end + self.segment * (along - 1) / 2  # to a lump's middle
        return _Line(end / across, self.segment * along / across, self.both)


def _line(r_end: float, r_segment: float, both: bool) -> _Line:
    """A line as `Wires` describes it; one without resistance between its cells sees its two ends in parallel."""
    if both and not r_segment:
        return _Line(r_end / 2, 0.0, False)
    return _Line(r_end + r_segment, r_segment, both)


def _coarse_wires(wires: Wires, word: _Line, bit: _Line) -> Wires:
    """Lines as `Wires`. Unchecked: from a lump's middle to its end is less than a segment, so the driver's or
    amplifier's resistance, what is beyond one segment, comes out negative.
    """
    return wires.model_copy(
        update={
            "r_word_ohm": word.segment,
            "r_bit_ohm": bit.segment,
            "r_driver_ohm": word.end - word.segment,
            "r_sense_ohm": bit.end - bit.segment,
            "drive": "both" if word.both else "left",
            "sense": "both" if bit.both else "bottom",
        }
    )


def _lumps(lines: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices that sum lines into lumps, [lumps, lines], and interpolate from lumps to lines, [lines, lumps].

    Lumps are equally wide; a line on the border of two is shared out.
    """
    count = max(min(lines, LUMP_LINES), math.ceil(lines / LUMP_LINES))
    width = lines / count
    edges = torch.arange(lines + 1).to(like) / width
    lump = torch.arange(count).to(like)[:, None]
    gather = ((edges[1:] - lump).clamp(0, 1) - (edges[:-1] - lump).clamp(0, 1)) * width
    middle = ((edges[1:] + edges[:-1]) / 2 - 0.5).clamp(0, count - 1)[:, None]
    spread = (1 - (middle - lump.mT).abs()).clamp_min(0)
    return gather, spread


def _attenuation(loads: Tensor, line: _Line) -> Tensor:
    """Voltages along lines [..., lines, cells] fed with one volt, each cell's conductance leading to ground."""
    cells = loads.movedim(-1, 0).contiguous()
    if not line.both:
        return _ladder(cells, line, torch.zeros_like(cells[0])).movedim(0, -1)
    grounded = torch.full_like(cells[0], 1 / line.end)
    return (_ladder(cells, line, grounded) + _ladder(cells.flip(0), line, grounded).flip(0)).movedim(0, -1)


def _ladder(cells: Tensor, line: _Line, beyond: Tensor) -> Tensor:
    """Node voltages [cells, ...] of ladders fed with one volt at cell 0; `beyond` loads the last cell, siemens."""
    ratios = []
    load = cells[-1] + beyond
    for here in cells[:-1].flip(0):
        ratios.append(1 / (1 + line.segment * load))
        load = here + load * ratios[-1]
    ratios.append(1 / (1 + line.end * load))
    return torch.stack(ratios[::-1]).cumprod(0)
