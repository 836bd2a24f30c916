"""Named randomness: every draw comes from a generator that is seeded by what it is for.

A result is then the same however nodes are packed on hosts and in whatever order they ran.
"""

import hashlib

import torch


def named_seed(run_seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on the run's seed and on every name, and on nothing else."""
    text = "\x1f".join([str(run_seed), *(str(name) for name in names)])
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def named_generator(run_seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for (run seed, names), for example `named_generator(7, "node-3", "write", 12)`."""
    return torch.Generator().manual_seed(named_seed(run_seed, *names))
