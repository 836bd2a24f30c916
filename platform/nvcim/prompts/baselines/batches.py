"""A user's samples and questions as left-padded rows of token ids."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.batching import left_padded
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


def length_groups(lengths: Sequence[int], rows: int, most_padding: float = math.inf) -> list[list[int]]:
    """Places of texts that share a batch, shortest first: at most `rows`, none padded by more than `most_padding`."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or len(groups[-1]) == rows or lengths[place] - lengths[groups[-1][0]] > most_padding:
            groups.append([])
        groups[-1].append(place)
    return groups


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
    lm: LanguageModel, samples: Sequence[tuple[str, str]], rows_per_batch: int, most_padding: float
) -> Iterator[AnsweredRows]:
    """Rows of (question, answer) pairs in batches as `length_groups` makes them."""
    pairs = [(lm.question_ids(question), lm.answer_ids(answer)) for question, answer in samples]
    lengths = [len(question) + len(answer) for question, answer in pairs]
    for places in length_groups(lengths, rows_per_batch, most_padding):
        part = [pairs[place] for place in places]
        width = max(len(answer) for _, answer in part)
        labels = [[IGNORED] * (width - len(answer)) + answer for _, answer in part]
        asked = torch.tensor([len(question) for question, _ in part], device=lm.device)
        ids, mask = left_padded(lm, [question + answer for question, answer in part])
        yield AnsweredRows(Rows(ids, mask, asked), torch.tensor(labels, device=lm.device))


def fitting_samples(
    lm: LanguageModel, samples: Sequence[tuple[str, str]], room: int
) -> tuple[list[tuple[str, str]], int]:
    """Samples of which each takes at most `room` tokens, and how many questions were shortened for that.

    Raises:
        DataError: an answer that leaves no room for a question.
    """
    fitting, shortened = [], 0
    for question, answer in samples:
        left = room - len(lm.answer_ids(answer))
        text = lm.shortened(question, left) if left > 0 else question
        if len(lm.question_ids(text)) > left:
            raise DataError(
                f"answer '{answer[:40]}...' leaves {max(left, 0)} of {room} tokens for its question, "
                f"which model '{lm.name}' cannot be taught"
            )
        shortened += text != question
        fitting.append((text, answer))
    return fitting, shortened


def token_count(lm: LanguageModel, samples: Sequence[tuple[str, str]]) -> int:
    """Tokens of all questions and answers, without padding."""
    return sum(len(lm.question_ids(question)) + len(lm.answer_ids(answer)) for question, answer in samples)
