"""Tensors that a layer computes anew before each forward: pruning, and the older weight and spectral normalisation.

`torch.nn.utils.prune`, `weight_norm` and `spectral_norm` keep what they compute a weight from under other names, and
set `layer.weight` in a forward pre-hook. Read at another time it is stale: as the last forward, or nothing but the
initial value, left it. `torch.nn.utils.parametrize` computes at every read, and so needs nothing of this.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from nvcim.errors import ModelError

_Model = TypeVar("_Model", bound=nn.Module)
_KNOWN = prune.BasePruningMethod | SpectralNorm | WeightNorm


def computed(layer: nn.Module, name: str = "weight") -> Tensor | None:
    """A layer's weight or bias as its next forward, in its present mode, computes with it; differentiable.

    Raises:
        ModelError: a tensor that hooks compute which this module does not know, or that has no values yet.
    """
    hooks = list(layer._forward_pre_hooks.values())
    known = [hook for hook in hooks if isinstance(hook, _KNOWN) and _target(hook) == name]
    value = getattr(layer, name)
    if known:
        for hook in known:
            value = _run(hook, layer)
    elif hooks and isinstance(
        vars(layer).get(name), Tensor
    ):  # neither parameter nor buffer: somebody sets it
        listed = ", ".join(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks)
        raise ModelError(
            f"its {name} is no parameter, and may be set before each forward by {listed}; allowed: parametrizations of "
            "torch.nn.utils.parametrize, and prune, weight_norm and spectral_norm of torch.nn.utils"
        )
    if value is not None and (is_lazy(value) or value.is_meta):
        raise ModelError(f"its {name} has no values yet; initialise or load it first")
    assert value is None or isinstance(value, Tensor)
    return value


def computed_weight(layer: nn.Module) -> Tensor:
    """`computed` for a weight.

    Raises:
        ModelError: as `computed`.
    """
    weight = computed(layer)
    assert weight is not None
    return weight


def computes_weight(hook: object) -> bool:
    """Whether a forward pre-hook is one of torch.nn.utils that compute a weight."""
    return isinstance(hook, _KNOWN)


def what_computes(layer: nn.Module, name: str = "weight") -> tuple[str, str] | None:
    """What computes a layer's tensor in a forward pre-hook, and what ends that; None where nothing known does."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, _KNOWN) and _target(hook) == name:
            kind = type(hook).__name__
            removers = {WeightNorm: "remove_weight_norm", SpectralNorm: "remove_spectral_norm"}
            return kind, f"torch.nn.utils.{removers.get(type(hook), 'prune.remove')}"
    return None


def made_plain(layer: nn.Module) -> None:
    """Turn what the known hooks compute into parameters for good, in place, and remove the hooks."""
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, _target(hook))  # type: ignore[no-untyped-call]
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)


def copied(model: _Model) -> _Model:
    """`copy.deepcopy`, also of layers whose computed tensors are still part of a graph of gradients."""
    memo: dict[int, object] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """For a while; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _target(hook: _KNOWN) -> str:
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name


def _run(hook: _KNOWN, layer: nn.Module) -> Tensor:
    """What a hook would set, without setting it."""
    if isinstance(hook, prune.BasePruningMethod):
        value = hook.apply_mask(layer)  # type: ignore[no-untyped-call]
    elif isinstance(hook, WeightNorm):
        value = hook.compute_weight(layer)
    else:
        value = hook.compute_weight(layer, do_power_iteration=layer.training)
    assert isinstance(value, torch.Tensor)
    return value
