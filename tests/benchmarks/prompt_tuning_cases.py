"""What tuning many users' prompts at once costs, against PEFT's prompt tuning of one after the other.

Reference: peft.PromptTuningConfig, get_peft_model and torch.optim.Adam with the same model, samples, starts, steps and
falling learning rate. The ladder shows what each saving gains, in the order in which they were built up.
"""

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from torch import Tensor
from torch.nn import functional

from nvcim.prompts import tuning
from nvcim.prompts.batching import left_padded, position_ids, with_virtual_tokens
from nvcim.prompts.frozen_decoder import CPU_ROWS, FrozenDecoder, Shortcuts, unknown
from nvcim.prompts.frozen_rows import FrozenRows, Gradients, PlainRows, Row
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import FINAL_RATE, TuningJob, TuningSettings, tune
from tests.benchmarks.cases import SMOKE, Case, Run, Setup
from tests.benchmarks.plain import beside_plain
from tests.benchmarks.timing import Result, alternate

UNIT = "x PEFT one by one"
AT_MOST = {1: 1 / 2.5, 2: 1 / 4}
"""Limits by threads: at least 2.5 times as fast on one, 4 times on two."""
AT_MOST_GPU = 1 / 20
FULL_REPEATS = 3  # runs of all steps take long, and are steady for that
LADDER_STEPS = 6


@dataclass(frozen=True)
class Work:
    """Jobs of one sample each of about `length` ids; `steps` 0: the settings' default."""

    jobs: int = 64
    length: int = 64
    tokens: int = 8
    steps: int = 0

    def settings(self) -> TuningSettings:
        changes = {"tokens": self.tokens} | ({"steps": self.steps} if self.steps else {})
        return TuningSettings().model_copy(update=changes)


def scaled(work: Work, setup: Setup) -> Work:
    """The same, tiny in a smoke run."""
    return replace(work, jobs=3, length=16, steps=2) if setup.sizes == SMOKE else work


@lru_cache(maxsize=2)
def model(device: str) -> LanguageModel:
    return LanguageModel.load("embedded", device)


