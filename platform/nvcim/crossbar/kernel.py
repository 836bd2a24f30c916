"""The compiled inner loops: kernel.cpp, built by the machine's C++ compiler on first use and kept in a cache.

Where there is no compiler (GCC; others lack some of what the source uses) everything runs in plain torch, several times
slower; that is logged once, and `kernel_status` tells. Draws, writes and quantisation are the same to the bit either
way; products differ by rounding, because sums run in another order. `NVCIM_KERNEL=plain` in the environment asks for
plain torch.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("kernel.cpp")
# -ffp-contract=off: a*b+c rounds twice, as in torch, so that compiled and plain draws agree to the bit.
_FLAGS = [
    "-O3",
    "-march=native",
    *(["-mprefer-vector-width=512"] if platform.machine() in {"x86_64", "AMD64"} else []),
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-std=gnu++17",
]
_log = logging.getLogger(__name__)

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
    return _load()[0]


def kernel_status() -> str:
    """One line: whether reads and writes on the CPU run compiled or in plain torch, and why."""
    return _load()[1]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("NVCIM_KERNEL") == "plain":
        return None, "plain torch (NVCIM_KERNEL=plain)"
    try:
        library = _declare(_build())
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        status = (
            f"plain torch, slower (the compiled kernel is not available: {reason[-1] if reason else error})"
        )
        _log.warning("crossbars run in %s", status)
        return None, status
    return library, "compiled for this CPU"


def _build() -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler on the PATH")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    facts = [_SOURCE.read_text(encoding="utf-8"), version, " ".join(_FLAGS), torch.__version__, _cpu()]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    target = _cache_folder() / f"kernel-{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "kernel.so"
            _compile(compiler, made)
            made.replace(target)  # atomic: several processes may build at once
    return ctypes.CDLL(str(target))


def _compile(compiler: str, target: Path) -> None:
    # Linked without an OpenMP library of its own, the kernel runs on the threads that torch brought along;
    # two OpenMP runtimes in one process would compete for the cores.
    made = target.with_suffix(".o")
    commands = (
        [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(made)],
        [compiler, "-shared", str(made), "-o", str(target)],
    )
    for command in commands:
        subprocess.run(command, capture_output=True, text=True, check=True)


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvcim"
    base.mkdir(parents=True, exist_ok=True)
    return base


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
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
    return library
