"""Which instruction set a benchmark runs on: our kernels', torch's, MKL's and oneDNN's, restricted together.

All of them read environment variables as they are loaded, so a restriction starts the process anew. Our kernels follow
torch's `ATEN_CPU_CAPABILITY`.
"""

import os
import platform
from collections.abc import Mapping, Sequence

import torch

RESTRICTIONS: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
    "native": {},
}
"""Variables by what `--isa` takes; native: none of them."""
VARIABLES = tuple(RESTRICTIONS["avx2"])
NEEDED = {
    "avx512": ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl", "avx2", "fma3"),
    "avx2": ("avx2", "fma3"),
}
"""What a processor must have, the widest first: torch takes `ATEN_CPU_CAPABILITY` on trust, and would stop at the first
instruction that is not there."""


class WrongInstructionSet(Exception):
    """The machine cannot run what was asked for, or torch does not follow; one line that names what there is."""


def restrict(isa: str, command: Sequence[str]) -> None:
    """Replace this process by `command` under the restriction, unless it runs under it already.

    Args:
        isa: a key of `RESTRICTIONS`.
        command: the interpreter and its arguments, the same `--isa` among them.

    Raises:
        WrongInstructionSet: the processor lacks the instruction set, or torch uses another although it was restricted.
    """
    if isa in NEEDED and not _has(isa):
        raise WrongInstructionSet(f"--isa {isa}: this machine has {_widest()}")
    wanted = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    wanted |= RESTRICTIONS[isa]
    if wanted != dict(os.environ):
        os.execve(command[0], list(command), wanted)
    found = torch.backends.cpu.get_cpu_capability()
    if isa in NEEDED and found.lower() != isa:
        raise WrongInstructionSet(
            f"--isa {isa}: torch uses {found} all the same; this machine has {_widest()}"
        )


def in_use() -> dict[str, str]:
    """For the report: what torch's own loops use, and the variables that restrict it and its libraries."""
    restricted = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    return {
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "restricted_by": " ".join(restricted) or "nothing",
    }


def _has(isa: str) -> bool:
    has = torch.cpu.get_capabilities()
    return all(has.get(name, False) for name in NEEDED[isa])


def _widest() -> str:
    return next((isa.upper() for isa in NEEDED if _has(isa)), f"neither ({platform.machine()})")
