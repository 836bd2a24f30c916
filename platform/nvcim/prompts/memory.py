"""The prompt memory of one edge node: codes of token sets on a crossbar, one column each.

Row i of the array holds element i of a flattened code [n, code]. A column is written on its own and keeps its draw
while others are written; a search drives a prepared query into the rows and reads all columns at once; reading a set
back drives the rows one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import DataError
from nvcim.prompts.search import prepared_query


@dataclass(frozen=True)
class Slot:
    """A written column: the label it was given (what it was tuned for) and how often this place was written."""

    label: str
    writes: int
    column: Crossbar


class PromptMemory:
    """Token sets on a crossbar.

    Args:
        config: the array; `weight_bits` is the precision of a code element. Each column has its own scale.
        tokens: n, virtual tokens per set.
        code: width of a token's code.
        capacity: columns; a full memory overwrites its oldest set.
    """

    def __init__(self, config: CrossbarConfig, tokens: int, code: int, capacity: int) -> None:
        self.config = config
        self.tokens = tokens
        self.code = code
        self.capacity = capacity
        self.written = 0
        self._slots: list[Slot] = []
        self._array: Crossbar | None = None
        self._read: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def slots(self) -> Sequence[Slot]:
        """Written columns, by place."""
        return tuple(self._slots)

    def write(self, codes: Tensor, label: str, generator: torch.Generator) -> int:
        """Program a token set's code [n, code] into the next free column, or over the oldest; returns its place.

        Raises:
            DataError: a code of another shape.
        """
        if tuple(codes.shape) != (self.tokens, self.code):
            raise DataError(
                f"code has shape {tuple(codes.shape)}, this memory holds ({self.tokens}, {self.code})"
            )
        place = self.written % self.capacity
        column = Crossbar.program(codes.detach().reshape(-1, 1).cpu(), self.config, generator)
        writes = self._slots[place].writes + 1 if place < len(self._slots) else 1
        self._slots[place : place + 1] = [Slot(label, writes, column)]
        self.written += 1
        self._array = None
        self._read.pop(place, None)
        return place

    def search(self, queries: Tensor, scales: Mapping[int, float]) -> Tensor:
        """Scores [batch, stored sets] of encoded queries [batch, n, code], read from the array.

        Raises:
            DataError: the memory is empty.
        """
        if not self._slots:
            raise DataError("prompt memory is empty: nothing to search")
        if self._array is None:
            self._array = Crossbar.stack([slot.column for slot in self._slots])
        scores = self._array.matmul(prepared_query(queries.cpu(), scales))  # [slots, batch, 1]
        return scores[..., 0].T

    def read(self, place: int) -> Tensor:
        """The code [n, code] at a place as the array gives it back, read once and kept."""
        if place not in self._read:
            rows = torch.eye(self.tokens * self.code)
            self._read[place] = self._slots[place].column.matmul(rows).reshape(self.tokens, self.code)
        return self._read[place]

    def state_dict(self) -> dict[str, Tensor]:
        """The written cells as tensors, keyed `<place>.<crossbar key>`."""
        return {
            f"{place}.{key}": value
            for place, slot in enumerate(self._slots)
            for key, value in slot.column.state_dict().items()
        }

    def load_state(self, state: Mapping[str, Tensor], labels: Sequence[str], writes: Sequence[int]) -> None:
        """Restore what `state_dict` saved; the same cells, not a new draw."""
        self._slots = []
        for place, (label, count) in enumerate(zip(labels, writes, strict=True)):
            prefix = f"{place}."
            cells = {
                key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
            }
            self._slots.append(Slot(label, count, Crossbar.from_state(cells, self.config)))
        self.written = sum(writes)
        self._array, self._read = None, {}
