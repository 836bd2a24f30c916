"""The same call without compiled kernels, in the same process: what a compiled line must not be slower than."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch
from weakref import WeakKeyDictionary

from tests.benchmarks.timing import Timing, alternate

Lookup = Callable[..., object]


def _no_crossbar_kernel(*tensors: object) -> None:
    return None


def _no_frozen_kernel() -> None:
    return None


LOOKUPS: dict[tuple[str, str], Lookup] = {
    ("nvcim.crossbar.kernel", "kernel_for"): _no_crossbar_kernel,
    ("nvcim.prompts.frozen_kernel", "frozen_kernel"): _no_frozen_kernel,
}
"""Where the package finds its kernels, and what finds none."""


def _lookups() -> list[tuple[Lookup, Lookup]]:
    """Those whose module has been imported (the prompts' takes seconds), each with what finds none."""
    return [
        (getattr(sys.modules[module], name), none)
        for (module, name), none in LOOKUPS.items()
        if module in sys.modules
    ]


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, nothing finds a compiled kernel, as with `NVCIM_KERNEL=plain` in the environment."""
    lookups = _lookups()
    decoders = sys.modules.get("nvcim.prompts.frozen_decoder")
    for found, none in lookups:
        _replace(found, none)
    try:
        with ExitStack() as stack:
            if decoders is not None:  # packed models would be found without asking for a kernel
                stack.enter_context(patch.object(decoders, "_PACKED", WeakKeyDictionary()))
            yield
    finally:
        for found, none in lookups:
            _replace(none, found)


def _replace(old: object, new: object) -> None:
    """Under every name by which a module of the package has imported it."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "nvcim":
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


def beside_plain(case: Callable[[], object], reference: Callable[[], object], repeats: int) -> Timing:
    """`alternate`, and the case in plain torch in turn with them, unless there is nothing else here."""
    compiled = any(found() is not None for found, _ in _lookups())
    return alternate(case, reference, repeats, plain_torch if compiled else None)
