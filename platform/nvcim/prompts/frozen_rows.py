"""Losses of samples behind virtual tokens, and their gradients with respect to the tokens, under a frozen LM.

`PlainRows` runs any causal LM through its own forward pass; frozen_decoder.py does the same faster for the decoders
that it knows.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nvcim.prompts.batching import left_padded, length_groups, position_ids, with_virtual_tokens
from nvcim.prompts.language_model import LanguageModel

IGNORED = -100
Precision = Literal["float32", "bfloat16"]
Gradients = Callable[[Tensor], tuple[Tensor, Tensor]]
"""tokens [jobs, n, hidden] -> (losses [jobs], in nats per answer token, and their gradients [jobs, n, hidden])."""


@dataclass(frozen=True)
class Row:
    """A sample's token ids.

    Attributes:
        question: ids up to the answer mark, with it.
        answer: ids that are learned, end of text included.
        share: of its job's loss; a job's shares sum to 1.
    """

    question: tuple[int, ...]
    answer: tuple[int, ...]
    share: float

    def __len__(self) -> int:
        """Ids in all, without virtual tokens."""
        return len(self.question) + len(self.answer)


class FrozenRows(Protocol):
    """A frozen LM, ready to say how virtual tokens should change."""

    def gradients(self, rows: Sequence[Row], owners: Sequence[int], jobs: int, n: int) -> Gradients:
        """Prepare a batch: `owners[i]` is the job, below `jobs`, whose `n` virtual tokens stand before `rows[i]`."""
        ...


@dataclass(frozen=True)
class PlainRows:
    """Any causal LM, through its own forward pass: logits at the answers' columns only.

    Rows are padded to one length; of a model that cannot pad, rows of one length run together.

    Attributes:
        lm: the frozen model.
        precision: bfloat16 is torch's autocast.
        rows_per_pass: rows of a batch that are padded to one length and run together.
    """

    lm: LanguageModel
    precision: Precision = "float32"
    rows_per_pass: int = 1024

    def gradients(self, rows: Sequence[Row], owners: Sequence[int], jobs: int, n: int) -> Gradients:
        """See `FrozenRows`."""
        size = self.rows_per_pass
        if self.lm.can_pad:
            groups = [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
        else:
            groups = length_groups([len(row) for row in rows], size, most_padding=0)
        parts = [self._pass([rows[i] for i in some], [owners[i] for i in some], jobs) for some in groups]

        def gradients(tokens: Tensor) -> tuple[Tensor, Tensor]:
            losses, slopes = parts[0](tokens)
            for part in parts[1:]:
                more, steeper = part(tokens)
                losses, slopes = losses + more, slopes + steeper
            return losses, slopes

        return gradients

    def _pass(self, rows: Sequence[Row], owners: Sequence[int], jobs: int) -> Gradients:
        lm = self.lm
        ids, mask = left_padded(lm, [row.question + row.answer for row in rows])
        width = max(len(row.answer) for row in rows)
        labels = torch.tensor(
            [[IGNORED] * (width - len(row.answer)) + list(row.answer) for row in rows], device=lm.device
        )
        weight = torch.tensor([row.share / len(row.answer) for row in rows], device=lm.device)
        owner = torch.tensor(list(owners), device=lm.device)
        present = torch.ones(len(rows), dtype=torch.bool, device=lm.device)

        def gradients(tokens: Tensor) -> tuple[Tensor, Tensor]:
            seen = tokens.detach().to(lm.device).requires_grad_()
            embedded, full = with_virtual_tokens(lm, ids, mask, seen[owner], present)
            with self._arithmetic():
                logits = lm.model(
                    inputs_embeds=embedded,
                    attention_mask=full,
                    position_ids=position_ids(full),
                    logits_to_keep=width + 1,
                    use_cache=False,
                ).logits[:, -1 - width : -1]  # some models know no `logits_to_keep`
            each = functional.cross_entropy(
                logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none"
            )
            losses = torch.zeros(jobs, device=lm.device).index_add(0, owner, each.sum(1) * weight)
            (gradient,) = torch.autograd.grad(losses.sum(), [seen])
            return losses.detach(), gradient

        return gradients

    def _arithmetic(self) -> torch.autocast | nullcontext[None]:
        if self.precision == "bfloat16":
            return torch.autocast(self.lm.device.type, torch.bfloat16)
        return nullcontext()
