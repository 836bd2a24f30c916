"""From samples to jobs, codes and queries: what NVCiM-PT's parts are put together to."""

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.prompts.personaliser import NO_MITIGATION, NVCIM_PT, CodeJob, Personaliser
from nvcim.prompts.representation import represent


@pytest.fixture(scope="module")
def jobs(personaliser: Personaliser, users: list[UserStream]) -> list[CodeJob]:
    return personaliser.jobs(users[0].history, CrossbarConfig(), seed=3)


def test_a_buffer_gives_a_job_per_representative(
    personaliser: Personaliser, users: list[UserStream], jobs: list[CodeJob]
) -> None:
    pairs = {(s.input, s.output): s for s in users[0].history}
    assert len(jobs) == personaliser.settings.representatives
    assert len({entry.job.name for entry in jobs}) == len({entry.job.seed for entry in jobs}) == len(jobs)
    for entry in jobs:
        assert len(entry.job.samples) == personaliser.settings.neighbours
        sample = pairs[entry.job.samples[0]]
        assert entry.job.name == f"{users[0].user_id}/{sample.seq}"
        assert entry.label == sample.domain


def test_a_set_starts_as_its_question_and_answer_look_to_the_lm(
    personaliser: Personaliser, jobs: list[CodeJob]
) -> None:
    settings, lm = personaliser.settings, personaliser.lm
    for entry in jobs:
        question, said = entry.job.samples[0]
        keys = represent(lm, [question], settings.key_tokens, settings.layer)[0]
        torch.testing.assert_close(
            entry.job.start[: settings.key_tokens], keys, atol=1e-3 * lm.embedding_rms, rtol=0
        )
        answer = lm.embed(torch.tensor(lm.answer_ids(said)))
        free = entry.job.start[settings.key_tokens :]
        torch.testing.assert_close(free.mean(0), answer.mean(0), atol=0.5 * lm.embedding_rms, rtol=0)
        assert entry.job.mobility[: settings.key_tokens].unique().tolist() == pytest.approx(
            [settings.key_mobility]
        )
        assert entry.job.mobility[settings.key_tokens :].unique().tolist() == [1.0]


def test_one_for_all_is_tuned_on_everything(personaliser: Personaliser, users: list[UserStream]) -> None:
    entry = personaliser.one_for_all_job(users[0].history, CrossbarConfig(), seed=3)
    assert entry.job.samples == tuple((s.input, s.output) for s in users[0].history)
    assert entry.label == ""


def test_a_query_fills_the_key_tokens_only(personaliser: Personaliser, users: list[UserStream]) -> None:
    settings = personaliser.settings
    codes = personaliser.encode_queries([query.input for query in users[0].queries])
    assert codes.shape == (2, settings.tuning.tokens, personaliser.code_width)
    assert (codes[:, settings.key_tokens :] == 0).all()
    assert (codes[:, : settings.key_tokens] != 0).all()


def test_a_sets_noise_is_that_of_its_own_array(personaliser: Personaliser, jobs: list[CodeJob]) -> None:
    """Jobs for arrays of different variation, tuned in one batch, come out as each does alone."""
    quick = Personaliser(
        personaliser.lm,
        personaliser.autoencoder,
        personaliser.settings.model_copy(
            update={"tuning": personaliser.settings.tuning.model_copy(update={"steps": 3})}
        ),
    )
    mixed = [
        CodeJob(entry.job, CrossbarConfig(sigma=sigma), entry.label)
        for entry, sigma in zip(jobs, (0.0, 0.1, 0.5), strict=True)
    ]
    together = quick.tune(mixed, NVCIM_PT)
    for entry, found in zip(mixed, together, strict=True):
        (alone,) = quick.tune([entry], NVCIM_PT)
        torch.testing.assert_close(
            found.codes, alone.codes, atol=1e-3 * float(alone.codes.abs().max()), rtol=0
        )
        (plain,) = quick.tune([entry], NO_MITIGATION)
        assert torch.allclose(plain.codes, alone.codes, atol=1e-6) == (entry.config.sigma == 0)
        assert found.codes.shape == (quick.settings.tuning.tokens, quick.code_width)
