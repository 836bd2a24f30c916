"""Walk a model and put other modules in the place of some of its modules."""

from collections.abc import Callable

from torch import nn

Make = Callable[[str, nn.Module], nn.Module | None]
"""(name as in `named_modules`, module) -> what takes its place; None: it stays, and its children are looked at."""


def replace_modules(model: nn.Module, make: Make) -> nn.Module:
    """Replace modules in place, parents first; a module used twice is asked for once and replaced twice.

    Modules inside parametrizations stay. Returns the model, or what takes its own place.
    """
    return _visit("", model, make, {})


def _visit(name: str, module: nn.Module, make: Make, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    made = make(name, module)
    done[module] = module if made is None else made
    if made is None:
        for child_name, child in list(module._modules.items()):
            if child is None or child_name == "parametrizations":
                continue
            fresh = _visit(f"{name}.{child_name}" if name else child_name, child, make, done)
            if fresh is not child:
                setattr(module, child_name, fresh)
    return done[module]
