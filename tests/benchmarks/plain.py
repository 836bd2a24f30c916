"""The same call without compiled kernels, in the same process: what a compiled line must not be slower than."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch
from weakref import WeakKeyDictionary

from nvcim.crossbar import kernel
from nvcim.prompts import frozen_decoder, frozen_kernel
from tests.benchmarks.timing import Timing, alternate


def _no_crossbar_kernel(*tensors: object) -> None:
    return None


def _no_frozen_kernel() -> None:
    return None


LOOKUPS: tuple[tuple[object, object], ...] = (
    (kernel.kernel_for, _no_crossbar_kernel),
    (frozen_kernel.frozen_kernel, _no_frozen_kernel),
)
"""How the package finds its kernels, and what finds none."""


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, nothing finds a compiled kernel, as with `NVCIM_KERNEL=plain` in the environment."""
    for found, none in LOOKUPS:
        _replace(found, none)
    try:
        # Packed models would be found without asking for a kernel.
        with patch.object(frozen_decoder, "_PACKED", WeakKeyDictionary()):
            yield
    finally:
        for found, none in LOOKUPS:
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
    if kernel.kernel_for() is None and frozen_kernel.frozen_kernel() is None:
        return alternate(case, reference, repeats)
    return alternate(case, reference, repeats, plain_torch)
