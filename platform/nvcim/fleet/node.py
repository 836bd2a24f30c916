"""One emulated edge device: plain data. What many nodes do at once are functions over nodes, in shared batches.

A node observes its user's stream into a buffer; a full buffer is drained, its representatives become token sets, and
those are written to the node's own crossbar (its device, its draws). A question searches that crossbar.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import Sample
from nvcim.errors import ConfigError, DataError, RunError
from nvcim.fleet.node_folders import NODE_FILE
from nvcim.prompts.buffer import DataBuffer
from nvcim.prompts.generation import generate
from nvcim.prompts.memory import PromptMemory
from nvcim.prompts.methods import NVCIM_PT, ONE_FOR_ALL, PLAIN_MIPS, Method
from nvcim.prompts.personaliser import CodeJob, Personaliser, TunedCode
from nvcim.prompts.prefix_cache import PrefixCache
from nvcim.randomness import named_generator, named_seed
from nvcim.storage.files import atomic_write_bytes, atomic_write_text

METHODS = {method.name: method for method in (NVCIM_PT, PLAIN_MIPS)}
"""Methods by which a node learns from its buffer; each has a memory of its own."""
CHOICE_COLUMNS = {
    "choice_rule": "rule",
    "choice_k": "k",
    "choice_silhouette": "silhouette",
    "choice_cosine": "cosine",
    "choice_cluster": "cluster_size",
    "choice_buffer": "buffer",
}
"""Columns of a written set's row, and the keys of `CodeJob.choice` that they show."""
UNTUNED = "untuned"
"""The frozen LM without virtual tokens."""


@dataclass(frozen=True)
class Answer:
    """A node's answer: the text, and which stored set it was generated with (None: without)."""

    text: str
    slot: int | None
    label: str | None
    score: float | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


@dataclass
class EdgeNode:
    """State of one node.

    Attributes:
        node_id: unique in a fleet; a user's endpoint id.
        config: the node's crossbar, device included.
        seed: the run's seed; every draw is named by it, the node, its purpose and a count.
        buffer: samples since the last learning.
        memories: a prompt memory per method.
        observed: samples seen so far.
        learnt: how often the buffer was learnt from.
    """

    node_id: str
    config: CrossbarConfig
    seed: int
    buffer: DataBuffer
    memories: dict[str, PromptMemory] = field(default_factory=dict)
    observed: int = 0
    learnt: int = 0

    @classmethod
    def new(cls, node_id: str, config: CrossbarConfig, seed: int, personaliser: Personaliser) -> "EdgeNode":
        """A node that has seen nothing yet.

        Raises:
            DeviceError: a device that the catalogue does not hold.
        """
        config.cell()  # refused here, not at the first write
        settings = personaliser.settings
        memories = {name: personaliser.new_memory(config, settings.capacity) for name in METHODS}
        memories[ONE_FOR_ALL.name] = personaliser.new_memory(config, 1)
        return cls(node_id, config, seed, DataBuffer(settings.buffer), memories)

    def observe(self, sample: Sample) -> None:
        """Take one sample of the user's stream."""
        self.buffer.add(sample)
        self.observed += 1

    def write(self, method: str, codes: torch.Tensor, label: str) -> int:
        """Program a token set; its draw is named by node, method and write count. Returns its place."""
        memory = self.memories[method]
        generator = named_generator(self.seed, self.node_id, "write", method, memory.written)
        return memory.write(codes, label, generator)

    def save(self, folder: Path) -> None:
        """Write the node's state; complete or not at all.

        Cells go to a file of a new name, `node.json` then names it, and only then the older file goes: a process that
        ends anywhere in between leaves the state before or after.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{method}/{key}": value.contiguous()
            for method, memory in self.memories.items()
            for key, value in memory.state_dict().items()
        }
        cells = save(tensors)
        name = f"cells-{hashlib.sha256(cells).hexdigest()[:16]}.safetensors"
        atomic_write_bytes(folder / name, cells)
        content = {
            "cells": name,
            "node_id": self.node_id,
            "seed": self.seed,
            "observed": self.observed,
            "learnt": self.learnt,
            "config": self.config.model_dump(mode="json"),
            "buffer": {
                "capacity": self.buffer.capacity,
                "samples": [asdict(sample) for sample in self.buffer],
            },
            "memories": {method: _describe(memory) for method, memory in self.memories.items()},
        }
        atomic_write_text(folder / NODE_FILE, json.dumps(content, indent=1))
        for older in folder.glob("cells-*.safetensors"):
            if older.name != name:
                older.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> "EdgeNode":
        """Read what `save` wrote: the same cells, not a new draw.

        Raises:
            RunError: the folder does not hold a node, or an incomplete one.
        """
        try:
            content = json.loads((folder / NODE_FILE).read_text(encoding="utf-8"))
            tensors = load_file(folder / str(content["cells"]))
            config = CrossbarConfig.model_validate(content["config"])
            samples = [Sample(**sample) for sample in content["buffer"]["samples"]]
            memories = {}
            for method, about in content["memories"].items():
                memory = PromptMemory(
                    config,
                    about["tokens"],
                    about["code"],
                    about["capacity"],
                    replacement=about.get("replacement", "oldest"),  # files of before the rule was saved
                )
                state = {k.partition("/")[2]: v for k, v in tensors.items() if k.partition("/")[0] == method}
                memory.load_state(state, about["labels"], about["writes"])
                memories[method] = memory
            return cls(
                content["node_id"],
                config,
                content["seed"],
                DataBuffer(content["buffer"]["capacity"], samples),
                memories,
                content["observed"],
                content["learnt"],
            )
        except (OSError, ValueError, KeyError, TypeError, ConfigError, SafetensorError) as error:
            raise RunError(f"{folder}: not a complete node ({type(error).__name__}: {error})") from error


def learn(
    nodes: Sequence[EdgeNode],
    personaliser: Personaliser,
    methods: Sequence[Method] = tuple(METHODS.values()),
    on_step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Let every node with a non-empty buffer learn from it, all in shared batches; returns a row per set written.

    Buffers are emptied and memories written once every method's sets are tuned: an error until then leaves all nodes
    as they were.

    Raises:
        DataError: what cannot be tuned, see `nvcim.prompts.tuning.tune`.
        ModelError: a sentence encoder that cannot be used.
    """
    learning = [node for node in {id(node): node for node in nodes}.values() if len(node.buffer)]
    owners: list[EdgeNode] = []
    jobs: list[CodeJob] = []
    for node in learning:
        seed = named_seed(node.seed, node.node_id, "learn", node.learnt)
        own = personaliser.jobs(tuple(node.buffer), node.config, seed)
        owners += [node] * len(own)
        jobs += own
    tuned = [personaliser.tune(jobs, method, on_step) for method in methods]
    for node in learning:
        node.buffer.drain()
        node.learnt += 1
    return [
        row for method, sets in zip(methods, tuned, strict=True) for row in _write(owners, jobs, sets, method)
    ]


