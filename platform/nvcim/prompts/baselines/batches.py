"""A user's samples and questions as left-padded rows of token ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.batching import FittedSample, left_padded, length_groups
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import IGNORED


@dataclass(frozen=True)
class Rows:
    """Texts as token ids.

    Attributes:
        ids: [rows, length], left-padded.
        mask: [rows, length] of 0 and 1.
        asked: [rows], how many of a row's real tokens are the question (the rest is the answer).
    """

    ids: Tensor
    mask: Tensor
    asked: Tensor


@dataclass(frozen=True)
class AnsweredRows:
    """Rows of question and answer; labels [rows, width] for the last `width` columns, `IGNORED` in the question."""

    rows: Rows
    labels: Tensor


def checked_question_ids(lm: LanguageModel, questions: Sequence[str], room: int) -> list[list[int]]:
    """Token ids of questions that are to be answered.

    Raises:
        DataError: a question of more than `room` tokens.
    """
    ids = [lm.question_ids(question) for question in questions]
    for question, row in zip(questions, ids, strict=True):
        if len(row) > room:
            raise DataError(
                f"question '{question[:40]}...' has {len(row)} tokens; at most {room} fit the context"
            )
    return ids


def question_rows(lm: LanguageModel, ids: Sequence[Sequence[int]]) -> Rows:
    """Rows of questions alone."""
    return Rows(*left_padded(lm, ids), torch.tensor([len(row) for row in ids], device=lm.device))


def answered_rows(
    lm: LanguageModel, samples: Sequence[FittedSample], rows_per_batch: int, most_padding: float
) -> Iterator[AnsweredRows]:
    """Rows of samples in batches as `length_groups` makes them."""
    for places in length_groups([len(sample) for sample in samples], rows_per_batch, most_padding):
        part = [samples[place] for place in places]
        width = max(len(sample.answer) for sample in part)
        labels = [[IGNORED] * (width - len(sample.answer)) + list(sample.answer) for sample in part]
        asked = torch.tensor([len(sample.question) for sample in part], device=lm.device)
        ids, mask = left_padded(lm, [sample.question + sample.answer for sample in part])
        yield AnsweredRows(Rows(ids, mask, asked), torch.tensor(labels, device=lm.device))
