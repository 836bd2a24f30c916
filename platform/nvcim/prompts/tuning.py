"""Noise-aware tuning of virtual tokens for a frozen LM, many users' jobs in shared batches.

The LM is frozen, so jobs do not see each other: each job's tokens get the gradient of its own mean loss, and Adam acts
element by element. A job tuned alone and in a batch differs by rounding only, and not even by that where the compiled
kernel serves (frozen_decoder.py).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.errors import DataError
from nvcim.prompts.batching import fitted_samples
from nvcim.prompts.frozen_decoder import frozen_rows
from nvcim.prompts.frozen_rows import IGNORED as IGNORED
from nvcim.prompts.frozen_rows import FrozenRows, Gradients, Precision, Row
from nvcim.prompts.language_model import LanguageModel
from nvcim.randomness import named_seed

Perturbation = Callable[[Tensor, Sequence[int], Sequence[torch.Generator]], Tensor]
"""(tokens [active, n, hidden], each active job's place in the list given to `tune`, a generator for each) -> what the
LM sees in this step, same shape; row i from row i alone."""
Penalty = Callable[[Tensor, Sequence[int]], Tensor]
"""(tokens [active, n, hidden], places as above) -> what is added to each job's loss [active]."""
Stop = Literal["steps", "patience", "not finite"]
FINAL_RATE = 0.1
"""Share of the learning rate that is left at the last step; it falls linearly."""
BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Adam's, as in torch.optim.Adam."""


class TuningSettings(Settings):
    """How virtual tokens are tuned; the paper's own values are not known, these were measured to work here."""

    tokens: int = Field(8, ge=1, description="virtual tokens per OVT")
    steps: int = Field(60, ge=1)
    learning_rate: float = Field(
        0.15, gt=0, description="Adam; relative to the RMS of the LM's token embeddings"
    )
    rows_per_batch: int = Field(64, ge=1, description="samples per forward pass")
    patience: int = Field(
        0, ge=0, description="steps without a new lowest loss after which a job stops; 0: never"
    )
    min_improvement: float = Field(
        0.0, ge=0, description="nats per token by which a loss must be lower to count as new lowest"
    )
    precision: Precision = Field("float32", description="of the LM's matrix products")


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
        settings: of this job (steps, learning rate, patience, precision); None: those given to `tune`, which also say
            how many rows share a batch. How many tokens there are, `start` says.
    """

    name: str
    samples: tuple[tuple[str, str], ...]
    start: Tensor
    mobility: Tensor
    seed: int
    settings: TuningSettings | None = None


@dataclass(frozen=True)
class TuningResult:
    """What became of a job.

    Attributes:
        name: of the job.
        tokens: tuned tokens [n, hidden]; where the job stopped as not finite, those of its last finite loss.
        first_loss, last_loss: mean answer loss (nats per token, without penalty) at its first and last step, before
            that step's update; `last_loss` is the last finite one, both are NaN if there never was one.
        steps: updates made.
        stopped: why it ended; `reason` says it in words.
        truncated: samples of which question, answer or both were cut to fit the model's context (see
            `batching.fitted_samples`).
        trained_tokens: tokens passed forward and backward through the LM over all those steps, padding left out: per
            step the virtual tokens, question and answer of every sample, of one that was cut what is left.
    """

    name: str
    tokens: Tensor
    first_loss: float
    last_loss: float
    steps: int = 0
    stopped: Stop = "steps"
    reason: str = ""
    truncated: int = 0
    trained_tokens: int = 0


def unperturbed(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """No noise: ordinary prompt tuning."""
    return tokens


def tune(
    lm: LanguageModel,
    jobs: Sequence[TuningJob],
    settings: TuningSettings,
    perturb: Perturbation = unperturbed,
    on_step: Callable[[], None] = lambda: None,
    penalty: Penalty | None = None,
) -> list[TuningResult]:
    """Tune all jobs' tokens together.

    At most `settings.rows_per_batch` samples are in a batch (a job is never cut); a job that finishes leaves it, and
    the next one takes its place. Through the compiled kernel a job's tokens are the same to the bit alone and in a
    batch, if `perturb` and `penalty` give the same; through a model's own forward pass they differ by rounding.

    Args:
        lm: the frozen model.
        jobs: what to tune; of any number of tokens.
        settings: of every job that has none of its own.
        perturb: what the LM sees of the tokens.
        on_step: called after every step of a batch.
        penalty: added to the jobs' losses.

    Raises:
        DataError: a job without samples, of a wrong shape, or with so many virtual tokens that the model's context has
            no room for a token of a question and one of its answer. Samples that are too long are cut, and counted.
    """
    drafts = [_draft(lm, place, job, settings) for place, job in enumerate(jobs)]
    results: dict[int, TuningResult] = {}
    for engine, waiting in _together(lm, drafts):
        tuner = _Tuner(lm, engine, perturb, penalty, settings.rows_per_batch, deque(waiting))
        while tuner.step():
            on_step()
        results |= tuner.results
    return [results[place] for place in range(len(jobs))]


def loss_gradients(
    lm: LanguageModel, jobs: Sequence[TuningJob], tokens: Sequence[Tensor], settings: TuningSettings
) -> list[Tensor]:
    """Gradients [n, hidden] of each job's mean answer loss with respect to its tokens, where they are `tokens`.

    Args:
        lm: the frozen model.
        jobs: whose samples; of any number of tokens.
        tokens: for each job [n, hidden], in place of its start.
        settings: of every job that has none of its own; `rows_per_batch` and `precision` count.

    Raises:
        DataError: as `tune`.
    """
    moved = [replace(job, start=given) for job, given in zip(jobs, tokens, strict=True)]
    found: dict[int, Tensor] = {}
    for engine, drafts in _together(
        lm, [_draft(lm, place, job, settings) for place, job in enumerate(moved)]
    ):
        waiting = deque(drafts)
        while waiting:
            batch = [waiting.popleft()]
            while waiting and sum(len(d.rows) for d in [*batch, waiting[0]]) <= settings.rows_per_batch:
                batch.append(waiting.popleft())
            start = torch.stack([draft.job.start.detach().to(lm.device, torch.float32) for draft in batch])
            _, gradients = _prepared(engine, batch)(start)
            found |= {draft.place: gradient for draft, gradient in zip(batch, gradients, strict=True)}
    return [found[place] for place in range(len(jobs))]


# Jobs as rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """A job, checked, with its rows; `longest`: ids of the longest row."""

    place: int
    job: TuningJob
    settings: TuningSettings
    rows: tuple[Row, ...]
    truncated: int

    @property
    def longest(self) -> int:
        return max(len(row) for row in self.rows)

    @property
    def tokens_per_step(self) -> int:
        return sum(len(self.job.start) + len(row) for row in self.rows)


def _draft(lm: LanguageModel, place: int, job: TuningJob, settings: TuningSettings) -> _Draft:
    if not job.samples:
        raise DataError(f"tuning job '{job.name}' has no samples")
    n = len(job.start)
    if n < 1 or tuple(job.start.shape) != (n, lm.hidden) or tuple(job.mobility.shape) != (n,):
        raise DataError(
            f"tuning job '{job.name}': start has shape {tuple(job.start.shape)} and mobility "
            f"{tuple(job.mobility.shape)}; allowed are [n, {lm.hidden}] and [n] with n of at least 1"
        )
    fitted = fitted_samples(lm, job.samples, n, f"tuning job '{job.name}'")
    rows = tuple(Row(sample.question, sample.answer, 1 / len(fitted)) for sample in fitted)
    return _Draft(place, job, job.settings or settings, rows, sum(sample.cut for sample in fitted))


def _together(lm: LanguageModel, drafts: Sequence[_Draft]) -> list[tuple[FrozenRows, list[_Draft]]]:
    """Jobs that can share batches, shortest first, and what runs them."""
    engines: dict[tuple[int, Precision, type], tuple[FrozenRows, list[_Draft]]] = {}
    for draft in sorted(drafts, key=lambda draft: draft.longest):
        n, precision = len(draft.job.start), draft.settings.precision
        # What runs a job must not depend on its company, so jobs that are too long for the fast way go apart.
        engine = frozen_rows(lm, precision, n + draft.longest)
        engines.setdefault((n, precision, type(engine)), (engine, []))[1].append(draft)
    return list(engines.values())


def _prepared(engine: FrozenRows, drafts: Sequence[_Draft]) -> Gradients:
    """A batch of these jobs' rows."""
    rows = [row for draft in drafts for row in draft.rows]
    owners = [i for i, draft in enumerate(drafts) for _ in draft.rows]
    return engine.gradients(rows, owners, len(drafts), len(drafts[0].job.start))


