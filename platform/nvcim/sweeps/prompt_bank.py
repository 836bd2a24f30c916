"""Tuned prompts before they are written anywhere, so that each trial can program them to a crossbar of its own."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import Sample, UserStream
from nvcim.errors import DataError, RunError
from nvcim.fleet.node import EdgeNode
from nvcim.prompts.methods import NVCIM_PT
from nvcim.prompts.personaliser import CodeJob, Personaliser
from nvcim.prompts.personaliser_files import load_personaliser, save_personaliser
from nvcim.randomness import named_seed
from nvcim.storage.files import atomic_write_bytes, atomic_write_text

BANK_FILE = "bank.json"
_CODES_FILE = "codes.safetensors"


@dataclass(frozen=True)
class StoredSet:
    """One user's token set: its code [tokens, code], and the domain it was tuned for (empty: not known)."""

    user_id: str
    label: str
    codes: Tensor


@dataclass(frozen=True)
class PromptBank:
    """Token sets of some users, the queries they are scored on, and what tuned them."""

    personaliser: Personaliser
    sets: tuple[StoredSet, ...]
    queries: tuple[Sample, ...]

    def programmed(self, config: CrossbarConfig, seed: int) -> dict[str, EdgeNode]:
        """A node per user whose crossbar holds the user's sets, programmed anew; draws derive from `seed`.

        Raises:
            ConfigError, DeviceError: no such array.
        """
        nodes: dict[str, EdgeNode] = {}
        for stored in self.sets:
            if stored.user_id not in nodes:
                nodes[stored.user_id] = EdgeNode.new(stored.user_id, config, seed, self.personaliser)
            nodes[stored.user_id].write(NVCIM_PT.name, stored.codes, stored.label)
        return nodes

    def save(self, folder: Path) -> None:
        """Write the bank; complete or not at all (`bank.json` goes last)."""
        save_personaliser(self.personaliser, folder)
        codes = {str(index): stored.codes.contiguous() for index, stored in enumerate(self.sets)}
        atomic_write_bytes(folder / _CODES_FILE, save(codes))
        content = {
            "sets": [{"user_id": stored.user_id, "label": stored.label} for stored in self.sets],
            "queries": [asdict(query) for query in self.queries],
        }
        atomic_write_text(folder / BANK_FILE, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "PromptBank":
        """Read what `save` wrote.

        Raises:
            RunError: the folder holds no bank, or an incomplete one.
            ModelError: its language model cannot be loaded.
        """
        try:
            content = json.loads((folder / BANK_FILE).read_text(encoding="utf-8"))
            codes = load((folder / _CODES_FILE).read_bytes())
            sets = tuple(
                StoredSet(about["user_id"], about["label"], codes[str(index)])
                for index, about in enumerate(content["sets"])
            )
            queries = tuple(Sample(**query) for query in content["queries"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunError(f"{folder}: not a prompt bank ({type(error).__name__}: {error})") from error
        return cls(load_personaliser(folder, "auto"), sets, queries)


def tune_bank(
    streams: Sequence[UserStream],
    personaliser: Personaliser,
    config: CrossbarConfig,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
) -> PromptBank:
    """Tune every user's token sets, noise-aware for `config`, a buffer of samples at a time.

    `on_step(done, total)` is called after each optimiser step of each buffer's batch.

    Raises:
        DataError: no user, or one without history or queries.
    """
    for stream in streams:
        if not stream.history or not stream.queries:
            raise DataError(f"user '{stream.user_id}' has no history to learn from, or no query to answer")
    if not streams:
        raise DataError("a prompt bank needs at least one user")
    size = personaliser.settings.buffer
    owners: list[str] = []
    jobs: list[CodeJob] = []
    for stream in streams:
        for start in range(0, len(stream.history), size):
            own = named_seed(seed, "prompt bank", stream.user_id, start)
            made = personaliser.jobs(stream.history[start : start + size], config, own)
            owners += [stream.user_id] * len(made)
            jobs += made
    tuning = personaliser.settings.tuning
    batches = math.ceil(sum(len(entry.job.samples) for entry in jobs) / tuning.rows_per_batch)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if on_step is not None:
            on_step(steps, max(steps, batches * tuning.steps))  # a batch may be cut short by a large job

    tuned = personaliser.tune(jobs, NVCIM_PT, step)
    sets = tuple(StoredSet(o, t.label, t.codes) for o, t in zip(owners, tuned, strict=True))
    return PromptBank(personaliser, sets, tuple(query for stream in streams for query in stream.queries))
