"""Generation for many users in one batch: everyone gets the answer that they would get alone."""

import pytest
import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.generation import generate
from nvcim.prompts.language_model import LanguageModel

QUESTIONS = ("Complete the tweet: sailor whale", "a", "the price is awful , the staff were superb .")


def tokens(lm: LanguageModel, count: int, n: int = 4) -> list[Tensor]:
    draws = torch.randn(count, n, lm.hidden, generator=torch.Generator().manual_seed(1))
    return list(draws * lm.embedding_rms)


def test_a_batch_gives_what_each_question_gets_alone(any_lm: LanguageModel) -> None:
    first, second = tokens(any_lm, 2)
    sets = [first, None, second]
    together = generate(any_lm, QUESTIONS, sets, max_new_tokens=6)
    alone = [generate(any_lm, [q], [t], max_new_tokens=6)[0] for q, t in zip(QUESTIONS, sets, strict=True)]
    assert together == alone


@torch.no_grad()
def test_greedy_generation_is_the_likeliest_token_step_by_step(embedded: LanguageModel) -> None:
    (given,) = tokens(embedded, 1)
    ids = embedded.question_ids(QUESTIONS[0])
    written: list[int] = []
    while len(written) < 12 and embedded.tokenizer.eos_token_id not in written:
        text = embedded.embed(torch.tensor([ids + written]))
        logits = embedded.model(inputs_embeds=torch.cat([given[None], text], 1)).logits[0, -1]
        written.append(int(logits.argmax()))
    (got,) = generate(embedded, QUESTIONS[:1], [given], max_new_tokens=12)
    assert got.text == embedded.decode(written)
    ended = written[-1] == embedded.tokenizer.eos_token_id
    assert got.finish_reason == ("stop" if ended else "length")
    assert got.completion_tokens == len(written) - ended
    assert got.prompt_tokens == len(ids) + 4


def test_tokens_change_the_answer(embedded: LanguageModel) -> None:
    answers = {generate(embedded, QUESTIONS[:1], [one])[0].text for one in [None, *tokens(embedded, 4)]}
    assert len(answers) > 1


def test_sampling_is_reproducible_and_leaves_torch_alone(embedded: LanguageModel) -> None:
    before = torch.get_rng_state()
    asked = [QUESTIONS[0]] * 6
    sampled = [
        [g.text for g in generate(embedded, asked, [None] * 6, temperature=1.5, seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert len(set(sampled[0])) > 1
    assert torch.equal(before, torch.get_rng_state())


def test_no_questions_give_no_answers(embedded: LanguageModel) -> None:
    assert generate(embedded, [], []) == []


def test_a_question_that_fits_is_answered_and_one_more_token_is_refused(embedded: LanguageModel) -> None:
    text = "whale"
    while len(embedded.question_ids(text + " whale")) <= embedded.context - 4 - 8:
        text += " whale"
    one = tokens(embedded, 1)
    assert generate(embedded, [text], one, max_new_tokens=8)
    with pytest.raises(DataError, match=r"question 'whale .*' has \d+ tokens; at most 500 fit the context"):
        generate(embedded, [text + " whale whale"], one, max_new_tokens=8)
