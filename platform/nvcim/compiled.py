"""The kernels that the package's build compiled (setup.py), and which of them this processor runs.

A kernel is a shared library for each instruction set: `avx512`, `avx2`, `neon`. Torch says what the processor has, so
torch's own `ATEN_CPU_CAPABILITY` (`avx2`, `default`) restricts torch and the kernels alike. `NVCIM_KERNEL=plain` asks
to do without. A package that was installed without a compiler has none.
"""

import ctypes
import hashlib
import logging
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch  # loaded first: a kernel takes its OpenMP from torch

from nvcim.errors import ConfigError

HEADER = Path(__file__).with_name("vectors.h")
_log = logging.getLogger(__name__)


class Kernel(NamedTuple):
    """What came of a source.

    Attributes:
        library: the shared library, its functions not yet declared; None where it cannot be had.
        status: one line: what it is compiled for, or what runs in its stead and why.
    """

    library: ctypes.CDLL | None
    status: str


def instruction_set() -> str | None:
    """`avx512`, `avx2` or `neon`: what kernels are compiled for and both this processor and torch's settings allow."""
    if platform.machine() in {"aarch64", "arm64"}:
        return "neon"
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(capability)


def load_kernel(source: Path, work: str, otherwise: str) -> Kernel:
    """Load what was built from a source, or say why not; a lack that nobody asked for is logged as a warning.

    Args:
        source: a .cpp file whose functions are `extern "C"`; its libraries lie beside it.
        work: what the kernel is for, as the log's words before `otherwise`: "crossbars run in".
        otherwise: what runs, slower, without it: "plain torch".

    Callers keep the result: each call looks again.

    Raises:
        ConfigError: `NVCIM_KERNEL` has an unknown value.
    """
    asked = os.environ.get("NVCIM_KERNEL", "")
    if asked not in {"", "plain"}:
        raise ConfigError(f"NVCIM_KERNEL is '{asked}'; 'plain' asks for plain torch, nothing else is known")
    if asked == "plain":
        return Kernel(None, f"{otherwise} (NVCIM_KERNEL=plain)")
    isa = instruction_set()
    try:
        return Kernel(_library(source, isa), f"compiled for {str(isa).upper()}")
    except OSError as error:
        status = f"{otherwise}, slower (no compiled kernel: {error})"
        _log.warning("%s %s", work, status)
        return Kernel(None, status)


def _library(source: Path, isa: str | None) -> ctypes.CDLL:
    if isa is None:
        what = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
        raise OSError(f"there is none for {what}; there are AVX2, AVX512 and NEON")
    path = source.with_name(f"{source.stem}.{isa}.so")
    if not path.exists():
        raise OSError(f"{path.name} was not built; installing the package where there is GCC builds it")
    library = ctypes.CDLL(str(path))
    try:
        built_from = ctypes.c_char_p.in_dll(library, "nvcim_sources").value
    except ValueError as error:
        raise OSError(f"{path.name} is no kernel of this package") from error
    # Sources lie beside in a checkout: a library of older ones might take other structures.
    if source.exists() and built_from != _digest(source):
        raise OSError(f"{path.name} is older than its sources; `make install` builds it again")
    return library


def _digest(source: Path) -> bytes:
    return hashlib.sha256(source.read_bytes() + HEADER.read_bytes()).hexdigest().encode()
