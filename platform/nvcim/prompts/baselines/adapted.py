"""A frozen LM with a user's adaptation: what it predicts, and the answers it gives.

All methods come down to three things that may change: the embeddings that go in, the keys and values that stand before
them, and (LoRA) the modules they pass. A method says which; predicting and answering are the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nvcim.prompts.baselines.batches import (
    AnsweredRows,
    Rows,
    answered_rows,
    checked_question_ids,
    question_rows,
)
from nvcim.prompts.batching import FittedSample, fitted_samples, length_groups, position_ids
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import IGNORED


@dataclass(frozen=True)
class Inputs:
    """What a batch gives to the LM.

    Attributes:
        embedded: [rows, length, hidden].
        mask: [rows, before + length], ones for the columns of `past`.
        past: keys and values of `before` columns, a transformers cache; None for none. A forward pass adds to it.
    """

    embedded: Tensor
    mask: Tensor
    past: Any = None

    def after(self, tokens: Tensor) -> "Inputs":
        """These inputs with virtual tokens [n, hidden] right before each row's first real token, padding before them.

        There, and not in the first columns, a sliding window too sees the same whatever a row is batched with.
        """
        rows, length, hidden = self.embedded.shape
        n = len(tokens)
        everything = torch.cat([tokens.to(self.embedded.dtype).expand(rows, -1, -1), self.embedded], 1)
        column = torch.arange(n + length, device=self.mask.device)
        from_token = column - (length - self.mask.sum(1, keepdim=True))  # 0 to n-1 is a virtual token
        source = torch.where(from_token < 0, n + column, torch.where(from_token < n, from_token, column))
        placed = everything.gather(1, source[..., None].expand(-1, -1, hidden))
        return Inputs(placed, (from_token >= 0).to(self.mask.dtype), self.past)


class Adapted(ABC):
    """A frozen LM and what a user's samples made of it.

    Attributes:
        lm: the LM that predicts; LoRA's has modules of its own over the same weights.
        added: virtual tokens that take room in the context beside the text.
    """

    lm: LanguageModel
    added: int = 0

    @property
    def most_padding(self) -> float:
        """Columns that a row of a batch may be padded by, for its predictions to be its own."""
        return self.lm.most_padding

    @abstractmethod
    def inputs(self, rows: Rows) -> Inputs:
        """What rows give to the LM; gradients flow to what is being trained."""

    def fitted(self, samples: Sequence[tuple[str, str]]) -> list[FittedSample]:
        """(question, answer) samples as ids, cut to what the context has left (`batching.fitted_samples`)."""
        return fitted_samples(self.lm, samples, self.added, "samples")

    def answer_losses(self, batch: AnsweredRows) -> Tensor:
        """Mean loss over each row's answer, nats per token: [rows]."""
        width = batch.labels.shape[1]
        logits = _forward(self.lm, self.inputs(batch.rows), keep=width + 1).logits[:, :-1]
        each = functional.cross_entropy(
            logits.transpose(1, 2).float(), batch.labels, ignore_index=IGNORED, reduction="none"
        )
        return each.sum(1) / (batch.labels != IGNORED).sum(1)

    @torch.no_grad()
    def loss(self, samples: Sequence[tuple[str, str]], rows_per_batch: int = 64) -> float:
        """Mean over (question, answer) samples of the mean answer loss, nats per token; cut as in training.

        Raises:
            DataError: a context without room for samples.
        """
        batches = answered_rows(self.lm, self.fitted(samples), rows_per_batch, self.most_padding)
        return float(torch.cat([self.answer_losses(batch) for batch in batches]).mean())

    @torch.no_grad()
    def answer(self, questions: Sequence[str], max_new_tokens: int = 24) -> list[str]:
        """The likeliest answer to each question, token by token, in one batch if padding does no harm.

        Raises:
            DataError: a question that does not fit the model's context.
        """
        ids = checked_question_ids(self.lm, questions, self.lm.context - self.added - max_new_tokens)
        answers = [""] * len(questions)
        for places in length_groups([len(row) for row in ids], len(ids), self.most_padding):
            rows = question_rows(self.lm, [ids[place] for place in places])
            for place, written in zip(places, self._greedy(rows, max_new_tokens), strict=True):
                answers[place] = self.lm.decode(written)
        return answers

    def _greedy(self, rows: Rows, max_new_tokens: int) -> list[list[int]]:
        """Token ids of each row's answer, end of text left out."""
        lm, count = self.lm, len(rows.ids)
        given = self.inputs(rows)
        written: list[list[int]] = [[] for _ in range(count)]
        ended = [False] * count
        for _ in range(max_new_tokens):
            output = _forward(lm, given, keep=1)
            chosen = output.logits[:, -1].argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                ended[row] |= token in lm.ends
                if not ended[row]:
                    written[row].append(token)
            if all(ended):
                break
            mask = torch.cat([given.mask, given.mask.new_ones(count, 1)], 1)
            past, last = getattr(output, "past_key_values", None), lm.embed(chosen[:, None])
            # A model that keeps no keys and values (Mamba) reads the text again.
            given = Inputs(torch.cat([given.embedded, last], 1) if past is None else last, mask, past)
        return written


def _forward(lm: LanguageModel, given: Inputs, keep: int) -> Any:
    """The model's output for inputs, logits for the last `keep` columns; gradients and the cache where they are due."""
    training = torch.is_grad_enabled() and given.past is None
    return lm.model(
        inputs_embeds=given.embedded,
        attention_mask=given.mask,
        position_ids=position_ids(given.mask)[:, -given.embedded.shape[1] :],
        past_key_values=given.past,
        logits_to_keep=keep,
        use_cache=not training,
    )