# The batch ----------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """Where a job in the batch stands."""

    draft: _Draft
    generator: torch.Generator
    rate: float
    steps: int = 0
    first: float = float("nan")
    last: float = float("nan")
    lowest: float = float("inf")
    idle: int = 0

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.rate * (1 - (1 - FINAL_RATE) * self.steps / self.draft.settings.steps)

    def heard(self, loss: float) -> None:
        """Take note of a finite loss."""
        settings = self.draft.settings
        self.first = loss if self.steps == 0 else self.first
        self.last = loss
        better = loss < self.lowest - settings.min_improvement
        self.idle = 0 if better else self.idle + 1
        self.lowest = loss if better else self.lowest

    def end(self) -> tuple[Stop, str] | None:
        """Why the job is over, if it is."""
        settings = self.draft.settings
        if self.steps >= settings.steps:
            return "steps", f"all {settings.steps} steps were made"
        if settings.patience and self.idle >= settings.patience:
            return "patience", f"no lower loss than {self.lowest:.4g} for {self.idle} steps"
        return None


@dataclass
class _State:
    """Stacked tensors of the jobs in the batch, each [jobs, n, hidden] but mobility [jobs, n, 1].

    Tokens are start + mobility * moved; mean and square are Adam's moments; sound are the tokens of the last finite
    loss.
    """

    start: Tensor
    mobility: Tensor
    moved: Tensor
    mean: Tensor
    square: Tensor
    sound: Tensor

    @classmethod
    def of(cls, job: TuningJob, device: torch.device) -> "_State":
        start = job.start.detach().to(device, torch.float32)[None]
        mobility = job.mobility.detach().to(device, torch.float32)[None, :, None]
        zero = torch.zeros_like(start)
        return cls(start, mobility, zero, zero, zero, start)

    @classmethod
    def stacked(cls, states: Sequence["_State"]) -> "_State":
        return cls(*(torch.cat([getattr(one, name) for one in states]) for name in cls.__dataclass_fields__))

    def of_jobs(self, chosen: Sequence[int]) -> "_State":
        places = torch.tensor(list(chosen), device=self.start.device)
        return type(self)(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    @property
    def tokens(self) -> Tensor:
        return self.start + self.mobility * self.moved


@dataclass
class _Tuner:
    """A batch that jobs enter from `waiting` and leave when they are done."""

    lm: LanguageModel
    engine: FrozenRows
    perturb: Perturbation
    penalty: Penalty | None
    most_rows: int
    waiting: deque[_Draft]
    active: list[_Progress] = field(default_factory=list)
    results: dict[int, TuningResult] = field(default_factory=dict)
    state: _State | None = None
    gradients: Gradients | None = None

    def step(self) -> bool:
        """One step of every job in the batch; False once there is none left."""
        self._admit()
        if self.state is None or self.gradients is None:
            return False
        losses, slopes = self._losses(self.state, self.gradients)
        self._update(self.state, losses, slopes)
        return True

    def _admit(self) -> None:
        """Fill the batch up."""
        filled = sum(len(one.draft.rows) for one in self.active)
        entered: list[_State] = []
        while self.waiting and (not self.active or filled + len(self.waiting[0].rows) <= self.most_rows):
            draft = self.waiting.popleft()
            generator = torch.Generator().manual_seed(named_seed(draft.job.seed, "tuning noise"))
            rate = draft.settings.learning_rate * self.lm.embedding_rms
            self.active.append(_Progress(draft, generator, rate))
            entered.append(_State.of(draft.job, self.lm.device))
            filled += len(draft.rows)
        if entered:
            self.state = _State.stacked([self.state, *entered] if self.state is not None else entered)
            self.gradients = None
        if self.gradients is None and self.active:
            self.gradients = _prepared(self.engine, [one.draft for one in self.active])

    def _losses(self, state: _State, gradients: Gradients) -> tuple[Tensor, Tensor]:
        """Answer losses [jobs] and gradients of `moved` [jobs, n, hidden], penalties included."""
        places = [one.draft.place for one in self.active]
        moved = state.moved.requires_grad_()
        with torch.enable_grad():
            tokens = state.tokens
            seen = self.perturb(tokens, places, [one.generator for one in self.active])
            extra = None if self.penalty is None else self.penalty(tokens, places)
        losses, slopes = gradients(seen.detach())
        outputs, along = [seen], [slopes.to(seen.dtype)]
        if extra is not None:
            outputs, along = [seen, extra], [*along, torch.ones_like(extra)]
            losses = torch.where(extra.detach().isfinite(), losses, torch.nan)
        (gradient,) = torch.autograd.grad(outputs, [moved], along)
        state.moved = moved.detach()
        return losses, gradient

    def _update(self, state: _State, losses: Tensor, slopes: Tensor) -> None:
        """Adam's step of the jobs with a finite loss and gradient; those that are over leave."""
        finite = losses.isfinite() & slopes.isfinite().flatten(1).all(1)
        fine = finite.tolist()
        good = [i for i in range(len(fine)) if fine[i]]
        values = losses.tolist()
        for i in good:
            self.active[i].heard(values[i])
        ends: dict[int, tuple[Stop, str]] = {
            i: ("not finite", f"loss or gradient was not finite at step {self.active[i].steps + 1}")
            for i in range(len(fine))
            if not fine[i]
        }
        state.sound = torch.where(finite[:, None, None], state.tokens, state.sound)
        ones = [one.steps + 1 for one in self.active]
        first, second = BETAS
        state.mean = state.mean.lerp(slopes, 1 - first)
        state.square = state.square * second + (1 - second) * slopes * slopes
        rate = [one.learning_rate / (1 - first**t) for one, t in zip(self.active, ones, strict=True)]
        root = [(1 - second**t) ** 0.5 for t in ones]
        change = state.mean / (state.square.sqrt() / self._column(state, root) + EPSILON)
        state.moved = state.moved - self._column(state, rate) * change
        for i in good:
            self.active[i].steps += 1
            end = self.active[i].end()
            if end is not None:
                ends[i] = end
        if ends:
            self._leave(state, ends)

    def _leave(self, state: _State, ends: dict[int, tuple[Stop, str]]) -> None:
        final = state.tokens
        for i, (stopped, reason) in ends.items():
            one, draft = self.active[i], self.active[i].draft
            if not final[i].isfinite().all() and stopped != "not finite":  # no later step is there to notice
                stopped, reason = "not finite", f"tokens were not finite after step {one.steps}"
            tokens = (state.sound if stopped == "not finite" else final)[i].clone()
            self.results[draft.place] = TuningResult(
                draft.job.name,
                tokens,
                one.first,
                one.last,
                one.steps,
                stopped,
                reason,
                draft.truncated,
                one.steps * draft.tokens_per_step,
            )
        staying = [i for i in range(len(self.active)) if i not in ends]
        self.active = [self.active[i] for i in staying]
        self.state = state.of_jobs(staying) if staying else None
        self.gradients = None

    @staticmethod
    def _column(state: _State, values: Sequence[float]) -> Tensor:
        """One value per job, [jobs, 1, 1]."""
        return torch.tensor(values, device=state.start.device)[:, None, None]
