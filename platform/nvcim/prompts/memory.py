"""The prompt memory of one edge node: codes of token sets on a crossbar, one column each.

Row i of the array holds element i of a flattened code [n, code]. A column is written on its own and keeps its draw
while others are written; a search drives a prepared query into the rows and reads all columns at once; reading a set
back drives the rows one by one. A place that is written again keeps its cells: what is stuck stays so, pulses add up.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError, DataError, NvcimError
from nvcim.mitigation import Correction, Mitigation
from nvcim.mitigation.none import NoMitigation
from nvcim.prompts.memory_columns import Columns
from nvcim.prompts.search import SearchSettings, prepared_query

Replacement = Literal["oldest", "least_worn"]
"""Which set a full memory gives up: the one written longest ago, or, so that wear spreads, the one at the place
written least often among the older half of the sets (ties: the oldest)."""

WRITTEN_AT_ONCE = 256
"""Columns programmed in one call; bounds the memory that programming takes beside the cells."""
KEPT_READS = 256
"""Sets whose read-back is kept; a node uses few of them again and again."""


@dataclass(frozen=True)
class Slot:
    """A place of the memory.

    Attributes:
        label: what the stored set was tuned for; None where nothing is stored.
        writes: how often the place was written.
        pulses: most pulses that a cell of it has had.
    """

    label: str | None
    writes: int
    pulses: int
    _columns: Columns
    _place: int

    @property
    def column(self) -> Crossbar:
        """The place's cells, a copy: a crossbar [1, n * code, 1]."""
        return self._columns.take([self._place])


