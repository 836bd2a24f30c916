"""The compiled inner loops: kernel.cpp, built with the package for each instruction set (`nvcim.compiled`).

Where there is none everything runs in plain torch, several times slower; that is logged once, and `kernel_status`
tells. Draws, writes and quantisation are the same to the bit either way; products are the same on every instruction set
and differ from torch's by rounding, because sums run in another order.
"""

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from nvcim.compiled import Kernel, load_kernel

_SOURCE = Path(__file__).with_name("kernel.cpp")

_POINTER, _INT64, _INT32, _UINT32, _FLOAT = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int32,
    ctypes.c_uint32,
    ctypes.c_float,
)


class ReadArguments(ctypes.Structure):
    """`read_args` of kernel.cpp, which documents the fields."""

    _fields_ = (
        *((name, _POINTER) for name in ("part", "variance", "noise_row", "noise_col", "adc_row", "adc_col")),
        *((name, _POINTER) for name in ("adc_gain", "adc_shift", "keys", "first", "out")),
        *((name, _INT64) for name in ("devices", "tiles", "vectors", "outputs")),
        *((name, _INT64) for name in ("out_device", "out_vector")),
        ("top", _FLOAT),
        ("alpha", _FLOAT),
        ("accumulate", _INT32),
        ("purpose", _UINT32),
        ("threads", _INT32),
    )


class ProductArguments(ctypes.Structure):
    """`product_args` of kernel.cpp, which documents the fields."""

    _fields_ = (
        ("read", ReadArguments),
        *((name, _POINTER) for name in ("x", "weight", "variance")),
        *((name, _INT64) for name in ("inputs", "tile_rows", "x_device")),
        ("alphas", _POINTER),
        ("groups", _INT64),
        ("group_purpose", _UINT32),
        ("half", _INT32),
    )


class ProgramArguments(ctypes.Structure):
    """`program_args` of kernel.cpp, which documents the fields."""

    _fields_ = (
        *(
            (name, _POINTER)
            for name in ("integers", "scale", "conductance", "sigma", "shift", "mask", "stride")
        ),
        *((name, _POINTER) for name in ("factor", "keys", "write", "total", "squares")),
        *((name, _INT64) for name in ("devices", "cells", "stride_device", "outputs", "levels", "slices")),
        *((name, _INT32) for name in ("sides", "offset", "spare", "noisy")),
        ("purpose", _UINT32),
        ("threads", _INT32),
    )


class PatchArguments(ctypes.Structure):
    """`patch_args` of kernel.cpp, which documents the fields."""

    _fields_ = (
        *((name, _POINTER) for name in ("image", "driven", "full_scale", "squares")),
        ("shape", _INT64 * 7),
        ("stride", _INT64 * 7),
        ("tile_rows", _INT64),
        ("top", _FLOAT),
        ("given", _INT32),
        ("threads", _INT32),
    )


def fill(structure: ctypes.Structure, values: Mapping[str, Tensor | int | float | bool | None]) -> None:
    """Set the fields of an argument structure; tensors by address, so the caller keeps them alive."""
    for name, value in values.items():
        setattr(structure, name, value.data_ptr() if isinstance(value, Tensor) else value)


def kernel_for(*tensors: Tensor | None) -> ctypes.CDLL | None:
    """Return the compiled kernel if it can serve these tensors (all on the CPU), else None: plain torch."""
    if any(tensor is not None and tensor.device.type != "cpu" for tensor in tensors):
        return None
    return _load().library


def kernel_status() -> str:
    """One line: whether reads and writes on the CPU run compiled or in plain torch, and why."""
    return _load().status


@lru_cache(maxsize=1)
def _load() -> Kernel:
    kernel = load_kernel(_SOURCE, "crossbars run in", "plain torch")
    if kernel.library is not None:
        _declare(kernel.library)
    return kernel


def _declare(library: ctypes.CDLL) -> None:
    library.nvcim_normals.argtypes = (
        _POINTER, _INT64, _UINT32, _POINTER, _INT64, _INT64, _POINTER, _INT32,
    )  # fmt: skip
    library.nvcim_normals.restype = None
    library.nvcim_uniforms.argtypes = (_POINTER, _INT64, _UINT32, _POINTER, _INT64, _POINTER, _INT32)
    library.nvcim_uniforms.restype = None
    library.nvcim_drive.argtypes = (
        _POINTER, _INT64, _INT64, _INT64, _FLOAT, _INT32, _POINTER, _POINTER, _POINTER, _INT32,
    )  # fmt: skip
    library.nvcim_drive.restype = _INT64
    library.nvcim_quantize.argtypes = (
        *(_POINTER, _INT64, _INT64, _INT64, _FLOAT, _INT32, _INT64),
        *(_POINTER, _POINTER, _POINTER, _INT32),
    )
    library.nvcim_quantize.restype = None
    library.nvcim_column_sums.argtypes = (_POINTER, *(_INT64,) * 4, _INT32, _POINTER, _INT32)
    library.nvcim_column_sums.restype = None
    library.nvcim_read.argtypes = (ctypes.POINTER(ReadArguments),)
    library.nvcim_read.restype = _INT64
    library.nvcim_product_read.argtypes = (ctypes.POINTER(ProductArguments),)
    library.nvcim_product_read.restype = _INT64
    library.nvcim_program.argtypes = (ctypes.POINTER(ProgramArguments),)
    library.nvcim_program.restype = None
    library.nvcim_patches.argtypes = (ctypes.POINTER(PatchArguments),)
    library.nvcim_patches.restype = _INT64
