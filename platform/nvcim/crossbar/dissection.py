"""The exact effective conductance of arrays with wires.

The exact method is nested dissection. A block of cells is described by its response at the ends of its lines:
inputs are the voltage at a line's near end and the current drawn from its far end, outputs the current entering
the near end and the voltage at the far end (near: towards the driver or the sense amplifier). The response is a
symmetric matrix (reciprocity). Joining two blocks along their common lines eliminates the lines' inner ends with
a few matrix products, so an n x n array costs O(n^3) altogether. What is stored is the deviation from ideal
wires, so a small resistance cancels nothing: float32 keeps its accuracy and zero resistance needs no limit.
"""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from nvcim.crossbar.wires import Wires

LEAF_LINES = 4  # cells per side of a block that is solved directly; larger blocks are joined from halves


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


def exact_effective(tiles: Tensor, wires: Wires) -> Tensor:
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
