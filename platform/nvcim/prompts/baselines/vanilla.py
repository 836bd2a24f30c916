"""Vanilla prompt tuning (Lester et al., arXiv 2104.08691): n vectors before the text, the same for all a user asks.

They start as the embeddings of tokens drawn from the vocabulary, which that paper found better than random vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.prompts.baselines.adapted import Adapted, Inputs
from nvcim.prompts.baselines.base import Baseline, Kept
from nvcim.prompts.baselines.batches import Rows
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import TuningJob, TuningSettings, tune
from nvcim.randomness import named_generator

PROMPT = "prompt_embeddings"
"""PEFT's name of a stored prompt."""


@dataclass(frozen=True)
class Prompted(Adapted):
    """The LM behind virtual tokens [n, hidden]."""

    lm: LanguageModel
    tokens: Tensor

    @property
    def added(self) -> int:  # type: ignore[override]
        """Virtual tokens before the text."""
        return len(self.tokens)

    def inputs(self, rows: Rows) -> Inputs:
        """Virtual tokens, then the text's embeddings."""
        return Inputs(self.lm.embed(rows.ids), rows.mask).after(self.tokens)


def sampled_embeddings(lm: LanguageModel, count: int, generator: torch.Generator) -> Tensor:
    """Embeddings [count, hidden], float32, of tokens drawn uniformly from the vocabulary."""
    embeddings = lm.embedding_weight
    drawn = torch.randint(len(embeddings), (count,), generator=generator)
    return embeddings[drawn.to(embeddings.device)].float()


class VanillaPromptTuning(Baseline):
    """One soft prompt."""

    name = "vanilla"

    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Tune one job on all samples, without noise."""
        start = sampled_embeddings(lm, settings.tokens, named_generator(seed, self.name, "start"))
        job = TuningJob(self.name, tuple(samples), start, torch.ones(settings.tokens), seed)
        how = TuningSettings(
            tokens=settings.tokens,
            steps=settings.steps,
            learning_rate=settings.vanilla_learning_rate,
            rows_per_batch=settings.rows_per_batch,
        )
        (result,) = tune(lm, [job], how)
        failed = result.stopped == "not finite"
        steps = (
            max(0, result.steps - 1) if failed else result.steps
        )  # the update that led there is taken back
        return Kept({PROMPT: result.tokens.cpu()}, result.tokens.numel(), steps, failed)

    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """The LM behind the stored prompt."""
        return Prompted(lm, state[PROMPT].to(lm.device))

    def added_tokens(self, settings: BaselineSettings) -> int:
        """The prompt."""
        return settings.tokens
