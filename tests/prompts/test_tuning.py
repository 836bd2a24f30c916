"""Tuning of virtual tokens: it lowers the loss, leaves the LM alone, and does not mind company."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nvcim.errors import DataError
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import TuningJob, TuningSettings, tune

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


def test_a_sample_longer_than_the_context_is_refused(embedded: LanguageModel) -> None:
    long = job(embedded, "long", [("word " * 600, "x")], 0)
    with pytest.raises(DataError, match=r"'long': a sample has \d+ tokens, model 'embedded' takes 508"):
        tune(embedded, [long], SETTINGS)
