"""Left-padded batches with virtual tokens read as each row alone does, and as PEFT's prompt tuning does."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from nvcim.errors import DataError
from nvcim.prompts.batching import fitted_samples, left_padded, position_ids, with_virtual_tokens
from nvcim.prompts.language_model import EMBEDDED_FOLDER, LanguageModel
from tests.closeness import close

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
    assert close(ours, theirs)


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


def test_float32_tokens_take_the_type_of_a_bfloat16_model_and_get_float32_gradients() -> None:
    half = LanguageModel.load("embedded", "cpu", "bfloat16")
    tokens = virtual_tokens(half, 1, 3).requires_grad_()
    ids, mask = left_padded(half, [half.question_ids(TEXTS[0])])
    rows, _ = with_virtual_tokens(half, ids, mask, tokens, torch.tensor([True]))
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[0, :3], tokens[0].to(torch.bfloat16))
    rows.float().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.dtype == torch.float32
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


# Samples that are too long -------------------------------------------------------------------------------------


def test_a_sample_that_fits_is_left_whole(embedded: LanguageModel) -> None:
    asked, said = embedded.question_ids("why"), embedded.answer_ids("a whale " * 100)
    room = len(asked) + len(said)
    (whole,) = fitted_samples(embedded, [("why", "a whale " * 100)], embedded.context - room, "it")
    assert (list(whole.question), list(whole.answer), whole.cut) == (asked, said, False)
    assert len(whole) == room
    (one_less,) = fitted_samples(embedded, [("why", "a whale " * 100)], embedded.context - room + 1, "it")
    assert one_less.cut


@pytest.mark.parametrize("question", ["why", "which tag ? " + "a whale in the depot " * 200])
def test_an_answer_is_cut_to_half_of_the_room_before_the_question_is(
    embedded: LanguageModel, question: str
) -> None:
    answer = "broth , a knife " * 200
    (sample,) = fitted_samples(embedded, [(question, answer)], embedded.context - 101, "it")
    said = embedded.answer_ids(answer)
    assert len(said) > 101
    assert list(sample.answer) == [*said[:49], embedded.tokenizer.eos_token_id]
    assert list(sample.question) == embedded.question_ids(embedded.shortened(question, 51))
    assert len(sample.question) <= 51
    assert sample.cut


def test_a_short_answer_stays_whole_and_the_question_has_the_rest(embedded: LanguageModel) -> None:
    question = "which tag ? " + "a whale in the depot " * 200
    (sample,) = fitted_samples(embedded, [(question, "a knife")], embedded.context - 101, "it")
    said = embedded.answer_ids("a knife")
    assert list(sample.answer) == said
    assert list(sample.question) == embedded.question_ids(embedded.shortened(question, 101 - len(said)))


def test_a_first_word_that_is_too_long_is_cut_between_its_opening_and_the_answer_mark(
    embedded: LanguageModel,
) -> None:
    question = "whale" * 200
    asked, said = embedded.question_ids(question), embedded.answer_ids("a knife")
    mark = embedded.tokenizer("\nAnswer:", add_special_tokens=False)["input_ids"]
    (sample,) = fitted_samples(embedded, [(question, "a knife")], embedded.context - 50, "it")
    kept = 50 - len(said) - len(mark)
    assert list(sample.question) == [*asked[:kept], *mark]
    assert len(sample) == 50


@pytest.mark.parametrize("room", [2, 3, 4, 7])
def test_the_least_room_holds_something_of_question_and_answer(any_lm: LanguageModel, room: int) -> None:
    samples = [("why " * 300, "because " * 300), ("why" * 300, "x"), ("", "because " * 300)]
    for sample in fitted_samples(any_lm, samples, any_lm.context - room, "it"):
        assert 2 <= len(sample) <= room
        assert sample.question[-1] == any_lm.question_ids("why")[-1]
        assert sample.answer[-1] == any_lm.tokenizer.eos_token_id
        assert len(sample.answer) <= max(1, room // 2)


@pytest.mark.parametrize("room", [1, 0, -3])
def test_a_context_without_room_is_refused(embedded: LanguageModel, room: int) -> None:
    small = replace(embedded, context=20)
    wanted = (
        f"it: {20 - room} virtual tokens leave {max(room, 0)} of the 20 tokens that model 'embedded' takes"
    )
    with pytest.raises(DataError, match=wanted):
        fitted_samples(small, [("why", "x")], 20 - room, "it")
