"""Generation for many users in one batch: everyone gets the answer that they would get alone."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts import generation
from nvcim.prompts.generation import Batch, Choice, generate
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.prefix_cache import PrefixCache
from nvcim.prompts.tokenization import text_ids

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


def test_a_cache_changes_no_answer(any_lm: LanguageModel) -> None:
    """Different numbers of tokens and rows without any, twice: first computed, then found."""
    sets = [*tokens(any_lm, 1, 9), None, *tokens(any_lm, 1, 2)]
    without = generate(any_lm, QUESTIONS, sets, max_new_tokens=6)
    cache = PrefixCache(any_lm)
    for _ in range(2):
        assert generate(any_lm, QUESTIONS, sets, max_new_tokens=6, cache=cache) == without
    assert (cache.hits, cache.misses) == (2, 2)
    assert [
        one.prompt_tokens - len(any_lm.question_ids(q)) for one, q in zip(without, QUESTIONS, strict=True)
    ] == [
        9,
        0,
        2,
    ]


@torch.no_grad()
def test_answers_are_those_of_transformers_own_loop(any_lm: LanguageModel) -> None:
    sets = tokens(any_lm, 3, 5)
    ours = generate(any_lm, QUESTIONS, sets, max_new_tokens=8, cache=PrefixCache(any_lm))
    for question, given, got in zip(QUESTIONS, sets, ours, strict=True):
        embedded = torch.cat([given, any_lm.embed(torch.tensor(any_lm.question_ids(question)))])[None]
        ids = any_lm.model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=any_lm.tokenizer.eos_token_id,
            pad_token_id=any_lm.tokenizer.pad_token_id,
        )[0].tolist()
        assert got.text == any_lm.decode(ids)
        assert got.completion_tokens == len(ids) - (ids[-1] == any_lm.tokenizer.eos_token_id)


def test_a_model_that_can_cache_no_prefix_answers_a_batch_as_each_alone(dynamic_lm: LanguageModel) -> None:
    sets = [*tokens(dynamic_lm, 1, 9), None, *tokens(dynamic_lm, 1, 2)]
    for temperature in (0.0, 1.3):
        together = generate(dynamic_lm, QUESTIONS, sets, 6, temperature)
        alone = [
            generate(dynamic_lm, [q], [t], 6, temperature)[0] for q, t in zip(QUESTIONS, sets, strict=True)
        ]
        assert together == alone


def test_both_loops_choose_the_same(embedded: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [*tokens(embedded, 1, 9), None, *tokens(embedded, 1, 2)]
    greedy, sampled = (generate(embedded, QUESTIONS, sets, 12, heat, seed=4) for heat in (0.0, 1.3))
    monkeypatch.setitem(embedded.__dict__, "can_cache_prefix", False)
    monkeypatch.setattr(generation, "Batch", None)  # our own loop would fail
    assert generate(embedded, QUESTIONS, sets, 12) == greedy
    assert generate(embedded, QUESTIONS, sets, 12, 1.3, seed=4) == sampled


def test_rows_that_end_leave_the_batch(embedded: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row k ends after k tokens, whatever the model says; the model then reads one row less."""
    read: list[int] = []
    advance = Batch.advance

    def seen(batch: Batch) -> Tensor:
        read.append(len(batch.next_ids))
        return advance(batch)

    def ends_in_turn(choice: Choice, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return torch.where(rows <= step, embedded.tokenizer.eos_token_id, 10 + rows)

    monkeypatch.setattr(Batch, "advance", seen)
    monkeypatch.setattr(Choice, "pick", ends_in_turn)
    answers = generate(embedded, QUESTIONS, [None] * 3, max_new_tokens=9)
    assert read == [3, 2, 1]
    assert [one.completion_tokens for one in answers] == [0, 1, 2]
    assert {one.finish_reason for one in answers} == {"stop"}
    assert [one.text for one in answers] == ["", embedded.decode([11]), embedded.decode([12, 12])]


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


def test_a_sample_does_not_depend_on_who_else_is_in_the_batch(any_lm: LanguageModel) -> None:
    sets = [*tokens(any_lm, 1), None, *tokens(any_lm, 1, 2)]
    together = generate(any_lm, QUESTIONS, sets, 6, temperature=1.2, seed=5)
    turned = generate(any_lm, QUESTIONS[::-1], sets[::-1], 6, temperature=1.2, seed=5)
    assert turned[::-1] == together
    alone = [generate(any_lm, [q], [t], 6, 1.2, 5)[0] for q, t in zip(QUESTIONS, sets, strict=True)]
    assert alone == together
    # The first of two equal rows gets what it gets alone, the second another draw.
    twice = generate(any_lm, [QUESTIONS[0]] * 2, [sets[0]] * 2, 6, 1.2, 5)
    assert twice[0] == alone[0] != twice[1]


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    """Shares of 20,000 draws against softmax([0, 1, 2] / 2), by hand; 0.01 is three standard errors."""
    count = 20_000
    choice = Choice([[i] for i in range(count)], [None] * count, 1, temperature=2.0, seed=0)
    picked = choice.pick(torch.tensor([[0.0, 1.0, 2.0]]).expand(count, 3), torch.arange(count), 0)
    shares = picked.bincount(minlength=3) / count
    weights = [1.0, 1.6487, 2.7183]  # exp(0), exp(1/2), exp(1)
    expected = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


def test_a_token_of_no_probability_is_never_drawn() -> None:
    choice = Choice([[0], [1]], [None, None], 1, temperature=1.0, seed=0)
    choice.uniform = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)  # the ends of what can be drawn
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    assert choice.pick(logits, torch.arange(2), 0).tolist() == [1, 2]


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "llama"])
def test_bfloat16_answers_are_near_those_of_float32(make_family: Callable[[str], Path], family: str) -> None:
    """Logits within a tenth of their spread on the tiny models; tuned tokens stay float32 until the model's edge."""
    folder = str(make_family(family))
    full, half = LanguageModel.load(folder, "cpu"), LanguageModel.load(folder, "cpu", "bfloat16")
    sets = tokens(full, 3, 5)
    answers = generate(half, QUESTIONS, sets, 4, cache=PrefixCache(half))
    assert [one.prompt_tokens for one in answers] == [len(full.question_ids(q)) + 5 for q in QUESTIONS]
    rows = [full.question_ids(q) for q in QUESTIONS]
    expected, got = (Batch(lm, rows, sets, PrefixCache(lm).of(sets), 1).advance() for lm in (full, half))
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.1 * expected.std()
    assert not torch.equal(got, expected)


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


