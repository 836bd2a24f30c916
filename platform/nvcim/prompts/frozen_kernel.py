"""frozen_kernel.cpp, built by the machine's C++ compiler on first use and kept in a cache; its structures for ctypes.

Where there is no compiler, or with `NVCIM_KERNEL=plain` in the environment, there is no kernel and models run through
their own forward pass, several times slower; that is logged once, and `frozen_kernel_status` tells.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("frozen_kernel.cpp")
_FLAGS = (
    "-O3",
    "-march=native",
    *(["-mprefer-vector-width=512"] if platform.machine() in {"x86_64", "AMD64"} else []),
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-std=gnu++17",
)
_log = logging.getLogger(__name__)
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
    return _load()[0]


def frozen_kernel_status() -> str:
    """One line: whether tuning on the CPU runs compiled or through the model's own forward pass, and why."""
    return _load()[1]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("NVCIM_KERNEL") == "plain":
        return None, "the model's own forward pass (NVCIM_KERNEL=plain)"
    try:
        library = _declare(_build())
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        status = f"the model's own forward pass, slower (no compiled kernel: {said[-1] if said else error})"
        _log.warning("prompts are tuned through %s", status)
        return None, status
    return library, "compiled for this CPU"


def _build() -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler on the PATH")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    facts = [_SOURCE.read_text(encoding="utf-8"), version, " ".join(_FLAGS), torch.__version__, _cpu()]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    target = _cache_folder() / f"frozen-{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "kernel.so"
            # Linked without an OpenMP library of its own, so that it runs on the threads that torch brought along.
            for command in (
                [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(made.with_suffix(".o"))],
                [compiler, "-shared", str(made.with_suffix(".o")), "-o", str(made)],
            ):
                subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(target)  # atomic: several processes may build at once
    return ctypes.CDLL(str(target))


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
    library.nvcim_frozen_half.argtypes = ()
    library.nvcim_frozen_half.restype = _INT32
    return library
