"""Noise-aware tuning of virtual tokens for a frozen LM, many users' jobs in shared batches.

The LM is frozen, so jobs do not see each other: the batch's loss is a sum over jobs, each job's tokens get the gradient
of its own mean loss, and Adam acts element by element. A job tuned alone and in a batch differs by rounding only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from nvcim.config import Settings
from nvcim.errors import DataError
from nvcim.prompts.batching import left_padded, position_ids, with_virtual_tokens
from nvcim.prompts.language_model import LanguageModel
from nvcim.randomness import named_seed

IGNORED = -100
Perturbation = Callable[[Tensor, Sequence[int], Sequence[torch.Generator]], Tensor]
"""(tokens [active, n, hidden], each active job's place in the list given to `tune`, a generator for each) -> what the
LM sees in this step, same shape."""


class TuningSettings(Settings):
    """How virtual tokens are tuned; the paper's own values are not known, these were measured to work here."""

    tokens: int = Field(8, ge=1, description="virtual tokens per OVT")
    steps: int = Field(60, ge=1)
    learning_rate: float = Field(
        0.15, gt=0, description="Adam; relative to the RMS of the LM's token embeddings"
    )
    rows_per_batch: int = Field(64, ge=1, description="samples per forward pass")


@dataclass(frozen=True)
class TuningJob:
    """Tokens to tune.

    Attributes:
        name: of the job, for errors and results.
        samples: (question, answer) pairs.
        start: initial tokens [n, hidden].
        mobility: [n], how far each token moves per step relative to the learning rate; below 1 keeps a token near its
            start, so that the search still finds it there.
        seed: of the tuning noise.
    """

    name: str
    samples: tuple[tuple[str, str], ...]
    start: Tensor
    mobility: Tensor
    seed: int


@dataclass(frozen=True)
class TuningResult:
    """Tuned tokens [n, hidden] and the job's mean answer loss (nats per token) at its first and last step."""

    name: str
    tokens: Tensor
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class _Batch:
    """Padded rows of several jobs; `job` [rows] says whose each row is, `share` [rows] weighs it within its job."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    job: Tensor
    share: Tensor


def unperturbed(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """No noise: ordinary prompt tuning."""
    return tokens


def tune(
    lm: LanguageModel,
    jobs: Sequence[TuningJob],
    settings: TuningSettings,
    perturb: Perturbation = unperturbed,
    on_step: Callable[[], None] = lambda: None,
) -> list[TuningResult]:
    """Tune all jobs' tokens together.

    Raises:
        DataError: a job without samples, or a sample longer than the model's context.
    """
    results: dict[int, TuningResult] = {}
    for places in _groups(lm, jobs, settings.rows_per_batch):
        group = [jobs[place] for place in places]
        results |= zip(places, _tune_group(lm, group, places, settings, perturb, on_step), strict=True)
    return [results[place] for place in range(len(jobs))]


def _groups(lm: LanguageModel, jobs: Sequence[TuningJob], rows: int) -> list[list[int]]:
    """Places of jobs that share a batch: at most `rows` samples (a job is never cut), of like length (less padding)."""
    for job in jobs:
        if not job.samples:
            raise DataError(f"tuning job '{job.name}' has no samples")
    longest = [max(len(lm.question_ids(question)) for question, _ in job.samples) for job in jobs]
    groups: list[list[int]] = []
    filled = rows
    for place in sorted(range(len(jobs)), key=longest.__getitem__):
        if filled + len(jobs[place].samples) > rows:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += len(jobs[place].samples)
    return groups


def _tune_group(
    lm: LanguageModel,
    jobs: Sequence[TuningJob],
    places: Sequence[int],
    settings: TuningSettings,
    perturb: Perturbation,
    on_step: Callable[[], None],
) -> list[TuningResult]:
    batch = _batch(lm, jobs)
    start = torch.stack([job.start for job in jobs]).to(lm.device)
    mobility = torch.stack([job.mobility for job in jobs]).to(lm.device)[..., None]
    moved = torch.zeros_like(start, requires_grad=True)
    rate = settings.learning_rate * lm.embedding_rms
    optimiser = torch.optim.Adam([moved], lr=rate)
    generators = [torch.Generator().manual_seed(named_seed(job.seed, "tuning noise")) for job in jobs]
    first = last = torch.zeros(len(jobs))
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - 0.9 * step / settings.steps)
        losses = job_losses(lm, batch, perturb(start + mobility * moved, places, generators))
        optimiser.zero_grad(set_to_none=True)
        (moved.grad,) = torch.autograd.grad(losses.sum(), [moved])
        optimiser.step()
        last = losses.detach().cpu()
        first = last if step == 0 else first
        on_step()
    final = (start + mobility * moved).detach()
    return [
        TuningResult(job.name, final[i].clone(), float(first[i]), float(last[i]))
        for i, job in enumerate(jobs)
    ]


def job_losses(lm: LanguageModel, batch: _Batch, tokens: Tensor) -> Tensor:
    """Mean answer loss of each job [jobs], in nats per token; tokens: [jobs, n, hidden]."""
    present = torch.ones(len(batch.job), dtype=torch.bool, device=lm.device)
    embedded, mask = with_virtual_tokens(lm, batch.ids, batch.mask, tokens[batch.job], present)
    kept = batch.labels.shape[1]
    logits = lm.model(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=position_ids(mask),
        logits_to_keep=kept + 1,
        use_cache=False,
    ).logits[:, :-1]
    each = functional.cross_entropy(
        logits.transpose(1, 2).float(), batch.labels, ignore_index=IGNORED, reduction="none"
    )
    counted = (batch.labels != IGNORED).sum(1)
    return torch.zeros(len(tokens), device=lm.device).index_add(
        0, batch.job, each.sum(1) / counted * batch.share
    )


def _batch(lm: LanguageModel, jobs: Sequence[TuningJob]) -> _Batch:
    """Rows of question and answer, labels for the answer's columns only."""
    rows, answers, owner, share = [], [], [], []
    room = lm.context - max(len(job.start) for job in jobs)
    for i, job in enumerate(jobs):
        for question, answer in job.samples:
            answer_ids = lm.answer_ids(answer)
            question_ids = lm.question_ids(question)
            if len(question_ids) + len(answer_ids) > room:
                raise DataError(
                    f"tuning job '{job.name}': a sample has {len(question_ids) + len(answer_ids)} tokens, "
                    f"model '{lm.name}' takes {room} beside the virtual tokens"
                )
            rows.append(question_ids + answer_ids)
            answers.append(answer_ids)
            owner.append(i)
            share.append(1 / len(job.samples))
    ids, mask = left_padded(lm, rows)
    width = max(len(answer) for answer in answers)
    labels = torch.tensor([[IGNORED] * (width - len(a)) + a for a in answers], device=lm.device)
    return _Batch(
        ids, mask, labels, torch.tensor(owner, device=lm.device), torch.tensor(share, device=lm.device)
    )