@lru_cache(maxsize=4)
def jobs_of(work: Work, device: str) -> tuple[TuningJob, ...]:
    """One sample each, of a length within an eighth of the stated; answers of a tenth of it."""
    lm = model(device)
    rng = random.Random(0)
    words = [f" {lm.decode([i])}" for i in range(300, 600)]
    made = []
    for i in range(work.jobs):
        answer = "".join(rng.choices(words, k=max(1, work.length // 12))).strip()
        length = work.length + rng.randint(-(work.length // 8), work.length // 8)
        question = "".join(rng.choices(words, k=2)).strip()
        while len(lm.question_ids(question)) + len(lm.answer_ids(answer)) < length:
            question += rng.choice(words)
        draws = torch.randn(work.tokens, lm.hidden, generator=torch.Generator().manual_seed(i))
        made.append(
            TuningJob(f"job {i}", ((question, answer),), draws * lm.embedding_rms, torch.ones(work.tokens), i)
        )
    return tuple(made)


# The reference ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def peft_model(device: str, tokens: int) -> Any:
    """PEFT's prompt tuning around a copy of the embedded LM."""
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens, prompt_tuning_init=PromptTuningInit.RANDOM
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for an attribute of an older name
        return get_peft_model(copy.deepcopy(model(device).model), config)


def tuned_by_peft(work: Work, device: str) -> list[float]:
    """Every job's last loss, one job after the other."""
    lm, settings = model(device), work.settings()
    wrapped = peft_model(device, work.tokens)
    weight = wrapped.prompt_encoder["default"].embedding.weight
    rate = settings.learning_rate * lm.embedding_rms
    losses = []
    for job in jobs_of(work, device):
        ((question, answer),) = job.samples
        asked, said = lm.question_ids(question), lm.answer_ids(answer)
        ids = torch.tensor([asked + said], device=device)
        labels = torch.tensor([[-100] * len(asked) + said], device=device)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            weight.copy_(job.start)
        optimiser = torch.optim.Adam([weight], lr=rate)
        for step in range(settings.steps):
            optimiser.param_groups[0]["lr"] = rate * (1 - (1 - FINAL_RATE) * step / settings.steps)
            loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    return losses


# Ours, step by step -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AllLogits:
    """Batching and nothing else: padded rows, the model's own pass, logits at every position."""

    lm: LanguageModel

    def gradients(self, rows: Sequence[Row], owners: Sequence[int], jobs: int, n: int) -> Gradients:
        """See `FrozenRows`."""
        lm = self.lm
        ids, mask = left_padded(lm, [row.question + row.answer for row in rows])
        labels = torch.full((len(rows), n + ids.shape[1]), -100, device=lm.device)
        for i, row in enumerate(rows):
            labels[i, -len(row.answer) :] = torch.tensor(row.answer, device=lm.device)
        weight = torch.tensor([row.share / len(row.answer) for row in rows], device=lm.device)
        owner = torch.tensor(list(owners), device=lm.device)
        present = torch.ones(len(rows), dtype=torch.bool, device=lm.device)

        def gradients(tokens: Tensor) -> tuple[Tensor, Tensor]:
            seen = tokens.detach().requires_grad_()
            embedded, full = with_virtual_tokens(lm, ids, mask, seen[owner], present)
            logits = lm.model(
                inputs_embeds=embedded,
                attention_mask=full,
                position_ids=position_ids(full),
                use_cache=False,
            ).logits
            each = functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
            )
            losses = torch.zeros(jobs, device=lm.device).index_add(0, owner, each.sum(1) * weight)
            return losses.detach(), torch.autograd.grad(losses.sum(), [seen])[0]

        return gradients


def tuned_together(work: Work, device: str, **changes: Any) -> list[float]:
    """Every job's last loss, all at once."""
    settings = work.settings().model_copy(update=changes)
    results = tune(model(device), jobs_of(work, device), settings)
    return [result.last_loss for result in results]


def together(work: Work, limited: bool, **changes: Any) -> Callable[[Case, Setup], list[Result]]:
    """All jobs in one call against PEFT's one by one, and how far their losses end apart."""

    def measure(case: Case, setup: Setup) -> list[Result]:
        done = scaled(work, setup)
        if changes.get("precision") == "bfloat16" and setup.device == "cpu":
            why = unknown(model(setup.device), "bfloat16")
            if why is not None:
                return [case.skipped(setup, why)]
        ends: dict[str, list[float]] = {}

        def ours() -> None:
            losses = tuned_together(done, setup.device, **changes)
            ends.setdefault("ours", losses)  # the first: in plain torch it is run later

        def theirs() -> None:
            ends["theirs"] = tuned_by_peft(done, setup.device)

        repeats = setup.repeats if done.steps else min(setup.repeats, FULL_REPEATS)
        timing = (beside_plain if setup.device == "cpu" else alternate)(ours, theirs, repeats)
        limit = AT_MOST_GPU if setup.device == "cuda" else AT_MOST.get(setup.threads)
        line = Result(case.name, case.title, setup.threads, setup.place, timing.ratio, UNIT)
        note = (
            f"{done.jobs} jobs of one sample of about {done.length} ids, {done.tokens} virtual tokens, "
            f"{done.settings().steps} steps"
        )
        apart = max(abs(one - other) for one, other in zip(ends["ours"], ends["theirs"], strict=True))
        mean = sum(ends["theirs"]) / done.jobs
        return [
            replace(line, limit=limit if limited else None, timing=timing, note=note),
            replace(
                line,
                title=f"{case.title}: largest difference of a job's last loss from PEFT's",
                value=apart,
                unit="nats",
                note=f"of {mean:.2f} nats on average",
            ),
        ]

    return measure


def tuned_through(engine: FrozenRows) -> AbstractContextManager[object]:
    """Inside, `tune` uses this engine."""
    return patch.object(tuning, "frozen_rows", lambda lm, precision, longest: engine)


def rung(build: Callable[[LanguageModel], FrozenRows]) -> Callable[[Case, Setup], list[Result]]:
    """Tuning with some of the savings only; a compiled rung's plain counterpart is the last that is not compiled."""

    def measure(case: Case, setup: Setup) -> list[Result]:
        work = scaled(Work(steps=LADDER_STEPS), setup)
        lm = model(setup.device)
        engine = build(lm)
        if isinstance(engine, FrozenDecoder) and setup.device != "cpu":
            return [case.skipped(setup, "the compiled kernel is the CPU's")]
        plain = PlainRows(lm, "float32", CPU_ROWS)
        with tuned_through(engine):
            timing = alternate(
                lambda: tuned_together(work, setup.device),
                reference(work, setup),
                setup.repeats,
                (lambda: tuned_through(plain)) if isinstance(engine, FrozenDecoder) else None,
            )
        note = f"{work.jobs} jobs, {work.tokens} virtual tokens, {work.steps} steps"
        return [
            Result(
                case.name,
                case.title,
                setup.threads,
                setup.place,
                timing.ratio,
                UNIT,
                timing=timing,
                note=note,
            )
        ]

    return measure


def reference(work: Work, setup: Setup) -> Run:
    return lambda: tuned_by_peft(work, setup.device)


def compiled(shortcuts: Shortcuts) -> Callable[[Case, Setup], list[Result]]:
    """A rung with the compiled kernel, where there is one."""

    def measure(case: Case, setup: Setup) -> list[Result]:
        why = unknown(model("cpu"))
        if why is not None:
            return [case.skipped(setup, why)]
        return rung(lambda lm: FrozenDecoder(lm, shortcuts=shortcuts))(case, setup)

    return measure


CASES = (
    Case("tune", "64 OVTs at once", together(Work(), limited=True)),
    Case(
        "tune_bf16",
        "64 OVTs at once, bfloat16",
        together(Work(steps=LADDER_STEPS), False, precision="bfloat16"),
    ),
    Case("tune_20", "64 OVTs of 20 tokens at once", together(Work(tokens=20, steps=LADDER_STEPS), False)),
    Case("ladder.1_batch", "batched only, logits everywhere", rung(AllLogits)),
    Case("ladder.2_labels", "+ logits at the answers only", rung(PlainRows)),
    Case(
        "ladder.3_passes",
        "+ 16 rows a pass, less padding",
        rung(lambda lm: PlainRows(lm, "float32", CPU_ROWS)),
    ),
    Case(
        "ladder.4_compiled",
        "+ compiled, no padding, row by row",
        compiled(Shortcuts(False, False)),
        gpu=False,
    ),
    Case("ladder.5_last", "+ last layer at the answers only", compiled(Shortcuts(False, True)), gpu=False),
    Case("ladder.6_first", "+ first layer of the text once", compiled(Shortcuts()), gpu=False),
)
