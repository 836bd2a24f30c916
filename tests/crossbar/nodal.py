"""A crossbar's resistor network solved node by node with scipy's sparse LU: the reference of the wire tests.

It shares no formula with the code under test: Kirchhoff's current law is stamped resistor by resistor.
"""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl
import torch

from nvcim.crossbar.wires import Wires

Resistor = tuple[int, int, float]


class Nodes:
    """Numbers the nodes; nodes joined by a zero resistance become one."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: int, b: int) -> None:
        # The smaller number survives, so a driven or grounded node (numbered first) keeps its identity.
        a, b = sorted((self.find(a), self.find(b)))
        self.parent[b] = a


def wire_resistors(rows: int, cols: int, wires: Wires) -> list[Resistor]:
    """Every wire as (node, node, ohm). Node 0 is ground, 1..rows the drivers, then word and bit nodes."""

    def word(i: int, j: int) -> int:
        return 1 + rows + i * cols + j

    def bit(i: int, j: int) -> int:
        return 1 + rows + rows * cols + i * cols + j

    found: list[Resistor] = []
    for i in range(rows):
        if wires.drive in ("left", "both"):
            found.append((1 + i, word(i, 0), wires.r_driver_ohm + wires.r_word_ohm))
        if wires.drive in ("right", "both"):
            found.append((1 + i, word(i, cols - 1), wires.r_driver_ohm + wires.r_word_ohm))
        found += [(word(i, j), word(i, j + 1), wires.r_word_ohm) for j in range(cols - 1)]
    for j in range(cols):
        if wires.sense in ("bottom", "both"):
            found.append((bit(rows - 1, j), 0, wires.r_sense_ohm + wires.r_bit_ohm))
        if wires.sense in ("top", "both"):
            found.append((bit(0, j), 0, wires.r_sense_ohm + wires.r_bit_ohm))
        found += [(bit(i, j), bit(i + 1, j), wires.r_bit_ohm) for i in range(rows - 1)]
    return found


def nodal_effective(conductance: torch.Tensor, wires: Wires) -> torch.Tensor:
    """The effective conductance [rows, cols] in siemens, float64, by sparse LU of the nodal equations."""
    cells = conductance.double().numpy()
    rows, cols = cells.shape
    count = 1 + rows + 2 * rows * cols
    nodes = Nodes(count)
    resistors = wire_resistors(rows, cols, wires)
    for a, b, ohm in resistors:
        if ohm == 0:
            nodes.join(a, b)
    links = [(nodes.find(a), nodes.find(b), 1 / ohm) for a, b, ohm in resistors if ohm > 0]
    for i in range(rows):
        for j in range(cols):
            at = i * cols + j
            links.append((nodes.find(1 + rows + at), nodes.find(1 + rows + rows * cols + at), cells[i, j]))
    first, second, value = (np.array(part) for part in zip(*links, strict=True))
    kirchhoff = sp.coo_matrix(
        (
            np.concatenate([value, value, -value, -value]),
            (
                np.concatenate([first, second, first, second]),
                np.concatenate([first, second, second, first]),
            ),
        ),
        shape=(count, count),
    ).tocsc()
    alive = sorted({nodes.find(n) for n in range(1 + rows, count)} - set(range(1 + rows)))
    drivers = list(range(1, 1 + rows))
    potential = np.zeros((count, rows))  # column i: driver i at one volt, the others at zero
    potential[drivers, np.arange(rows)] = 1.0
    if alive:
        unknown = spl.splu(kirchhoff[alive][:, alive])
        potential[alive] = unknown.solve(-kirchhoff[alive][:, drivers].toarray())
    potential = potential[[nodes.find(n) for n in range(count)]]
    # The current of a bit line is what its cells deliver: every wire end but the sensed ones is open.
    drop = potential[1 + rows : 1 + rows + rows * cols] - potential[1 + rows + rows * cols :]
    currents = (cells.reshape(-1, 1) * drop).reshape(rows, cols, rows).sum(axis=0)
    return torch.from_numpy(np.ascontiguousarray(currents.T))
