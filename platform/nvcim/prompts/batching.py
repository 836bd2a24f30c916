"""Batches of embeddings: left-padded rows of virtual tokens, question and (in tuning) answer.

Left padding puts every row's last token in the last column, so logits are needed for the last columns only and
generation continues all rows at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nvcim.prompts.language_model import LanguageModel


def position_ids(mask: Tensor) -> Tensor:
    """Positions that count real tokens only; mask: [batch, length] of 0 and 1."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def left_padded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of unequal length -> (ids [batch, length], mask [batch, length])."""
    width = max(len(row) for row in rows)
    pad = lm.tokenizer.pad_token_id
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
        tokens: [batch, n, hidden]; gradients flow to them.
        present: [batch] of bool; rows without virtual tokens get masked columns in their place.

    Returns:
        Embeddings [batch, n + length, hidden] and mask [batch, n + length]. Padding sits before the virtual tokens,
        so a row reads as PEFT's prompt tuning does: virtual tokens, then the text.
    """
    batch, n = tokens.shape[:2]
    length = ids.shape[1]
    padding = length - mask.sum(1)  # real tokens start at this column
    column = torch.arange(n + length, device=ids.device).expand(batch, -1)
    from_token = column - padding[:, None]  # 0..n-1 selects a virtual token, n.. the text
    embedded = lm.embed(ids)
    everything = torch.cat([tokens, embedded], dim=1)
    source = torch.where(from_token < 0, n, torch.where(from_token < n, from_token, column))
    rows = torch.gather(everything, 1, source[..., None].expand(-1, -1, embedded.shape[2]))
    is_virtual = (from_token >= 0) & (from_token < n)
    new_mask = torch.where(is_virtual, present[:, None].long(), (from_token >= n).long())
    return rows, new_mask
