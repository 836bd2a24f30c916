"""The cells of a prompt memory: many columns that are written one by one, kept side by side, and read together.

A column is a crossbar of one output, with a draw, a scale and ADCs of its own. Its tensors lie in blocks that grow by
doubling: a write touches its own column only, and a search is one matrix product per block. What a search needs lies
as a matrix [in, columns]; the rest as `Crossbar.state_dict` has it, a row per column.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.converters import make_adc
from nvcim.crossbar.reading import Counts, ReadPlan, read_array
from nvcim.errors import ConfigError

BLOCK = 1024
"""Most columns of a block: a search keeps a block's converters at once, and growing copies one block."""
SMALLEST = 4
"""Columns of a new block; most nodes of a fleet store a handful of sets."""
_OF_THE_WHOLE = ("clock_s", "devices")
"""What a crossbar's state holds once, not per device."""


class Columns:
    """Columns of `rows` inputs; a place is a column's number.

    Raises:
        ConfigError: a config that cannot be read this way.
    """

    def __init__(self, config: CrossbarConfig, rows: int) -> None:
        self.config = config
        self.rows = rows
        self._used = 0
        self._blocks: list[dict[str, Tensor]] = []
        solved = config.cell_current == "device" or config.gated_rows
        own_converters = config.adc_errors is not None or config.adc_scaling == "calibrated"
        self._one_matrix = not (config.noisy or solved or own_converters)

    def __len__(self) -> int:
        return self._used

    def put(self, places: Sequence[int], crossbar: Crossbar) -> None:
        """Copy a crossbar's columns [len(places), rows, 1] to these places, which may be new ones."""
        self._copy_in(places, crossbar.state_dict())

    def take(self, places: Sequence[int]) -> Crossbar:
        """A crossbar [len(places), rows, 1] of the columns at these places; a copy."""
        state = self._copy_out(places)
        state["devices"] = torch.tensor([len(places)])
        state["clock_s"] = torch.tensor(0.0, dtype=torch.float64)
        return Crossbar.from_state(state, self.config)

    def read(self, x: Tensor) -> Tensor:
        """Drive vectors [batch, rows] into all columns: [batch, columns]."""
        y = torch.empty(len(x), self._used)
        for start, block in zip(range(0, self._used, BLOCK), self._blocks, strict=True):
            stop = min(self._used, start + BLOCK)
            y[:, start:stop] = (
                self._as_matrix(block, x)[:, : stop - start]
                if self._one_matrix
                else self._each(start, stop, x)
            )
        return y

    def read_each(self, places: Sequence[int], x: Tensor) -> Tensor:
        """Drive vectors [batch, rows] into the columns at these places, one array each: [len(places), batch]."""
        crossbar = self.take(places)
        y = crossbar.matmul(x)[..., 0]
        if self.config.noisy:  # their next read draws the next noise
            for row, block in _located(places, self._blocks):
                block["reads"][row] += len(x)
        return y

    def state_dict(self) -> dict[str, Tensor]:
        """All columns as one crossbar's state would have them, without what is not per column."""
        return self._copy_out(range(self._used)) if self._used else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` saved.

        Raises:
            ConfigError: tensors that are not those of such columns.
        """
        counts = {len(value) for value in state.values()}
        if len(counts) > 1:
            raise ConfigError(f"columns of a prompt memory do not fit together: {sorted(counts)} of them")
        self._used, self._blocks = 0, []
        if not counts:
            return
        whole = dict(state) | {
            "devices": torch.tensor([*counts]),
            "clock_s": torch.zeros((), dtype=torch.float64),
        }
        crossbar = Crossbar.from_state(whole, self.config)  # which refuses what does not fit
        if tuple(crossbar.shape[1:]) != (self.rows, 1):
            raise ConfigError(f"columns have {crossbar.in_features} rows; this memory's have {self.rows}")
        del crossbar
        self._copy_in(range(*counts), state)

    def _as_matrix(self, block: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """A read of all columns of a block as the outputs of one array; ADC ranges stay each column's own."""
        reach = block.get("reach")
        adc = None
        if reach is not None:
            none = torch.zeros(1, dtype=torch.int64)  # ADCs without errors draw nothing
            adc = make_adc(reach[..., 0].movedim(0, -1)[None], self.config, none)
        pedestal = None if "pedestal" not in block else block["pedestal"].reshape(1, 1, -1)
        pieces = self.config.mapping().slices
        alphas = tuple(piece.factor for piece in pieces) if self.config.accumulate == "digital" else (1.0,)
        base = None if "base" not in block else block["base"][..., 0].movedim(0, -1)[None]
        plan = ReadPlan(block["weight"][None], None, None, adc, alphas, pedestal, base=base)
        nothing = torch.zeros(1, dtype=torch.int64)
        return read_array(x.float()[None], plan, self.config, nothing, nothing, Counts())[0]

    def _each(self, start: int, stop: int, x: Tensor) -> Tensor:
        return self.read_each(range(start, stop), x).T

    def _copy_in(self, places: Sequence[int], state: Mapping[str, Tensor]) -> None:
        for row, own, block in self._room_for(places, state):
            for name, values in block.items():
                if name == "weight":  # [groups, rows, columns]
                    values[..., row] = state[name][own, ..., 0].movedim(0, -1)
                else:
                    values[row] = state[name].expand(len(places), *state[name].shape[1:])[own]

    def _room_for(
        self, places: Sequence[int], state: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Block by block: rows in the block, which of `places` they are, and the block, grown to hold them."""
        wanted = torch.as_tensor(list(places))
        self._used = max(self._used, int(wanted.max()) + 1)
        for number in sorted(set((wanted // BLOCK).tolist())):
            own = (wanted // BLOCK == number).nonzero()[:, 0]
            row = wanted[own] - number * BLOCK
            while len(self._blocks) <= number:
                self._blocks.append({})
            self._blocks[number] = _grown(self._blocks[number], int(row.max()) + 1, state)
            yield row, own, self._blocks[number]

    def _copy_out(self, places: Sequence[int]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in self._blocks[0]}
        order = []
        wanted = torch.as_tensor(list(places))
        for number in sorted(set((wanted // BLOCK).tolist())):
            own = (wanted // BLOCK == number).nonzero()[:, 0]
            order.append(own)
            row = wanted[own] - number * BLOCK
            for name, values in self._blocks[number].items():
                parts[name].append(
                    values[..., row].movedim(-1, 0)[..., None] if name == "weight" else values[row]
                )
        back = torch.cat(order).argsort()
        return {name: torch.cat(values)[back].contiguous() for name, values in parts.items()}


def _located(
    places: Sequence[int], blocks: Sequence[dict[str, Tensor]]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for place in places:
        yield place % BLOCK, blocks[place // BLOCK]


def _grown(block: dict[str, Tensor], columns: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The block with room for `columns`, at least doubled if it had too little."""
    held = block["keys"].shape[0] if block else 0
    if columns <= held:
        return block
    room = min(BLOCK, max(columns, 2 * held, SMALLEST))
    grown = {}
    for name, values in state.items():
        if name in _OF_THE_WHOLE:
            continue
        # A crossbar keeps one count of pulses for cells that all had the same; columns differ in how often they were.
        shape = values.shape[1:]
        grown[name] = (
            values.new_zeros(*shape[:-1], room) if name == "weight" else values.new_zeros(room, *shape)
        )
        if held and name == "weight":
            grown[name][..., :held] = block[name]
        elif held:
            grown[name][:held] = block[name]
    return grown
