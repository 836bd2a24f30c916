"""Keys and values of virtual tokens, computed once per OVT, and the buffers that a batch of answers grows in.

Virtual tokens stand at positions 0..n-1 of their row, whoever asks, so what attention keeps of them (rotated keys
included) is the same before every question.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from nvcim.errors import DataError, ModelError
from nvcim.prompts.language_model import LanguageModel

DEFAULT_CAPACITY = 256 * 2**20
"""Bytes: about 3,000 OVTs of 20 tokens of the embedded LM, 128 of a 2B model in bfloat16 (a documented guess)."""


@dataclass(frozen=True)
class Prefix:
    """What attention keeps of one set of virtual tokens.

    Attributes:
        keys: [layers, heads, n, head_dim], rotated where the model rotates them.
        values: [layers, heads, n, head_dim].
    """

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        """Virtual tokens."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.keys.nbytes + self.values.nbytes


class PrefixCache:
    """Prefixes by the content of their tokens; the one unused for longest goes first. Not for several threads.

    Attributes:
        lm: the frozen model that the prefixes belong to.
        capacity: bytes that the prefixes may take.
        hits, misses: sets of tokens asked for that were there or had to be computed.
    """

    def __init__(self, lm: LanguageModel, capacity: int = DEFAULT_CAPACITY) -> None:
        """Start empty.

        Raises:
            ModelError: a model whose prefixes cannot be computed apart from the question (`lm.can_cache_prefix`).
            ValueError: a negative capacity.
        """
        if not lm.can_cache_prefix:
            raise ModelError(
                f"model '{lm.name}': its virtual tokens cannot be computed apart from a question"
            )
        if capacity < 0:
            raise ValueError(f"capacity is {capacity} bytes; at least 0")
        self.lm = lm
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self.nbytes = 0
        self._held: OrderedDict[bytes, Prefix] = OrderedDict()

    def __len__(self) -> int:
        """Prefixes held."""
        return len(self._held)

    def of(self, tokens: Sequence[Tensor | None]) -> list[Prefix | None]:
        """Prefixes of sets of virtual tokens; what is missing is computed, equal lengths together, and kept.

        Args:
            tokens: each [n, hidden], or None for a row without.

        Raises:
            DataError: no tokens in a set, or tokens of another width than the model's.
        """
        for one in tokens:
            if one is not None:
                check_tokens(self.lm, one)
        names = [None if one is None else content_hash(one) for one in tokens]
        wanted = {name: one for name, one in zip(names, tokens, strict=True) if name and one is not None}
        found = {name: self._held[name] for name in wanted if name in self._held}
        self.hits += len(found)
        self.misses += len(wanted) - len(found)
        missing = {name: one for name, one in wanted.items() if name not in found}
        for length in sorted({len(one) for one in missing.values()}):
            chosen = [name for name, one in missing.items() if len(one) == length]
            prefixes = compute_prefixes(
                self.lm, torch.stack([missing[name].to(self.lm.device, self.lm.dtype) for name in chosen])
            )
            found.update(zip(chosen, prefixes, strict=True))
        for name in wanted:
            self._hold(name, found[name])
        return [None if name is None else found[name] for name in names]

    def clear(self) -> None:
        """Forget every prefix; the counters stay."""
        self._held.clear()
        self.nbytes = 0

    def _hold(self, name: bytes, prefix: Prefix) -> None:
        """Make a prefix the one used last, and drop the oldest while there are too many bytes."""
        if name in self._held:
            self._held.move_to_end(name)
            return
        if prefix.nbytes > self.capacity:
            return
        self._held[name] = prefix
        self.nbytes += prefix.nbytes
        while self.nbytes > self.capacity:
            _, dropped = self._held.popitem(last=False)
            self.nbytes -= dropped.nbytes


def cache_for(lm: LanguageModel) -> PrefixCache | None:
    """A cache of the default capacity, or None for a model that cannot have one (`lm.can_cache_prefix`)."""
    return PrefixCache(lm) if lm.can_cache_prefix else None


def content_hash(tokens: Tensor) -> bytes:
    """SHA-256 of a tensor's shape and float32 elements."""
    content = tokens.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(str(tuple(content.shape)).encode() + content.numpy().tobytes()).digest()


def check_tokens(lm: LanguageModel, tokens: Tensor) -> None:
    """Refuse what is no set of virtual tokens of this model.

    Raises:
        DataError: not [n, hidden] with n of at least 1.
    """
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] != lm.hidden:
        raise DataError(
            f"virtual tokens of shape {list(tokens.shape)}; [n, {lm.hidden}] with n of at least 1 fit '{lm.name}'"
        )


@torch.no_grad()
def compute_prefixes(lm: LanguageModel, tokens: Tensor) -> list[Prefix]:
    """Run virtual tokens through the model as the beginning of a text.

    Args:
        lm: the frozen model.
        tokens: [batch, n, hidden].

    Returns:
        One prefix per row, each with storage of its own.
    """
    cache = DynamicCache()
    positions = torch.arange(tokens.shape[1], device=lm.device).expand(len(tokens), -1)
    lm.model.base_model(
        inputs_embeds=tokens.to(lm.dtype), position_ids=positions, past_key_values=cache, use_cache=True
    )
    layers: list[Any] = cache.layers
    keys = torch.stack([layer.keys for layer in layers], dim=1)  # [batch, layers, heads, n, head_dim]
    values = torch.stack([layer.values for layer in layers], dim=1)
    return [Prefix(key.clone(), value.clone()) for key, value in zip(keys, values, strict=True)]


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' own hook
    """One layer's keys and values of a batch, in buffers allocated once for the whole answer.

    transformers' own layer copies everything it holds for each new token. Every column is kept, under a sliding
    window too: the model's mask hides what the window has left behind.

    Args:
        layer: which of a prefix's layers this is.
        prefixes: of each row, or None.
        columns: that the prefixes take; each row's ends in the last of them.
        room: columns at most.
    """

    def __init__(self, layer: int, prefixes: Sequence[Prefix | None], columns: int, room: int) -> None:
        """Take no memory yet: the shape is known with the first keys."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer
        self.prefixes = prefixes
        self.length = columns
        self.room = room
        self.buffers: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, and put each row's prefix in its place; `key_states`: [batch, heads, length, head_dim]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        made = []
        for states in (key_states, value_states):
            batch, heads, _, width = states.shape
            made.append(states.new_zeros(batch, heads, self.room, width))
        self.buffers = tuple(made)
        for row, prefix in enumerate(self.prefixes):
            if prefix is not None:
                place = slice(self.length - len(prefix), self.length)
                made[0][row, :, place] = prefix.keys[self.layer]
                made[1][row, :, place] = prefix.values[self.layer]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append columns [batch, heads, new, head_dim] and return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns so far, prefixes and padding included."""
        return self.length

    def shift(self, by: Tensor) -> None:
        """Move each row right by `by` [batch] columns; what falls off its end was padding."""
        columns = torch.arange(self.length, device=by.device) - by[:, None]
        rows = torch.arange(len(by), device=by.device)[:, None]
        for buffer in self.buffers:
            moved = buffer.transpose(1, 2)[rows, columns.clamp(min=0)]
            buffer[:, :, : self.length] = moved.transpose(1, 2)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows of the batch."""
        self.buffers = tuple(buffer[rows] for buffer in self.buffers)
