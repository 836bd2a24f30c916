"""Builds the kernels: plain shared libraries, one for each instruction set of the build machine's architecture.

`nvcim.compiled` chooses among them at run time. They are optional: without a compiler (GCC) the package installs all
the same and runs in plain torch. Everything else about the package stands in pyproject.toml.
"""

import hashlib
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PACKAGE = "platform/nvcim"
# What each name stands for: x86-64-v4 and -v3 as far as torch's own kernels ask for them, and Armv8-A.
X86 = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
}
INSTRUCTION_SETS = {"x86_64": X86, "AMD64": X86, "aarch64": {"neon": ()}, "arm64": {"neon": ()}}
FLAGS = (
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-std=gnu++17",
    "-Wno-maybe-uninitialized",
)
SOURCES = {
    # -ffp-contract=off: a*b+c rounds twice, as in torch, so that compiled and plain draws agree to the bit.
    "crossbar/kernel.cpp": ("-ffp-contract=off",),
    "prompts/frozen_kernel.cpp": ("-ffp-contract=fast",),
}


def kernels() -> list[Extension]:
    """An extension for each source and instruction set."""
    header = f"{PACKAGE}/vectors.h"
    extensions = []
    for source, flags in SOURCES.items():
        path = f"{PACKAGE}/{source}"
        # nvcim.compiled compares this with the sources where they lie beside the library.
        digest = hashlib.sha256((ROOT / path).read_bytes() + (ROOT / header).read_bytes()).hexdigest()
        for isa, own in INSTRUCTION_SETS.get(platform.machine(), {}).items():
            extensions.append(
                Extension(
                    f"nvcim.{source.removesuffix('.cpp').replace('/', '.')}_{isa}",
                    [path],
                    depends=[header],
                    # Linked without an OpenMP library of its own, a kernel runs on the threads that torch brought
                    # along; two OpenMP runtimes in one process would compete for the cores.
                    extra_compile_args=[*FLAGS, *flags, *own, f'-DNVCIM_SOURCES="{digest}"'],
                    optional=True,
                )
            )
    return extensions


class build_kernels(build_ext):
    """Extensions that are no Python modules: named without Python's suffix, objects of each in a folder of its own."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's path below the packages' root; with a dot in its name nobody takes it for a module."""
        kernel, _, isa = fullname.rpartition("_")
        return f"{kernel.replace('.', '/')}.{isa}.so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one library."""
        folder = self.build_temp
        self.build_temp = str(Path(folder) / ext.name)
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = folder


setup(ext_modules=kernels(), cmdclass={"build_ext": build_kernels})