def test_a_long_neighbour_takes_no_room_from_a_question(embedded: LanguageModel) -> None:
    text = "whale"
    while len(embedded.question_ids(text + " whale")) <= embedded.context - 4 - 8:
        text += " whale"
    few, many = *tokens(embedded, 1, 4), *tokens(embedded, 1, 40)
    assert len(generate(embedded, [text, "a"], [few, many], max_new_tokens=8)) == 2
    with pytest.raises(DataError, match="at most 464 fit the context"):
        generate(embedded, [text], [many], max_new_tokens=8)


@pytest.mark.parametrize("shape", [(4, 64), (0, 128), (128,)])
def test_tokens_that_do_not_fit_the_model_are_refused(
    embedded: LanguageModel, shape: tuple[int, ...]
) -> None:
    good = torch.zeros(4, 128)
    expected = rf"virtual tokens of shape {re.escape(str(list(shape)))}; \[n, 128\] with n of at least 1 fit"
    with pytest.raises(DataError, match=expected):
        generate(embedded, ["a whale", "a"], [good, torch.zeros(shape)])
    with pytest.raises(DataError, match=expected):
        PrefixCache(embedded).of([good, torch.zeros(shape)])


def test_another_models_cache_and_an_empty_answer_are_refused(
    embedded: LanguageModel, make_family: Callable[[str], Path]
) -> None:
    other = LanguageModel.load(str(make_family("llama")), "cpu")
    with pytest.raises(ValueError, match="the prefix cache belongs to model"):
        generate(embedded, ["a whale"], [None], cache=PrefixCache(other))
    with pytest.raises(ValueError, match="max_new_tokens is 0; at least 1"):
        generate(embedded, ["a whale"], [None], max_new_tokens=0)


