"""Tuning of virtual tokens: it lowers the loss, leaves the LM alone, and does not mind company."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.frozen_decoder import unknown
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import TuningJob, TuningSettings, loss_gradients, tune

SETTINGS = TuningSettings(tokens=4, steps=6)
PAIRS = (
    ("Which tag? description: cars chase and explode .", "action"),
    ("Complete the tweet: sailor whale", "reef sang all night send help"),
    ("the price is awful , the staff were superb , the seats were fine .", "5"),
)


def job(
    lm: LanguageModel, name: str, pairs: Sequence[tuple[str, str]], seed: int, mobile: float = 1.0
) -> TuningJob:
    draws = torch.randn(4, lm.hidden, generator=torch.Generator().manual_seed(seed))
    return TuningJob(name, tuple(pairs), draws * lm.embedding_rms, torch.full((4,), mobile), seed)


def shaken(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Noise of a tenth of the largest element, from each job's own generator."""
    eps = torch.stack([torch.randn(tokens.shape[1:], generator=one) for one in generators])
    return tokens + 0.1 * tokens.detach().abs().amax(dim=(1, 2), keepdim=True) * eps


def assert_same(lm: LanguageModel, one: Tensor, other: Tensor, rounding: float = 1e-3) -> None:
    """To the bit with the compiled kernel; else to a share of the tokens' size, since batches are padded otherwise."""
    share = 0.0 if unknown(lm) is None else rounding
    torch.testing.assert_close(one, other, atol=share * lm.embedding_rms, rtol=0)


def test_tuning_lowers_the_loss_of_every_job(embedded: LanguageModel) -> None:
    jobs = [job(embedded, f"j{i}", [pair], i) for i, pair in enumerate(PAIRS)]
    results = tune(embedded, jobs, SETTINGS.model_copy(update={"steps": 12}))
    assert all(result.last_loss < result.first_loss for result in results)
    assert sum(r.last_loss for r in results) < 0.85 * sum(r.first_loss for r in results)


def test_the_first_loss_is_the_answers_cross_entropy(embedded: LanguageModel) -> None:
    question, said = PAIRS[1]
    one = job(embedded, "j", [(question, said)], 0)
    asked, answer = embedded.question_ids(question), embedded.answer_ids(said)
    with torch.no_grad():
        text = embedded.embed(torch.tensor([asked + answer]))
        logits = embedded.model(inputs_embeds=torch.cat([one.start[None], text], 1)).logits[0]
    predicting = logits[-len(answer) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(predicting, torch.tensor(answer))
    (result,) = tune(embedded, [one], SETTINGS)
    assert result.first_loss == pytest.approx(float(expected), abs=1e-4)


def test_a_jobs_loss_is_the_mean_over_its_samples(embedded: LanguageModel) -> None:
    alone = [tune(embedded, [job(embedded, "j", [pair], 0)], SETTINGS)[0].first_loss for pair in PAIRS]
    (together,) = tune(embedded, [job(embedded, "j", PAIRS, 0)], SETTINGS)
    assert together.first_loss == pytest.approx(sum(alone) / 3, abs=1e-4)


def test_a_job_alone_equals_the_same_job_in_a_batch(embedded: LanguageModel) -> None:
    """Up to rounding: 0.1 % of the tokens' size after six noisy steps."""
    jobs = [job(embedded, "a", PAIRS[:1], 0), job(embedded, "b", PAIRS, 1), job(embedded, "c", PAIRS[1:], 2)]
    together = tune(embedded, jobs, SETTINGS, shaken)
    for one, result in zip(jobs, together, strict=True):
        (alone,) = tune(embedded, [one], SETTINGS, shaken)
        torch.testing.assert_close(result.tokens, alone.tokens, atol=1e-3 * embedded.embedding_rms, rtol=0)
        assert result.last_loss == pytest.approx(alone.last_loss, abs=1e-3)


def test_jobs_are_cut_into_batches_without_changing_results(embedded: LanguageModel) -> None:
    jobs = [job(embedded, f"j{i}", [pair], i) for i, pair in enumerate(PAIRS)]
    whole = tune(embedded, jobs, SETTINGS)
    calls: list[int] = []
    cut = tune(
        embedded, jobs, SETTINGS.model_copy(update={"rows_per_batch": 2}), on_step=lambda: calls.append(1)
    )
    assert len(calls) == 2 * SETTINGS.steps
    assert [result.name for result in cut] == ["j0", "j1", "j2"]
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens, atol=1e-3 * embedded.embedding_rms, rtol=0)


