"""From samples to jobs, codes and queries: what NVCiM-PT's parts are put together to."""

from dataclasses import replace

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.mitigation import get_mitigation
from nvcim.prompts.methods import METHODS, NVCIM_PT, PLAIN_MIPS, Method
from nvcim.prompts.noise import add_level_noise, level_noise
from nvcim.prompts.personaliser import CodeJob, Personaliser
from nvcim.prompts.representation import represent
from nvcim.prompts.tuning import tune
from nvcim.randomness import named_generator


@pytest.fixture(scope="module")
def jobs(personaliser: Personaliser, users: list[UserStream]) -> list[CodeJob]:
    return personaliser.jobs(users[0].history, CrossbarConfig(), seed=3)


def test_a_buffer_gives_a_job_per_representative(
    personaliser: Personaliser, users: list[UserStream], jobs: list[CodeJob]
) -> None:
    pairs = {(s.input, s.output): s for s in users[0].history}
    assert len(jobs) == personaliser.settings.selection.k
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
        (plain,) = quick.tune([entry], PLAIN_MIPS)
        assert torch.allclose(plain.codes, alone.codes, atol=1e-6) == (entry.config.sigma == 0)
        assert found.codes.shape == (quick.settings.tuning.tokens, quick.code_width)


def test_the_choice_of_representatives_is_logged_with_its_scores(jobs: list[CodeJob]) -> None:
    assert [entry.choice["k"] for entry in jobs] == [3, 3, 3]
    assert sum(int(entry.choice["cluster_size"] or 0) for entry in jobs) == jobs[0].choice["buffer"] == 12
    assert all(0 < float(entry.choice["cosine"] or 0) <= 1 + 1e-6 for entry in jobs)


def test_without_selection_as_many_samples_are_drawn(
    personaliser: Personaliser, users: list[UserStream], jobs: list[CodeJob]
) -> None:
    method = METHODS["no-selection"]
    drawn = [personaliser.jobs(users[0].history, CrossbarConfig(), seed, method) for seed in range(4)]
    names = [tuple(entry.job.name for entry in found) for found in drawn]
    assert all(len(set(found)) == len(jobs) for found in names)
    assert len(set(names)) > 1
    assert tuple(entry.job.name for entry in jobs) not in names[:1]


def test_importance_is_the_squared_slope_of_the_loss(personaliser: Personaliser, jobs: list[CodeJob]) -> None:
    """Against differences of the loss, which tuning reports, at the element that matters most."""
    quick = with_steps(personaliser, 1)
    tuned = quick.tune(jobs[:2], PLAIN_MIPS)
    found = quick.importance(jobs[:2], tuned)
    assert found.shape == (2, quick.settings.tuning.tokens, quick.code_width)
    place = int(found[1].argmax())

    def loss(shift: float) -> float:
        codes = tuned[1].codes.clone()
        codes.view(-1)[place] += shift
        job = replace(jobs[1].job, start=quick.decode(codes))
        (result,) = tune(quick.lm, [job], quick.settings.tuning)
        return result.first_loss

    step = 0.02
    slope = (loss(step) - loss(-step)) / (2 * step)
    assert float(found[1].view(-1)[place]) == pytest.approx(slope**2, rel=0.05)


def test_arrays_in_the_loop_are_the_noise_that_the_memory_will_show(
    personaliser: Personaliser, jobs: list[CodeJob]
) -> None:
    """Without variation the loop leaves little but the codes' rounding; with it, the LM sees other tokens."""
    quick = with_steps(personaliser, 1)
    looped = METHODS["crossbar-in-the-loop"]

    def first_loss(config: CrossbarConfig, method: Method) -> float:
        (tuned,) = quick.tune([replace(jobs[0], config=config)], method)
        return tuned.result.first_loss

    clean = first_loss(CrossbarConfig(), PLAIN_MIPS)
    assert first_loss(CrossbarConfig(device="Ideal8", sigma=0.0, weight_bits=15), looped) == pytest.approx(
        clean, rel=1e-3
    )
    assert first_loss(CrossbarConfig(device="RRAM1"), looped) != pytest.approx(clean, rel=1e-2)


def test_the_compensator_brings_noisy_codes_nearer(personaliser: Personaliser, jobs: list[CodeJob]) -> None:
    config = CrossbarConfig(device="RRAM1")
    codes = torch.stack([personaliser.autoencoder.encode(entry.job.start) for entry in jobs])
    module = personaliser.compensator(codes, config, get_mitigation("correctnet"), named_generator(0, "c"))
    assert module is not None
    noise = [level_noise(config)] * len(codes)
    noisy = add_level_noise(codes, noise, [named_generator(1, "n", i) for i in range(len(codes))])
    assert (module(noisy) - codes).norm() < (noisy - codes).norm()
    assert personaliser.compensator(codes, config, get_mitigation("cxdnn"), named_generator(0, "c")) is None


def test_a_blend_lies_between_the_sets_it_is_made_of(
    personaliser: Personaliser, users: list[UserStream], jobs: list[CodeJob]
) -> None:
    quick = with_steps(personaliser, 1)
    memory = quick.new_memory(CrossbarConfig(), 4)
    for i, one in enumerate(quick.tune(jobs, PLAIN_MIPS)):
        memory.write(one.codes, one.label, named_generator(0, i))
    codes = quick.encode_queries([query.input for query in users[0].queries])
    places, scores, best = quick.find(memory, codes, NVCIM_PT)
    blended = replace(quick, settings=quick.settings.model_copy(update={"blended": 2}))
    same_places, same_scores, mixed = blended.find(memory, codes, NVCIM_PT)
    assert (places, scores) == (same_places, same_scores)
    sets = torch.stack([quick.decode(memory.read(place)) for place in range(3)])
    for tokens, place, mix in zip(best, places, mixed, strict=True):
        assert torch.equal(tokens, sets[place])
        others = [(mix - sets[i]).norm() for i in range(3)]
        assert 0 < min(others) == others[place]  # nearest to the best, but not the best itself


def with_steps(personaliser: Personaliser, steps: int) -> Personaliser:
    tuning = personaliser.settings.tuning.model_copy(update={"steps": steps})
    return replace(personaliser, settings=personaliser.settings.model_copy(update={"tuning": tuning}))