def learn_one_for_all(
    nodes: Sequence[EdgeNode],
    samples: Sequence[Sequence[Sample]],
    personaliser: Personaliser,
    on_step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The baseline: for each node one set tuned on samples[i], from all of its domains."""
    jobs = [
        personaliser.one_for_all_job(some, node.config, named_seed(node.seed, node.node_id, "one-for-all"))
        for node, some in zip(nodes, samples, strict=True)
    ]
    return _write(nodes, jobs, personaliser.tune(jobs, ONE_FOR_ALL, on_step), ONE_FOR_ALL)


def answer(
    nodes: Sequence[EdgeNode],
    questions: Sequence[str],
    personaliser: Personaliser,
    method: str = NVCIM_PT.name,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    cache: PrefixCache | None = None,
    stops: Sequence[Sequence[str]] | None = None,
) -> list[Answer]:
    """nodes[i] answers questions[i]; searches run on each node's array, generation in one batch.

    A node whose memory is empty answers untuned, and its answer says so (`slot` is None). `cache` keeps the keys and
    values of sets that answer again and again; `stops` are texts that end an answer, a list for each question.

    Raises:
        DataError: a question that does not fit the context, or an unknown method.
    """
    if method not in (*METHODS, ONE_FOR_ALL.name, UNTUNED):
        raise DataError(
            f"method '{method}' is not known; allowed: {', '.join((*METHODS, ONE_FOR_ALL.name, UNTUNED))}"
        )
    found: list[_Found] = [_Found()] * len(questions)
    if method != UNTUNED and questions:
        found = _search(nodes, questions, personaliser, method)
    tokens = [one.tokens for one in found]
    limit = personaliser.settings.max_new_tokens if max_new_tokens is None else max_new_tokens
    texts = generate(personaliser.lm, questions, tokens, limit, temperature, seed, cache, stops)
    return [
        Answer(
            text.text,
            one.place,
            None if one.place is None else node.memories[method].slots[one.place].label,
            one.score,
            text.prompt_tokens,
            text.completion_tokens,
            text.finish_reason,
        )
        for node, one, text in zip(nodes, found, texts, strict=True)
    ]


@dataclass(frozen=True)
class _Found:
    """What a search found: the place, its score, and the virtual tokens; nothing in an empty memory."""

    place: int | None = None
    score: float | None = None
    tokens: torch.Tensor | None = None


def _search(
    nodes: Sequence[EdgeNode], questions: Sequence[str], personaliser: Personaliser, method: str
) -> list[_Found]:
    """The best stored set per question; the questions of one node share one read of its array."""
    codes = personaliser.encode_queries(questions)
    asked: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        asked.setdefault(node.node_id, []).append(i)
    found = [_Found()] * len(questions)
    for indices in asked.values():
        memory = nodes[indices[0]].memories[method]
        if len(memory):
            hits = personaliser.find(memory, codes[indices], METHODS.get(method, ONE_FOR_ALL))
            for i, place, score, tokens in zip(indices, *hits, strict=True):
                found[i] = _Found(place, score, tokens)
    return found


def _write(
    owners: Sequence[EdgeNode], jobs: Sequence[CodeJob], tuned_sets: Sequence[TunedCode], method: Method
) -> list[dict[str, Any]]:
    """Write each owner's tuned set; returns a row per set."""
    rows = []
    for node, job, tuned in zip(owners, jobs, tuned_sets, strict=True):
        place = node.write(method.name, tuned.codes, tuned.label)
        rows.append(
            {
                "node_id": node.node_id,
                "device": node.config.device,
                "method": method.name,
                "sample": tuned.result.name,
                "label": tuned.label,
                "slot": place,
                "first_loss": tuned.result.first_loss,
                "last_loss": tuned.result.last_loss,
                "steps": tuned.result.steps,
                "stopped": tuned.result.stopped,
                "truncated": tuned.result.truncated,
                **{column: job.choice.get(key) for column, key in CHOICE_COLUMNS.items()},
                "basis": "measured",
            }
        )
    return rows


def _describe(memory: PromptMemory) -> dict[str, Any]:
    """What a memory's state needs beside its cells."""
    return {
        "tokens": memory.tokens,
        "code": memory.code,
        "capacity": memory.capacity,
        "replacement": memory.replacement,
        "labels": [slot.label for slot in memory.slots],
        "writes": [slot.writes for slot in memory.slots],
    }
