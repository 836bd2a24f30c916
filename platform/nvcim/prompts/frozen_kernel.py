"""frozen_kernel.cpp, built with the package for each instruction set (`nvcim.compiled`); its structures for ctypes.

Where there is none models run through their own forward pass, several times slower; that is logged once, and
`frozen_kernel_status` tells.
"""

import ctypes
from functools import lru_cache
from pathlib import Path

from nvcim.compiled import Kernel, load_kernel

_SOURCE = Path(__file__).with_name("frozen_kernel.cpp")
_POINTER, _INT64, _INT32, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Matrix(ctypes.Structure):
    """`matrix` of frozen_kernel.cpp: packed weights [inputs, outputs] and a bias [outputs] or none."""

    _fields_ = (("packed", _POINTER), ("bias", _POINTER), ("inputs", _INT64), ("outputs", _INT64))


MATRICES = ("q", "kv", "o", "gate_up", "down")


class Layer(ctypes.Structure):
    """`layer`: five matrices, and the same transposed (`_back`)."""

    _fields_ = tuple((name, Matrix) for name in (*MATRICES, *(f"{name}_back" for name in MATRICES)))


class Decoder(ctypes.Structure):
    """`decoder`: layers, head, tables of the rotation, and sizes."""

    _fields_ = (
        ("layers", _POINTER),
        ("head", Matrix),
        ("head_back", Matrix),
        ("cosine", _POINTER),
        ("sine", _POINTER),
        *((name, _INT64) for name in ("count", "hidden", "heads", "kv_heads", "head_size", "inner")),
        *((name, _FLOAT) for name in ("epsilon", "scale")),
        *((name, _INT32) for name in ("half", "first_once", "last_few")),
    )


class KernelRow(ctypes.Structure):
    """`row`: one sample behind its job's virtual tokens, and where its loss and gradient go."""

    _fields_ = (
        *((name, _POINTER) for name in ("tokens", "text", "first_q", "first_kv", "places", "labels")),
        *((name, _POINTER) for name in ("gradient", "loss")),
        *((name, _INT64) for name in ("n", "length", "answers")),
        ("share", _FLOAT),
    )


def frozen_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be had."""
    return _load().library


def frozen_kernel_status() -> str:
    """One line: whether tuning on the CPU runs compiled or through the model's own forward pass, and why."""
    return _load().status


@lru_cache(maxsize=1)
def _load() -> Kernel:
    kernel = load_kernel(_SOURCE, "prompts are tuned through", "the model's own forward pass")
    if kernel.library is not None:
        _declare(kernel.library)
    return kernel


def _declare(library: ctypes.CDLL) -> None:
    library.nvcim_frozen_rows.argtypes = (
        ctypes.POINTER(Decoder),
        ctypes.POINTER(KernelRow),
        _INT64,
        _INT32,
    )
    library.nvcim_frozen_rows.restype = _INT32
    library.nvcim_frozen_first.argtypes = (
        ctypes.POINTER(Decoder),
        _POINTER,
        _INT64,
        _INT64,
        _POINTER,
        _POINTER,
    )
    library.nvcim_frozen_first.restype = _INT32
    library.nvcim_frozen_panel.argtypes = ()
    library.nvcim_frozen_panel.restype = _INT64
    library.nvcim_frozen_half.argtypes = ()
    library.nvcim_frozen_half.restype = _INT32
