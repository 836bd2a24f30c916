"""Peak memory of making, programming and reading one crossbar, as Linux counts resident pages.

To be run in a process of its own, with `MALLOC` in its environment: then every large tensor is mapped and unmapped
by itself, and no memory freed earlier hides what is asked for later.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator

from nvcim.crossbar import Crossbar, CrossbarConfig

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}  # setting one ends glibc's adapting


@dataclass(frozen=True)
class Peak:
    """Bytes.

    Attributes:
        operands: weight, inputs and outputs.
        whole: peak of making inputs, programming and reading, over what was resident before.
        read: peak of the first read, over what was resident after programming.
    """

    operands: int
    whole: int
    read: int

    def __str__(self) -> str:
        parts = (("operands", self.operands), ("peak", self.whole), ("read", self.read))
        return ", ".join(f"{name} {value / 2**20:.1f} MiB" for name, value in parts)


def peak_of_first_case(features: int, batch: int, config: CrossbarConfig) -> Peak | None:
    """Measure weights [features, features] programmed as `config` and read by [batch, features].

    Beforehand a torch.matmul of that shape and a small crossbar are run, so that libraries, threads and the BLAS
    library's buffers are there already. None where the kernel cannot start a new peak.
    """
    _warm_up(features, batch, config)
    if not _new_peak():
        return None
    before = _status("VmRSS")
    draws = Generator().manual_seed(0)
    weight = torch.randn(features, features, generator=draws)
    x = torch.randn(batch, features, generator=draws)
    crossbar = Crossbar.program(weight, config, draws)
    programmed, highest = _status("VmRSS"), _status("VmHWM")
    _new_peak()
    y = crossbar.matmul(x)
    reading = _status("VmHWM")
    operands = sum(tensor.numel() * tensor.element_size() for tensor in (weight, x, y))
    return Peak(operands, max(highest, reading) - before, reading - programmed)


def _warm_up(features: int, batch: int, config: CrossbarConfig) -> None:
    torch.matmul(torch.ones(batch, features), torch.ones(features, features))
    draws = Generator().manual_seed(0)
    small = torch.randn(2 * config.rows, 2 * config.cols, generator=draws)
    Crossbar.program(small, config, draws).matmul(torch.ones(8, len(small)))


def _new_peak() -> bool:
    """Let VmHWM start again from what is resident now (proc(5): 5 into clear_refs); False where that has no effect."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return abs(_status("VmHWM") - _status("VmRSS")) < 2**20  # some sandboxes accept the write and ignore it


def _status(field: str) -> int:
    """A size in bytes from /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024
