"""C++ sources of this package, built by the machine's compiler on first use and kept in the user's cache folder.

`NVCIM_KERNEL=plain` in the environment asks to do without. The sources use vector types of GCC; other compilers lack
some of them, and then `load_kernel` says so.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch  # loaded first: a kernel takes its OpenMP from torch

FLAGS = (
    "-O3",
    "-march=native",
    *(("-mprefer-vector-width=512",) if platform.machine() in {"x86_64", "AMD64"} else ()),
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-std=gnu++17",
)
_log = logging.getLogger(__name__)


class Kernel(NamedTuple):
    """What came of a source.

    Attributes:
        library: the shared library, its functions not yet declared; None where it cannot be had.
        status: one line: that it is compiled, or what runs in its stead and why.
    """

    library: ctypes.CDLL | None
    status: str


def load_kernel(source: Path, work: str, otherwise: str, flags: Sequence[str] = ()) -> Kernel:
    """Compile and load a source, or say why not; a lack that nobody asked for is logged as a warning.

    Args:
        source: a .cpp file whose functions are `extern "C"`.
        work: what the kernel is for, as the log's words before `otherwise`: "crossbars run in".
        otherwise: what runs, slower, without it: "plain torch".
        flags: of the compiler, after `FLAGS`.

    Callers keep the result: each call asks the compiler for its version.
    """
    if os.environ.get("NVCIM_KERNEL") == "plain":
        return Kernel(None, f"{otherwise} (NVCIM_KERNEL=plain)")
    try:
        library = ctypes.CDLL(str(_built(source, (*FLAGS, *flags))))
    except (
        OSError,
        RuntimeError,
        subprocess.SubprocessError,
    ) as error:  # RuntimeError: a user without a home
        status = f"{otherwise}, slower (no compiled kernel: {_reason(error)})"
        _log.warning("%s %s", work, status)
        return Kernel(None, status)
    return Kernel(library, "compiled for this CPU")


def _reason(error: Exception) -> str:
    said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
    # A compiler ends with the line at fault and a caret under it; its message stands above.
    return next((line for line in said if "error:" in line), said[-1] if said else repr(error))


def _built(source: Path, flags: Sequence[str]) -> Path:
    """The shared library in the cache, under a name that changes with all that it depends on."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler on the PATH")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    facts = [source.read_text(encoding="utf-8"), version, " ".join(flags), torch.__version__, _cpu()]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    target = _cache_folder() / f"{source.stem}-{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "kernel.so"
            _compile(compiler, source, flags, made)
            made.replace(target)  # atomic: several processes may build at once
    return target


def _compile(compiler: str, source: Path, flags: Sequence[str], target: Path) -> None:
    # Linked without an OpenMP library of its own, the kernel runs on the threads that torch brought along;
    # two OpenMP runtimes in one process would compete for the cores.
    made = target.with_suffix(".o")
    commands = (
        [compiler, *flags, "-c", str(source), "-o", str(made)],
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
