"""What every prompt-tuning baseline does: fit one user's samples, answer that user's questions, say what it cost.

All are digital: nothing is written to a crossbar.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.baselines.adapted import Adapted
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.batching import fitted_samples
from nvcim.prompts.language_model import LanguageModel
from nvcim.randomness import named_seed


@dataclass(frozen=True)
class TrainingCost:
    """What a user's fit took.

    Attributes:
        trained_parameters: numbers that the optimiser moved.
        storage_bytes: of what has to be kept for the user, as stored (float32).
        steps: updates kept; fewer than asked for where the training failed.
        failed: whether it ended because a loss, a gradient or what was trained was not finite; what is kept is from
            before that.
        trained_tokens: tokens passed forward and backward through the LM, padding left out: per step every question,
            every answer, and the virtual tokens before each (a prefix of keys and values passes no layer).
        seconds: measured, from the samples to what is kept.
        shortened: samples of which question, answer or both were cut to fit the model's context (see
            `batching.fitted_samples`).
    """

    trained_parameters: int
    storage_bytes: int
    steps: int
    trained_tokens: int
    seconds: float
    shortened: int
    failed: bool


@dataclass(frozen=True)
class Kept:
    """What a method's training leaves.

    Attributes:
        state: what is kept for the user, by name, float32 on the CPU.
        trained_parameters: numbers that the optimiser moved.
        steps: updates kept.
        failed: whether the training ended on what is not finite.
    """

    state: dict[str, Tensor]
    trained_parameters: int = 0
    steps: int = 0
    failed: bool = False


@dataclass(frozen=True)
class Fitted:
    """A user's LM; all that it knows about the user is its state."""

    name: str
    cost: TrainingCost
    state: Mapping[str, Tensor]
    adapted: Adapted

    def answer(self, questions: Sequence[str], max_new_tokens: int = 24) -> list[str]:
        """Greedy answers, all questions in one batch.

        Raises:
            DataError: a question that does not fit the model's context.
        """
        return self.adapted.answer(questions, max_new_tokens)

    def loss(self, samples: Sequence[tuple[str, str]]) -> float:
        """Mean answer loss of (question, answer) samples, nats per token."""
        return self.adapted.loss(samples)

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be kept for this user, by name."""
        return dict(self.state)


class Baseline(ABC):
    """A way to fit a frozen LM to a user. Stateless; the LM is left as it was."""

    name: ClassVar[str]
    """As tables show it."""

    def fit(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Fitted:
        """Fit (question, answer) samples of one user; reproducible from the seed.

        Raises:
            DataError: no samples, or a context without room for a token of a question and one of its answer.
        """
        if not samples:
            raise DataError(f"method '{self.name}': there are no samples to fit")
        started = time.perf_counter()
        fitted = fitted_samples(lm, samples, self.added_tokens(settings), f"method '{self.name}'")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(seed, self.name))  # peft draws its starts from torch's own state
            kept = self.train(lm, samples, settings, seed)
        adapted = self.restore(lm, kept.state, settings)
        seconds = time.perf_counter() - started
        passed = sum(len(sample) + self.passed_tokens(settings) for sample in fitted)
        cost = TrainingCost(
            trained_parameters=kept.trained_parameters,
            storage_bytes=sum(tensor.nbytes for tensor in kept.state.values()),
            steps=kept.steps,
            trained_tokens=kept.steps * passed,
            seconds=seconds,
            shortened=sum(sample.cut for sample in fitted),
            failed=kept.failed,
        )
        return Fitted(self.name, cost, kept.state, adapted)

    @abstractmethod
    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Train on samples, long ones cut to fit the context; torch's random state is already set from the seed."""

    @abstractmethod
    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """The user's LM from what was kept; `lm` itself is not changed."""

    def added_tokens(self, settings: BaselineSettings) -> int:
        """Positions of the context that the method takes beside the text."""
        return 0

    def passed_tokens(self, settings: BaselineSettings) -> int:
        """Virtual tokens that pass the LM's layers with every text."""
        return self.added_tokens(settings)