def says(monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, text: str) -> list[int]:
    """Make every row write a text, then end; returns its ids."""
    ids = text_ids(lm.tokenizer, text)

    def pick(choice: Choice, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return torch.full((len(rows),), ids[step] if step < len(ids) else lm.ends[0])

    monkeypatch.setattr(Choice, "pick", pick)
    return ids


@pytest.mark.parametrize("loop", ["own", "transformers"])
@pytest.mark.parametrize(
    ("stops", "text", "counted"),
    [
        ([], "\nyes, no maybe ", "\nyes, no maybe "),
        (["\n"], "", ""),
        ([" no", "maybe"], "\nyes,", "\nyes,"),
        (
            ["s, n"],
            "\nye",
            "\nyes",
        ),  # the stop text begins within a token, and that token is part of the answer
        (["never"], "\nyes, no maybe ", "\nyes, no maybe "),
    ],
)
def test_an_answer_ends_before_a_stop_text_and_counts_its_own_tokens(
    embedded: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    loop: str,
    stops: list[str],
    text: str,
    counted: str,
) -> None:
    monkeypatch.setitem(embedded.__dict__, "can_cache_prefix", loop == "own")
    ids = says(monkeypatch, embedded, "\nyes, no maybe ")
    (got, free) = generate(embedded, ["a", "a whale"], [None, None], 40, stops=[stops, []])
    assert (got.text, got.finish_reason) == (text, "stop")
    assert (free.text, free.completion_tokens) == ("\nyes, no maybe ", len(ids))
    fewest = next(k for k in range(len(ids) + 1) if embedded.decode(ids[:k]).startswith(counted))
    assert got.completion_tokens == fewest


def test_nothing_is_computed_behind_a_stop_text(
    embedded: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    advance = Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda batch: read.append(len(batch.next_ids)) or advance(batch))
    says(monkeypatch, embedded, "\nyes, no maybe ")
    generate(embedded, ["a", "a whale"], [None, None], 3, stops=[["\n"], []])
    assert read == [2, 1, 1]


@torch.no_grad()
def test_every_end_that_the_checkpoint_lists_ends_an_answer(embedded: LanguageModel, tmp_path: Path) -> None:
    """As chat models list their end of turn: transformers' own loop stops there, and so must ours, both ways."""
    model = deepcopy(embedded.model)
    ids = torch.tensor([embedded.question_ids(QUESTIONS[0])])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    free = model.generate(ids, **how)[0, ids.shape[1] :].tolist()
    turn = next(token for token in free[1:] if token != embedded.ends[0])
    model.generation_config.eos_token_id = [embedded.ends[0], turn]
    ended = model.generate(ids, **how)[0, ids.shape[1] :].tolist()
    assert ended[-1] == turn
    assert len(ended) < len(free)
    model.save_pretrained(tmp_path)
    embedded.tokenizer.save_pretrained(tmp_path)
    for lm in (
        LanguageModel.wrap("mine", model, embedded.tokenizer, "cpu"),
        LanguageModel.load(str(tmp_path), "cpu"),
    ):
        (got,) = generate(lm, QUESTIONS[:1], [None], 12)
        assert (got.completion_tokens, got.finish_reason) == (len(ended) - 1, "stop")
        assert got.text == lm.decode(ended[:-1])


def test_a_checkpoints_own_settings_of_generation_change_no_choice(dynamic_lm: LanguageModel) -> None:
    """A penalty of repetition as Qwen's checkpoints ship one; our own loop knows none."""
    sets = [*tokens(dynamic_lm, 1, 9), None, None]
    before = generate(dynamic_lm, QUESTIONS, sets, 8)
    dynamic_lm.model.generation_config.repetition_penalty = 5.0
    assert generate(dynamic_lm, QUESTIONS, sets, 8) == before
    assert dynamic_lm.model.generation_config.repetition_penalty == 5.0


def test_stop_texts_for_other_questions_are_refused(embedded: LanguageModel) -> None:
    with pytest.raises(ValueError, match="1 lists of stop texts for 2 questions"):
        generate(embedded, ["a", "b"], [None, None], stops=[["x"]])