def test_tuning_is_reproducible_and_its_noise_depends_on_the_seed(embedded: LanguageModel) -> None:
    one = job(embedded, "j", PAIRS, 7)
    first, again = (tune(embedded, [one], SETTINGS, shaken)[0] for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    other = TuningJob("j", one.samples, one.start, one.mobility, seed=8)
    assert not torch.equal(first.tokens, tune(embedded, [other], SETTINGS, shaken)[0].tokens)


def test_gradients_never_reach_the_model(embedded: LanguageModel) -> None:
    before = {name: weight.clone() for name, weight in embedded.model.state_dict().items()}
    tune(embedded, [job(embedded, "j", PAIRS, 0)], SETTINGS)
    assert all(torch.equal(weight, before[name]) for name, weight in embedded.model.state_dict().items())
    assert all(weight.grad is None for weight in embedded.model.parameters())


def test_tokens_of_no_mobility_stay_where_they_start(embedded: LanguageModel) -> None:
    one = job(embedded, "j", PAIRS, 0)
    held = TuningJob("j", one.samples, one.start, torch.tensor([0.0, 0.1, 1.0, 1.0]), 0)
    (result,) = tune(embedded, [held], SETTINGS)
    moved = (result.tokens - one.start).square().mean(1).sqrt()
    assert moved[0] == 0
    assert 0 < moved[1] < 0.3 * moved[2:].min()


def test_no_jobs_give_no_results(embedded: LanguageModel) -> None:
    assert tune(embedded, [], SETTINGS) == []


def test_a_job_without_samples_is_refused(embedded: LanguageModel) -> None:
    with pytest.raises(DataError, match="'lonely' has no samples"):
        tune(embedded, [job(embedded, "lonely", [], 0)], SETTINGS)


def test_a_sample_longer_than_the_context_loses_the_end_of_its_text_and_is_counted(
    embedded: LanguageModel,
) -> None:
    opening = "Which tag? description: cars chase ."
    long = (f"{opening} " + "word " * 600, "a road movie")
    one = job(embedded, "long", [PAIRS[0], long], 0)
    (result,) = tune(embedded, [one], SETTINGS)
    assert result.truncated == 1
    cut = embedded.shortened(long[0], embedded.context - 4 - len(embedded.answer_ids(long[1])))
    assert cut.startswith(opening)
    assert len(cut) < len(long[0])
    (expected,) = tune(embedded, [job(embedded, "cut", [PAIRS[0], (cut, long[1])], 0)], SETTINGS)
    assert expected.truncated == 0
    assert torch.equal(result.tokens, expected.tokens)


def test_an_answer_longer_than_the_context_is_cut_and_stops_nobody(embedded: LanguageModel) -> None:
    """508 tokens are left: 254 of the answer, then of a question as many at most."""
    long = job(embedded, "long", [("x", "word " * 600), ("which " * 600, "word " * 600)], 0)
    jobs = [long, job(embedded, "other", PAIRS, 1)]
    settings = SETTINGS.model_copy(update={"steps": 1})
    cut, other = tune(embedded, jobs, settings)
    assert (cut.truncated, other.truncated) == (2, 0)
    answer = embedded.answer_ids("word " * 600)
    shown = [
        (embedded.question_ids("x"), [*answer[:253], answer[-1]]),
        (embedded.question_ids(embedded.shortened("which " * 600, 254)), [*answer[:253], answer[-1]]),
    ]
    losses = []
    for question, said in shown:
        with torch.no_grad():
            text = embedded.embed(torch.tensor([question + said]))
            logits = embedded.model(inputs_embeds=torch.cat([long.start[None], text], 1)).logits[0]
        losses.append(
            torch.nn.functional.cross_entropy(logits[-len(said) - 1 : -1], torch.tensor(said)).item()
        )
    assert cut.first_loss == pytest.approx(sum(losses) / 2, abs=1e-4)
    assert cut.trained_tokens == sum(4 + len(question) + len(said) for question, said in shown)


def test_more_virtual_tokens_than_the_context_takes_are_refused(embedded: LanguageModel) -> None:
    many = TuningJob("many", PAIRS[:1], torch.zeros(511, embedded.hidden), torch.ones(511), 0)
    with pytest.raises(DataError, match="'many': 511 virtual tokens leave 1 of the 512 tokens"):
        tune(embedded, [many], SETTINGS)


def test_trained_tokens_are_those_that_passed_in_all_steps(embedded: LanguageModel) -> None:
    jobs = [
        job(embedded, "whole", PAIRS, 0),
        replace(
            job(embedded, "idle", PAIRS[:1], 0, mobile=0.0), settings=TuningSettings(steps=6, patience=2)
        ),
    ]
    texts = [len(embedded.question_ids(q)) + len(embedded.answer_ids(a)) for q, a in PAIRS]
    whole, idle = tune(embedded, jobs, SETTINGS)
    assert (whole.steps, whole.trained_tokens) == (6, 6 * (sum(texts) + 3 * 4))
    assert (idle.steps, idle.trained_tokens) == (3, 3 * (texts[0] + 4))


@pytest.mark.parametrize("family", ["embedded", "llama", "gpt2"])
def test_a_model_in_bfloat16_is_tuned(family: str, make_family: Callable[[str], Path]) -> None:
    name = family if family == "embedded" else str(make_family(family))
    half = LanguageModel.load(name, "cpu", "bfloat16")
    exact = LanguageModel.load(name, "cpu")
    one = job(exact, "j", PAIRS, 0)
    (rough,), (right,) = (tune(lm, [one], SETTINGS) for lm in (half, exact))
    assert rough.tokens.dtype == torch.float32
    assert rough.first_loss == pytest.approx(right.first_loss, rel=0.02)
    assert rough.last_loss < rough.first_loss
    (gradient,), (wanted,) = (loss_gradients(lm, [one], [one.start], SETTINGS) for lm in (half, exact))
    assert gradient.dtype == torch.float32
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.1


def test_a_last_step_that_runs_away_is_told_and_taken_back(embedded: LanguageModel) -> None:
    wild = TuningSettings(tokens=4, steps=1, learning_rate=math.inf)
    jobs = [replace(job(embedded, "wild", PAIRS, 0), settings=wild), job(embedded, "tame", PAIRS, 1)]
    result, tame = tune(embedded, jobs, SETTINGS)
    assert (result.stopped, result.reason) == ("not finite", "tokens were not finite after step 1")
    assert torch.equal(result.tokens, jobs[0].start)
    assert (tame.stopped, tame.steps) == ("steps", 6)


def test_a_start_of_another_width_is_refused(embedded: LanguageModel) -> None:
    bad = TuningJob("narrow", PAIRS[:1], torch.zeros(4, 3), torch.ones(4), 0)
    with pytest.raises(DataError, match=r"'narrow': start has shape \(4, 3\) .* allowed are \[n, 128\]"):
        tune(embedded, [bad], SETTINGS)


# Jobs' own settings, ends and faults --------------------------------------------------------------------------


def test_jobs_keep_their_own_rate_steps_and_number_of_tokens(embedded: LanguageModel) -> None:
    base = [job(embedded, f"j{i}", [pair], i) for i, pair in enumerate(PAIRS)]
    own = [
        SETTINGS.model_copy(update={"steps": 3}),
        SETTINGS.model_copy(update={"learning_rate": 0.02}),
        SETTINGS,
    ]
    jobs = [replace(one, settings=settings) for one, settings in zip(base, own, strict=True)]
    jobs.append(TuningJob("short", PAIRS[:1], base[0].start[:2], base[0].mobility[:2], 3))
    results = tune(embedded, jobs, SETTINGS)
    assert [result.steps for result in results] == [3, 6, 6, 6]
    assert [len(result.tokens) for result in results] == [4, 4, 4, 2]
    for one, result in zip(jobs, results, strict=True):
        (alone,) = tune(embedded, [replace(one, settings=None)], one.settings or SETTINGS)
        assert_same(embedded, alone.tokens, result.tokens)
    # Adam's first step is the learning rate whatever the gradient, so the slow job went an eighth or so of the way.
    far = [float((result.tokens - one.start).abs().mean()) for one, result in zip(jobs, results, strict=True)]
    assert far[1] < 0.3 * far[2]


def test_a_job_without_progress_stops_and_the_others_go_on(embedded: LanguageModel) -> None:
    still = replace(
        job(embedded, "still", PAIRS[:1], 0, mobile=0.0),
        settings=TuningSettings(tokens=4, steps=6, patience=2),
    )
    # No step lowers the loss by 1000 nats, so only the first counts as progress.
    greedy = replace(
        job(embedded, "greedy", PAIRS[1:2], 1),
        settings=TuningSettings(tokens=4, steps=6, patience=3, min_improvement=1000),
    )
    other = job(embedded, "other", PAIRS[2:], 2)
    results = tune(embedded, [still, greedy, other], SETTINGS)
    assert [(result.steps, result.stopped) for result in results] == [
        (3, "patience"),
        (4, "patience"),
        (6, "steps"),
    ]
    assert results[0].reason == f"no lower loss than {results[0].first_loss:.4g} for 2 steps"
    assert_same(embedded, results[2].tokens, tune(embedded, [other], SETTINGS)[0].tokens)


def test_waiting_jobs_take_the_places_of_finished_ones(embedded: LanguageModel) -> None:
    short = SETTINGS.model_copy(update={"steps": 2})
    jobs = [replace(job(embedded, f"j{i}", PAIRS[:1], i), settings=short) for i in range(3)]
    jobs.append(job(embedded, "long", PAIRS[:1], 3))
    seen: list[list[int]] = []

    def watching(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        seen.append(sorted(places))
        return tokens

    tune(embedded, jobs, SETTINGS.model_copy(update={"rows_per_batch": 2}), watching)
    assert seen == [[0, 1]] * 2 + [[2, 3]] * 2 + [[3]] * 4


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("family", ["embedded", "gpt2"])
def test_a_job_that_is_not_finite_stops_and_the_others_go_on_unchanged(
    embedded: LanguageModel, make_family: Callable[[str], Path], when: int, family: str
) -> None:
    lm = embedded if family == "embedded" else LanguageModel.load(str(make_family(family)), "cpu")
    jobs = [job(lm, f"j{i}", [pair], i) for i, pair in enumerate(PAIRS)]
    calls: dict[int, int] = {}

    def broken(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        factor = torch.ones(len(places), 1, 1)
        for i, place in enumerate(places):
            calls[place] = calls.get(place, 0) + 1
            if place == 1 and calls[place] == when + 1:
                factor[i] = float("nan")
        return shaken(tokens, places, generators) * factor

    results = tune(lm, jobs, SETTINGS, broken)
    bad = results[1]
    assert (bad.stopped, bad.steps) == ("not finite", when)
    assert bad.reason == f"loss or gradient was not finite at step {when + 1}"
    assert math.isnan(bad.first_loss) == (when == 0)
    assert bad.tokens.isfinite().all()
    if when == 0:
        assert torch.equal(bad.tokens, jobs[1].start)
    else:
        assert not torch.equal(bad.tokens, jobs[1].start)
    expected = tune(lm, [jobs[0], jobs[2]], SETTINGS, shaken)
    for one, other in zip([results[0], results[2]], expected, strict=True):
        assert one.stopped == "steps"
        assert_same(lm, one.tokens, other.tokens)


def test_a_penalty_is_added_to_each_jobs_own_loss(embedded: LanguageModel) -> None:
    jobs = [job(embedded, f"j{i}", [pair], i) for i, pair in enumerate(PAIRS)]
    strength = [0.0, 1e4, float("nan")]

    def short(tokens: Tensor, places: Sequence[int]) -> Tensor:
        return torch.tensor([strength[p] for p in places]) * tokens.square().sum((1, 2))

    plain = tune(embedded, jobs, SETTINGS)
    drawn = tune(embedded, jobs, SETTINGS, penalty=short)
    assert_same(embedded, plain[0].tokens, drawn[0].tokens)
    assert plain[1].first_loss == drawn[1].first_loss
    # Against so strong a penalty the loss does not count: every element shrinks by Adam's steps of one size.
    rates = 0.15 * embedded.embedding_rms * sum(1 - 0.9 * step / 6 for step in range(6))
    shrunk = jobs[1].start.abs() - drawn[1].tokens.abs()
    large = jobs[1].start.abs() > 2 * rates
    assert large.sum() > 20
    torch.testing.assert_close(shrunk[large], torch.full_like(shrunk[large], rates), rtol=0.2, atol=0)
    assert drawn[2].stopped == "not finite"


def test_gradients_are_the_slope_of_the_jobs_loss(embedded: LanguageModel) -> None:
    jobs = [job(embedded, "a", PAIRS[:2], 0), job(embedded, "b", PAIRS[2:], 1)]
    tokens = [one.start * 0.5 for one in jobs]
    for one, at, gradient in zip(jobs, tokens, loss_gradients(embedded, jobs, tokens, SETTINGS), strict=True):
        step = 0.01 * at.norm() * gradient / gradient.norm()
        ends = [tune(embedded, [replace(one, start=at + side * step)], SETTINGS)[0] for side in (-1, 1)]
        slope = (ends[1].first_loss - ends[0].first_loss) / (2 * float(step.norm()))
        assert slope == pytest.approx(float(gradient.norm()), rel=0.02)


def test_bfloat16_learns_what_float32_learns(embedded: LanguageModel) -> None:
    half = SETTINGS.model_copy(update={"precision": "bfloat16"})
    for pair in PAIRS:
        one = job(embedded, "j", [pair], 0)
        (exact,), (rough,) = tune(embedded, [one], SETTINGS), tune(embedded, [one], half)
        assert rough.first_loss == pytest.approx(exact.first_loss, rel=0.02)
        assert rough.first_loss != exact.first_loss
        assert rough.last_loss < rough.first_loss


def test_a_job_among_64_equals_the_same_job_alone_after_all_steps(embedded: LanguageModel) -> None:
    """The largest difference is 0 with the compiled kernel; else rounding grows over 60 steps of Adam."""
    rng = random.Random(0)
    words = PAIRS[0][0].split()
    jobs = [
        job(embedded, f"j{i}", [(" ".join(rng.choices(words, k=rng.randint(1, 6))), rng.choice(words))], i)
        for i in range(64)
    ]
    settings = TuningSettings(tokens=4)
    together = tune(embedded, jobs, settings, shaken)
    for i in (0, 63):
        (alone,) = tune(embedded, [jobs[i]], settings, shaken)
        assert_same(embedded, alone.tokens, together[i].tokens, 0.05)
