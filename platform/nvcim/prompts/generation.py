"""Generation for many users in one batch, each with tokens of its own or none."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.batching import left_padded, with_virtual_tokens
from nvcim.prompts.language_model import LanguageModel


@dataclass(frozen=True)
class Generated:
    """An answer, the token counts behind it, and why it ended ('stop' or 'length')."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


@torch.no_grad()
def generate(
    lm: LanguageModel,
    questions: Sequence[str],
    tokens: Sequence[Tensor | None],
    max_new_tokens: int = 24,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generated]:
    """Answer every question after its virtual tokens.

    Args:
        lm: the frozen model.
        questions: texts as the user asked them (the answer mark is added here).
        tokens: for each question its virtual tokens [n, hidden], or None; all of one length n.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token; above 0 samples, reproducibly from `seed`.
        seed: of sampling.

    Raises:
        DataError: a question that does not fit the model's context.
    """
    if not questions:
        return []
    rows = [lm.question_ids(question) for question in questions]
    n = max((len(t) for t in tokens if t is not None), default=0)
    room = lm.context - n - max_new_tokens
    for question, row in zip(questions, rows, strict=True):
        if len(row) > room:
            raise DataError(
                f"question '{question[:40]}...' has {len(row)} tokens; at most {room} fit the context"
            )
    ids, mask = left_padded(lm, rows)
    filled = [torch.zeros(n, lm.hidden, device=lm.device) if t is None else t.to(lm.device) for t in tokens]
    present = torch.tensor([t is not None for t in tokens], device=lm.device)
    embedded, full_mask = with_virtual_tokens(lm, ids, mask, torch.stack(filled), present)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers samples from torch's own state
        output = lm.model.generate(
            inputs_embeds=embedded,
            attention_mask=full_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=lm.tokenizer.eos_token_id,
            pad_token_id=lm.tokenizer.pad_token_id,
            **sampling,
        )
    answers = []
    for row, ids_out, token in zip(rows, output.tolist(), tokens, strict=True):
        end = (
            ids_out.index(lm.tokenizer.eos_token_id) if lm.tokenizer.eos_token_id in ids_out else len(ids_out)
        )
        reason = "stop" if end < len(ids_out) else "length"
        count = len(row) + (0 if token is None else len(token))
        answers.append(Generated(lm.decode(ids_out[:end]), count, end, reason))
    return answers
