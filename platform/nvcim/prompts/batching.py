"""Batches of embeddings: left-padded rows of virtual tokens, question and (in tuning) answer.

Left padding puts every row's last token in the last column, so logits are needed for the last columns only and
generation continues all rows at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.language_model import LanguageModel


@dataclass(frozen=True)
class FittedSample:
    """A (question, answer) sample as token ids that fit the context.

    Attributes:
        question: ids up to the answer mark, with it.
        answer: ids that are learned, end of text included.
        cut: whether something was left out.
    """

    question: tuple[int, ...]
    answer: tuple[int, ...]
    cut: bool

    def __len__(self) -> int:
        """Ids in all."""
        return len(self.question) + len(self.answer)


def fitted_samples(
    lm: LanguageModel, samples: Sequence[tuple[str, str]], added: int, whose: str
) -> list[FittedSample]:
    """Samples as ids, cut where they take more than what `added` virtual tokens leave of the context.

    Of a sample that is too long, an answer of more than half the room is first cut to half (its end of text stays),
    then the question is cut: word by word from its end, and where its first word alone is too long, token by token.
    Its opening and the answer mark stay, the mark before the opening where there is room for little else.

    Args:
        lm: whose tokenizer and context count.
        samples: (question, answer) pairs.
        added: positions of the context that are taken.
        whose: the samples' owner, for errors.

    Raises:
        DataError: a context that has no room for a token of the question and one of the answer.
    """
    room = lm.context - added
    if room < 2:
        raise DataError(
            f"{whose}: {added} virtual tokens leave {max(room, 0)} of the {lm.context} tokens that model '{lm.name}' "
            "takes; a sample needs at least 2"
        )
    return [_fitted(lm, question, answer, room) for question, answer in samples]


def _fitted(lm: LanguageModel, question: str, answer: str, room: int) -> FittedSample:
    asked, said = lm.question_ids(question), lm.answer_ids(answer)
    if len(asked) + len(said) <= room:
        return FittedSample(tuple(asked), tuple(said), cut=False)
    if len(said) > room // 2:
        said = [*said[: room // 2 - 1], said[-1]]
    left = room - len(said)
    asked = lm.question_ids(lm.shortened(question, left))
    if len(asked) > left:
        mark = _shared_end(asked, lm.question_ids(""))[-left:]
        asked = [*asked[: left - len(mark)], *mark]
    return FittedSample(tuple(asked), tuple(said), cut=True)


def _shared_end(one: list[int], other: list[int]) -> list[int]:
    length = 0
    while length < min(len(one), len(other)) and one[-length - 1] == other[-length - 1]:
        length += 1
    return one[len(one) - length :]


def position_ids(mask: Tensor) -> Tensor:
    """Positions that count real tokens only; mask: [batch, length] of 0 and 1."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def length_groups(lengths: Sequence[int], rows: int, most_padding: float = math.inf) -> list[list[int]]:
    """Places of texts that share a batch, shortest first: at most `rows`, none padded by more than `most_padding`."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or len(groups[-1]) == rows or lengths[place] - lengths[groups[-1][0]] > most_padding:
            groups.append([])
        groups[-1].append(place)
    return groups


def left_padded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of unequal length -> (ids [batch, length], mask [batch, length]); equal, for an LM that cannot pad."""
    width = max(len(row) for row in rows)
    pad = lm.pad_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    return ids, mask


def with_virtual_tokens(
    lm: LanguageModel, ids: Tensor, mask: Tensor, tokens: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Put virtual tokens right before each row's first real token.

    Args:
        ids: [batch, length], left-padded.
        mask: [batch, length].
        tokens: [batch, n, hidden], of any floating type; gradients flow to them.
        present: [batch] of bool; rows without virtual tokens get masked columns in their place.

    Returns:
        Embeddings [batch, n + length, hidden] of the model's type and mask [batch, n + length]. Padding sits before the
        virtual tokens, so a row reads as PEFT's prompt tuning does: virtual tokens, then the text.
    """
    batch, n = tokens.shape[:2]
    length = ids.shape[1]
    padding = length - mask.sum(1)  # real tokens start at this column
    column = torch.arange(n + length, device=ids.device).expand(batch, -1)
    from_token = column - padding[:, None]  # 0..n-1 selects a virtual token, n.. the text
    embedded = lm.embed(ids)
    everything = torch.cat([tokens.to(embedded.dtype), embedded], dim=1)
    source = torch.where(from_token < 0, n, torch.where(from_token < n, from_token, column))
    rows = torch.gather(everything, 1, source[..., None].expand(-1, -1, embedded.shape[2]))
    is_virtual = (from_token >= 0) & (from_token < n)
    new_mask = torch.where(is_virtual, present[:, None].long(), (from_token >= n).long())
    return rows, new_mask