class PromptMemory:
    """Token sets on a crossbar.

    Args:
        config: the array; `weight_bits` is the precision of a code element. Each column has its own scale.
        tokens: n, virtual tokens per set.
        code: width of a token's code.
        capacity: columns; a full memory overwrites a set, see `Replacement`.
        mitigation: how columns are written, and what corrects their reads; left out, none.
        compensator: of the mitigation, a module [..., code] -> [..., code] for codes that were read back.
        replacement: which set a full memory gives up.

    Raises:
        ConfigError: a capacity below 1, or an unknown replacement.
    """

    def __init__(
        self,
        config: CrossbarConfig,
        tokens: int,
        code: int,
        capacity: int,
        mitigation: Mitigation | None = None,
        compensator: nn.Module | None = None,
        replacement: Replacement = "oldest",
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"prompt memory: capacity is {capacity}, at least 1 is needed")
        if replacement not in get_args(Replacement):
            raise ConfigError(
                f"prompt memory: replacement '{replacement}' is not known; allowed: {', '.join(get_args(Replacement))}"
            )
        self.mitigation = mitigation or NoMitigation()
        self.config = self.mitigation.writing(config)
        self.tokens = tokens
        self.code = code
        self.capacity = capacity
        self.compensator = compensator
        self.replacement = replacement
        self._forget()

    def _forget(self) -> None:
        self._columns = Columns(self.config, self.tokens * self.code)
        self._labels: list[str | None] = []  # by place, as all below
        self._writes, self._order, self._pulses = array("q"), array("q"), array("q")
        self._free: set[int] = set()
        self._corrections: dict[str, Tensor] = {}
        self._read: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._labels) - len(self._free)

    @property
    def slots(self) -> Sequence[Slot]:
        """All places that were ever written, by place."""
        return _Slots(self._labels, self._writes, self._pulses, self._columns)

    @property
    def written(self) -> int:
        """Writes so far."""
        return sum(self._writes)

    @property
    def endurance(self) -> float | None:
        """Pulses that a cell endures; None where the device's entry does not say."""
        return self.config.cell().endurance

    @property
    def worn_out(self) -> tuple[int, ...] | None:
        """Places with a cell that had more pulses than it endures; they still work in this model. None: unknown."""
        endurance = self.endurance
        if endurance is None:
            return None
        return tuple(place for place, pulses in enumerate(self._pulses) if pulses > endurance)

    def write(
        self, codes: Tensor, label: str, generator: torch.Generator, importance: Tensor | None = None
    ) -> int:
        """Program a token set's code [n, code] into a free place, or over another set; returns the place.

        A free place that was written least often comes first; see `Replacement` for a full memory.

        Args:
            codes: the code.
            label: what the set is for.
            generator: names the cells of a place that is written for the first time. A place that was written before
                keeps its cells, and the new draw is the next of their own stream.
            importance: like codes; how much the loss depends on each element, for a mitigation that asks for it.

        Raises:
            DataError: a code or importance of another shape, or an importance missing.
        """
        given = None if importance is None else importance[None]
        return self.write_all(codes[None], [label], [generator], given)[0]

    def write_all(
        self,
        codes: Tensor,
        labels: Sequence[str],
        generators: Sequence[torch.Generator],
        importance: Tensor | None = None,
    ) -> list[int]:
        """`write` for codes [k, n, code] in turn, in few calls of the array; the same cells as one by one.

        Raises:
            DataError: as `write`, or numbers of labels or generators other than k.
        """
        self._check(codes, labels, generators, importance)
        places: list[int] = []
        while len(places) < len(labels):
            some = slice(len(places), len(places) + WRITTEN_AT_ONCE)
            given = None if importance is None else importance[some]
            places += self._write_some(self._next_place, codes[some], labels[some], generators[some], given)
        return places

    def replace(
        self,
        place: int,
        codes: Tensor,
        label: str,
        generator: torch.Generator,
        importance: Tensor | None = None,
    ) -> None:
        """`write` at a place of the caller's choice, one that was written before.

        Raises:
            DataError: as `write`, or a place that was never written.
        """
        self._check_place(place)
        given = None if importance is None else importance[None]
        self._check(codes[None], [label], [generator], given)
        self._write_some(lambda: place, codes[None], [label], [generator], given)

    def drop(self, place: int) -> None:
        """Free a place; its cells stay as they are until it is written again.

        Raises:
            DataError: nothing is stored there.
        """
        self._check_stored(place)
        self._labels[place] = None
        self._free.add(place)
        self._read.pop(place, None)

    def search(
        self, queries: Tensor, scales: Mapping[int, float], settings: SearchSettings | None = None
    ) -> Tensor:
        """Scores [batch, places] of encoded queries [batch, n, code], read from the array; -inf for a free place.

        Raises:
            DataError: the memory is empty.
        """
        if not len(self):
            raise DataError("prompt memory is empty: nothing to search")
        scores = self._driven(prepared_query(queries.detach().cpu(), scales, settings))
        if self._free:
            scores[:, sorted(self._free)] = -torch.inf
        return scores

    def read(self, place: int) -> Tensor:
        """The code [n, code] at a place as the array gives it back, corrected and compensated; read once and kept.

        Raises:
            DataError: nothing is stored there.
        """
        self._check_stored(place)
        if place not in self._read:
            rows = torch.eye(self.tokens * self.code)
            y = self._columns.read_each([place], rows)[0]
            if self._corrections:
                y = y * self._corrections["gain"][place] + self._corrections["offset"][place]
            codes = y.reshape(self.tokens, self.code)
            if self.compensator is not None:
                with torch.no_grad():
                    compensated: Tensor = self.compensator(codes)
                codes = compensated
            self._read[place] = codes
        self._read.move_to_end(place)
        while len(self._read) > KEPT_READS:
            self._read.popitem(last=False)
        return self._read[place]

    def read_blended(self, weights: Tensor) -> Tensor:
        """Weighted sums [batch, n, code] of the sets read back; weights [batch, places], as `search.blend` gives them.

        Raises:
            DataError: weights of another width, or a weight on a free place.
        """
        if weights.dim() != 2 or weights.shape[1] != len(self._labels):
            raise DataError(
                f"weights have shape {tuple(weights.shape)}; this memory takes (batch, {len(self._labels)})"
            )
        blended = torch.zeros(len(weights), self.tokens, self.code)
        for place in (weights != 0).any(0).nonzero()[:, 0].tolist():
            blended += weights[:, place, None, None].cpu() * self.read(place)
        return blended

    def state_dict(self) -> dict[str, Tensor]:
        """Cells (`cells.<crossbar key>`, a row per place), counts and corrections as tensors."""
        cells = {f"cells.{name}": value for name, value in self._columns.state_dict().items()}
        counts = {
            f"places.{name}": torch.tensor(value.tolist(), dtype=torch.int64)
            for name, value in self._counts().items()
        }
        fitted = {f"correction.{name}": value.clone() for name, value in self._corrections.items()}
        return cells | counts | fitted

    def load_state(
        self, state: Mapping[str, Tensor], labels: Sequence[str | None], writes: Sequence[int]
    ) -> None:
        """Restore what `state_dict` saved; the same cells, not a new draw.

        Raises:
            ConfigError: a state that does not fit this memory, or labels and writes that are not those of its places.
        """
        parts: dict[str, dict[str, Tensor]] = {"cells": {}, "places": {}, "correction": {}}
        for key, value in state.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise ConfigError(
                    f"prompt memory's state has '{key}'; allowed: {', '.join(parts)}, each with a name"
                )
            parts[part][name] = value
        self._forget()
        if set(parts["places"]) != set(self._counts()):
            raise ConfigError(f"prompt memory's state needs places.{', places.'.join(self._counts())}")
        self._columns.load_state(parts["cells"])
        sizes = {len(value) for part in ("places", "correction") for value in parts[part].values()}
        if sizes | {len(labels), len(writes)} != {len(self._columns)} or len(labels) > self.capacity:
            raise ConfigError(
                f"prompt memory's state has {len(self._columns)} places, but {len(labels)} labels and {len(writes)} "
                f"counts of writes; it holds at most {self.capacity}"
            )
        if list(writes) != parts["places"]["writes"].tolist():
            raise ConfigError("prompt memory's state counts other writes than those it was given with")
        self._labels = list(labels)
        self._free = {place for place, label in enumerate(labels) if label is None}
        for name, counts in self._counts().items():
            counts.extend(parts["places"][name].tolist())
        self._corrections = {name: value.clone() for name, value in parts["correction"].items()}

    def _counts(self) -> dict[str, "array[int]"]:
        """By place: writes, number of the last write, most pulses of a cell."""
        return {"writes": self._writes, "order": self._order, "pulses": self._pulses}

    def _driven(self, vectors: Tensor) -> Tensor:
        """All columns' outputs [batch, places] for vectors [batch, rows], corrected."""
        if not self._corrections:
            return self._columns.read(vectors)
        # A correction was fitted for inputs of norm 1, and the array is linear in an input's size.
        norm = vectors.square().sum(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        y = self._columns.read(vectors / norm)
        return (y * self._corrections["gain"] + self._corrections["offset"]) * norm

    def _next_place(self) -> int:
        """Where the next set goes: never written, else free and least written, else what `replacement` says."""
        if len(self._labels) < self.capacity:
            return len(self._labels)
        if self._free:
            return min(self._free, key=lambda place: (self._writes[place], self._order[place]))
        by_age = sorted(range(len(self._order)), key=self._order.__getitem__)
        if self.replacement == "oldest":
            return by_age[0]
        return min(
            by_age[: -(-len(by_age) // 2)], key=lambda place: (self._writes[place], self._order[place])
        )

    def _write_some(
        self,
        next_place: Callable[[], int],
        codes: Tensor,
        labels: Sequence[str],
        generators: Sequence[torch.Generator],
        importance: Tensor | None,
    ) -> list[int]:
        """Write as many of these sets as go to different places, at least one; returns their places."""
        taken: dict[int, tuple[str | None, int] | None] = {}
        number = self.written
        for label in labels:
            place = next_place()
            if place in taken:
                break
            taken[place] = self._take(place, label, number + len(taken))
        try:
            places = list(taken)
            count = len(places)
            given = None if importance is None else importance[:count]
            self._program(places, codes[:count], generators[:count], given)
        except NvcimError:
            self._give_back(taken)
            raise
        return places

    def _take(self, place: int, label: str, number: int) -> tuple[str | None, int] | None:
        """Note write `number` before it is done, so that the next one goes elsewhere; returns what was noted before."""
        self._read.pop(place, None)
        if place == len(self._labels):
            self._labels.append(label)
            for counts, value in ((self._writes, 1), (self._order, number), (self._pulses, 0)):
                counts.append(value)
            return None
        before = self._labels[place], self._order[place]
        self._labels[place], self._order[place] = label, number
        self._writes[place] += 1
        self._free.discard(place)
        return before

    def _give_back(self, taken: Mapping[int, tuple[str | None, int] | None]) -> None:
        """Undo `_take` for writes that were refused."""
        for place, before in reversed(list(taken.items())):
            if before is None:
                self._labels.pop()
                for counts in self._counts().values():
                    counts.pop()
                continue
            self._labels[place], self._order[place] = before
            self._writes[place] -= 1
            if before[0] is None:
                self._free.add(place)

    def _program(
        self,
        places: Sequence[int],
        codes: Tensor,
        generators: Sequence[torch.Generator],
        importance: Tensor | None,
    ) -> None:
        """Write codes [k, n, code] to different places: new ones in one call, those written before in another."""
        flat = codes.detach().cpu().to(torch.float32).flatten(1)
        ranked = None
        if importance is not None:
            ranked = self.mitigation.ranking(flat, importance.detach().cpu().flatten(1))
        new = [i for i, place in enumerate(places) if place >= len(self._columns)]
        used = [i for i, place in enumerate(places) if place < len(self._columns)]
        done = []
        for some in (one for one in (new, used) if one):
            at, weight = [places[i] for i in some], flat[some][..., None]
            order = None if ranked is None else ranked[some][..., None]
            if some is new:
                crossbar = Crossbar.program(weight, self.config, [generators[i] for i in some], order)
            else:
                crossbar = self._columns.take(at)
                crossbar.rewrite(weight, order)
            done.append((at, crossbar, self.mitigation.correction(crossbar, weight)))
        for at, crossbar, fitted in done:
            self._columns.put(at, crossbar)
            self._keep_correction(at, fitted)
            for place, pulses in zip(at, crossbar.wear().flatten(1).amax(1).tolist(), strict=True):
                self._pulses[place] = pulses

    def _keep_correction(self, places: Sequence[int], fitted: Correction | None) -> None:
        if fitted is None:
            return
        for name, value in fitted.state_dict().items():
            held = self._corrections.get(name, torch.zeros(0))
            if len(held) < len(self._labels):
                held = torch.cat([held, torch.zeros(len(self._labels) - len(held))])
            held[list(places)] = value[:, 0]
            self._corrections[name] = held

    def _check(
        self,
        codes: Tensor,
        labels: Sequence[str],
        generators: Sequence[torch.Generator],
        importance: Tensor | None,
    ) -> None:
        if tuple(codes.shape[1:]) != (self.tokens, self.code) or codes.dim() != 3:
            raise DataError(
                f"code has shape {tuple(codes.shape[1:])}, this memory holds ({self.tokens}, {self.code})"
            )
        if not len(codes) == len(labels) == len(generators):
            raise DataError(
                f"{len(codes)} codes were given with {len(labels)} labels and {len(generators)} generators"
            )
        if self.mitigation.needs_importance and importance is None:
            raise DataError(
                f"mitigation '{self.mitigation.name}' verifies the elements that the loss depends on: give importance"
            )
        if not self.mitigation.needs_importance and importance is not None:
            raise DataError(f"mitigation '{self.mitigation.name}' takes no importance")
        if importance is not None and importance.shape != codes.shape:
            raise DataError(
                f"importance has shape {tuple(importance.shape)}, the codes have {tuple(codes.shape)}"
            )

    def _check_place(self, place: int) -> None:
        if not 0 <= place < len(self._labels):
            raise DataError(f"place {place} was never written; this memory has 0 to {len(self._labels) - 1}")

    def _check_stored(self, place: int) -> None:
        self._check_place(place)
        if self._labels[place] is None:
            raise DataError(f"place {place} is free: nothing is stored there")


class _Slots(Sequence[Slot]):
    """Slots that are made when they are looked at: a memory may hold thousands."""

    def __init__(
        self, labels: Sequence[str | None], writes: Sequence[int], pulses: Sequence[int], columns: Columns
    ) -> None:
        self._labels, self._writes, self._pulses, self._columns = labels, writes, pulses, columns

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> Slot: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Slot]: ...
    def __getitem__(self, index: int | slice) -> Slot | Sequence[Slot]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return Slot(self._labels[place], self._writes[place], self._pulses[place], self._columns, place)
