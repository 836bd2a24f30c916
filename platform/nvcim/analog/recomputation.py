"""Forwards that activation checkpointing runs a second time, within the backward pass (torch.utils.checkpoint).

A layer whose forward moves a state on (the next read noise, another write of its cells) must then compute what it
computed first, and move nothing. So while a checkpointed forward runs, a layer remembers the state it started from;
when it is called within a backward pass, it looks that up by its inputs, which are the same to the bit. Of several
forwards with equal inputs the latest that was not run again yet counts, as backward passes run in reverse.
"""

import zlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nvcim.errors import ConfigError

State = TypeVar("State")

_KEPT = 256
"""Forwards that wait for their backward pass at most, per layer: those that never get one must not fill memory."""

_Key = tuple[tuple[torch.Size, torch.dtype, int], ...]


def recomputing() -> bool:
    """Whether this forward runs within a backward pass."""
    return torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether this forward is the first run of a checkpointed one; also true inside other autograd functions."""
    if torch.is_inference_mode_enabled():
        return False
    if (
        not torch._C._is_fwd_grad_enabled()
    ):  # inside an autograd function's forward, as checkpoint's reentrant form
        return True
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == torch.utils.checkpoint.__name__


@dataclass
class _Forward(Generic[State]):
    key: _Key
    state: State
    again: bool = False


class Forwards(Generic[State]):
    """What a layer's forwards started from, until they have been run again. Copies of a layer start with none."""

    def __init__(self) -> None:
        self._kept: list[_Forward[State]] = []

    def remember(self, state: State, *inputs: Tensor) -> None:
        """Keep what a forward of these inputs started from; call it while `may_be_recomputed`."""
        waiting = [forward for forward in self._kept if not forward.again]
        self._kept = [*waiting[-(_KEPT - 1) :], _Forward(_key(inputs), state)]

    def started_from(self, *inputs: Tensor) -> State:
        """What the forward of these inputs started from, for one that is `recomputing`.

        Raises:
            ConfigError: no forward had these inputs.
        """
        key = _key(inputs)
        alike = [forward for forward in self._kept if forward.key == key]
        if not alike:
            raise ConfigError(
                "an analog layer is recomputed in a backward pass from inputs that none of its checkpointed forwards "
                f"had (the last {_KEPT} are kept), so its noise cannot be repeated; checkpoint with "
                "preserve_rng_state=True and without other randomness"
            )
        chosen = next((forward for forward in reversed(alike) if not forward.again), alike[-1])
        chosen.again = True
        return chosen.state

    def __reduce__(self) -> tuple[type["Forwards[State]"], tuple[()]]:
        return type(self), ()


def _key(inputs: tuple[Tensor, ...]) -> _Key:
    return tuple((x.shape, x.dtype, _checksum(x.detach())) for x in inputs)


def _checksum(x: Tensor) -> int:
    return zlib.crc32(x.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
