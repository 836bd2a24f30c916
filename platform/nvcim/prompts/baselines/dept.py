"""DEPT (Shi and Lipani, arXiv 2309.05173): a prompt decomposed into a short one and a low-rank update of embeddings.

The text's embedding at position i becomes E_i + (alpha / sqrt(r)) (A B)_i with A [length, r] and B [r, hidden], trained
at a rate of their own; prompt and update together have about the parameters of the vanilla prompt. The update reaches
the question only: in the source it acts on the encoder's input, never on the answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.prompts.baselines.adapted import Adapted, Inputs
from nvcim.prompts.baselines.base import Baseline, Kept
from nvcim.prompts.baselines.batches import Rows
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.baselines.training import Rated, train
from nvcim.prompts.baselines.vanilla import PROMPT, sampled_embeddings
from nvcim.prompts.language_model import LanguageModel
from nvcim.randomness import named_generator

UPDATE_A, UPDATE_B = "lora_embedding_A", "lora_embedding_B"
"""The source's names of the update's factors."""


@dataclass(frozen=True)
class Decomposed(Adapted):
    """The LM behind a short prompt [m, hidden], embeddings updated by scale x a [length, r] b [r, hidden]."""

    lm: LanguageModel
    tokens: Tensor
    a: Tensor
    b: Tensor
    alpha: float

    @property
    def added(self) -> int:  # type: ignore[override]
        """Virtual tokens of the short prompt."""
        return len(self.tokens)

    def inputs(self, rows: Rows) -> Inputs:
        """The short prompt, then the text's embeddings, updated where the question is."""
        update = self.alpha / math.sqrt(self.a.shape[1]) * self.a @ self.b
        place = rows.mask.cumsum(1) - 1  # -1 in the padding
        updated = (place >= 0) & (place < rows.asked[:, None]) & (place < len(update))
        by_column = update[place.clamp(0, len(update) - 1)] * updated[..., None]
        embedded = self.lm.embed(rows.ids)
        return Inputs(embedded + by_column.to(embedded.dtype), rows.mask).after(self.tokens)


def dept_rank(hidden: int, settings: BaselineSettings) -> int:
    """Rank r at which m d + (length + d) r is nearest to vanilla's n d (the source's rule), at least 1."""
    left = (settings.tokens - settings.dept_tokens) * hidden
    return max(1, round(left / (settings.dept_length + hidden)))


class Dept(Baseline):
    """A short prompt and a low-rank update of embeddings."""

    name = "dept"

    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Train prompt and update at two rates; starts as in the source's code: A Kaiming-uniform, B zero."""
        rank = dept_rank(lm.hidden, settings)
        draws = named_generator(seed, self.name, "start")
        tokens = sampled_embeddings(lm, settings.dept_tokens, draws).requires_grad_()
        bound = 1 / math.sqrt(rank)  # kaiming_uniform_(a=sqrt(5)) of a matrix with `rank` columns
        a = (torch.rand(settings.dept_length, rank, generator=draws) * 2 - 1) * bound
        a = a.to(lm.device).requires_grad_()
        b = torch.zeros(rank, lm.hidden, device=lm.device, requires_grad=True)
        rated = [
            Rated((tokens,), settings.dept_learning_rate * lm.embedding_rms),
            Rated((a,), settings.dept_update_learning_rate),
            Rated((b,), settings.dept_update_learning_rate * lm.embedding_rms),
        ]
        adapted = Decomposed(lm, tokens, a, b, settings.dept_alpha)
        trained = train(adapted, rated, samples, settings)
        state = {PROMPT: tokens, UPDATE_A: a, UPDATE_B: b}
        return Kept(
            {name: tensor.detach().cpu() for name, tensor in state.items()},
            sum(tensor.numel() for tensor in state.values()),
            trained.steps,
            trained.failed,
        )

    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """The LM behind the stored prompt and update."""
        tokens, a, b = (state[name].to(lm.device) for name in (PROMPT, UPDATE_A, UPDATE_B))
        return Decomposed(lm, tokens, a, b, settings.dept_alpha)

    def added_tokens(self, settings: BaselineSettings) -> int:
        """The short prompt."""
        return settings.dept_tokens
