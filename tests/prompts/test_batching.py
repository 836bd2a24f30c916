"""Left-padded batches with virtual tokens read as each row alone does, and as PEFT's prompt tuning does."""

import warnings
from typing import Any

import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from nvcim.prompts.batching import left_padded, position_ids, with_virtual_tokens
from nvcim.prompts.language_model import EMBEDDED_FOLDER, LanguageModel

TEXTS = (
    "a whale",
    "the conductor at the depot , a ticket and a brake in the tunnel",
    "broth , a sourdough , a knife",
)


def virtual_tokens(lm: LanguageModel, *shape: int, seed: int = 0) -> Tensor:
    draws = torch.randn(*shape, lm.hidden, generator=torch.Generator().manual_seed(seed))
    return draws * lm.embedding_rms


@torch.no_grad()
def test_padded_rows_with_virtual_tokens_equal_rows_alone(any_lm: LanguageModel) -> None:
    rows = [any_lm.question_ids(text) for text in TEXTS]
    assert len({len(row) for row in rows}) == 3
    tokens = virtual_tokens(any_lm, 3, 5)
    present = torch.tensor([True, True, False])
    ids, mask = left_padded(any_lm, rows)
    embedded, full = with_virtual_tokens(any_lm, ids, mask, tokens, present)
    together = any_lm.model(
        inputs_embeds=embedded, attention_mask=full, position_ids=position_ids(full)
    ).logits
    for i, row in enumerate(rows):
        text = any_lm.embed(torch.tensor([row]))
        alone = any_lm.model(
            inputs_embeds=torch.cat([tokens[i : i + 1], text], dim=1) if present[i] else text
        ).logits[0]
        assert int(full[i].sum()) == len(alone)
        torch.testing.assert_close(together[i, -len(row) :], alone[-len(row) :], atol=1e-4, rtol=0)


@torch.no_grad()
def test_virtual_tokens_stand_where_peft_puts_them(embedded: LanguageModel) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=6, prompt_tuning_init=PromptTuningInit.RANDOM
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for an attribute of an older name
        peft_model: Any = get_peft_model(base, config).eval()
    tokens = virtual_tokens(embedded, 1, 6)
    peft_model.prompt_encoder["default"].embedding.weight.copy_(tokens[0])
    ids, mask = left_padded(embedded, [embedded.question_ids(TEXTS[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that it makes position ids itself
        theirs = peft_model(input_ids=ids, attention_mask=mask).logits
    rows, full = with_virtual_tokens(embedded, ids, mask, tokens, torch.tensor([True]))
    ours = embedded.model(inputs_embeds=rows, attention_mask=full, position_ids=position_ids(full)).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_gradients_flow_to_each_rows_own_tokens(embedded: LanguageModel) -> None:
    tokens = virtual_tokens(embedded, 2, 3).requires_grad_()
    ids, mask = left_padded(embedded, [embedded.question_ids(text) for text in TEXTS[:2]])
    rows, _ = with_virtual_tokens(embedded, ids, mask, tokens, torch.tensor([True, True]))
    rows[0].sum().backward()
    assert tokens.grad is not None
    assert torch.equal(
        tokens.grad, torch.stack([torch.ones(3, embedded.hidden), torch.zeros(3, embedded.hidden)])
    )


def test_positions_count_real_tokens_only() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
