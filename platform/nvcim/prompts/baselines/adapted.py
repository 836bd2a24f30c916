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

from nvcim.prompts.baselines.batches import AnsweredRows, Rows, answered_rows, question_rows
from nvcim.prompts.batching import position_ids
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
        """These inputs after virtual tokens [n, hidden] in the first columns, every row's padding behind them.

        Positions count real tokens, so that a row sees its tokens right before its text whatever it is batched with
        (a model with a sliding window sees the padding too once a text is longer than the window).
        """
        rows = len(self.embedded)
        first = tokens.to(self.embedded.dtype).expand(rows, -1, -1)
        ones = self.mask.new_ones(rows, len(tokens))
        return Inputs(torch.cat([first, self.embedded], 1), torch.cat([ones, self.mask], 1), self.past)


class Adapted(ABC):
    """A frozen LM and what a user's samples made of it.

    Attributes:
        lm: the LM that predicts; LoRA's has modules of its own over the same weights.
        added: virtual tokens that take room in the context beside the text.
    """

    lm: LanguageModel
    added: int = 0

    @abstractmethod
    def inputs(self, rows: Rows) -> Inputs:
        """What rows give to the LM; gradients flow to what is being trained."""

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
        """Mean over (question, answer) samples of the mean answer loss, nats per token."""
        batches = answered_rows(self.lm, samples, rows_per_batch)
        return float(torch.cat([self.answer_losses(batch) for batch in batches]).mean())

    @torch.no_grad()
    def answer(self, questions: Sequence[str], max_new_tokens: int = 24) -> list[str]:
        """The likeliest answer to each question, token by token, all questions in one batch.

        Raises:
            DataError: a question that does not fit the model's context.
        """
        if not questions:
            return []
        lm = self.lm
        given = self.inputs(question_rows(lm, questions, lm.context - self.added - max_new_tokens))
        written: list[list[int]] = [[] for _ in questions]
        ended = [False] * len(questions)
        for _ in range(max_new_tokens):
            output = _forward(lm, given, keep=1)
            chosen = output.logits[:, -1].argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                ended[row] |= token == lm.tokenizer.eos_token_id
                if not ended[row]:
                    written[row].append(token)
            if all(ended):
                break
            mask = torch.cat([given.mask, given.mask.new_ones(len(questions), 1)], 1)
            given = Inputs(lm.embed(chosen[:, None]), mask, output.past_key_values)
        return [lm.decode(row) for row in written]


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
