"""What every prompt-tuning baseline must do, on the embedded LM and on tiny random ones of other architectures."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from nvcim.errors import ConfigError, DataError
from nvcim.prompts.baselines import BASELINES, Baseline, BaselineSettings, Fitted, get_baseline
from nvcim.prompts.language_model import LanguageModel

SAMPLES = [
    ("Which tag does this movie relate to? description: cars chase and explode .", "action"),
    ("Complete the tweet: sailor whale", "reef sang all night send help"),
    ("the price is awful , the staff were superb , the seats were fine .", "5"),
    ("Which tag? description: it is full of jokes , robots run the city .", "sci-fi"),
]
OTHERS = [("Which tag? description: it is full of jokes .", "comedy"), ("the rest was poor", "2")]
QUESTIONS = ["whale", SAMPLES[0][0] + " robots run the city . a kiss changes everything .", SAMPLES[2][0]]
SETTINGS = BaselineSettings(steps=3, prefix_encoder_width=32)
FitOnce = Callable[[Baseline, LanguageModel], Fitted]
TRAINED = [name for name in BASELINES if name != "zero-shot"]


@pytest.fixture(params=list(BASELINES))
def method(request: pytest.FixtureRequest) -> Baseline:
    return get_baseline(request.param)


@pytest.fixture(params=TRAINED)
def trained_method(request: pytest.FixtureRequest) -> Baseline:
    return get_baseline(request.param)


@pytest.fixture(scope="module", params=["embedded", "llama", "gpt2"])
def lm(
    request: pytest.FixtureRequest, embedded: LanguageModel, make_family: Callable[[str], Path]
) -> LanguageModel:
    if request.param == "embedded":
        return embedded
    return LanguageModel.load(str(make_family(request.param)), "cpu")


@pytest.fixture(scope="module")
def fitted_once() -> FitOnce:
    """A method's fit of SAMPLES with seed 1, for tests that only look at it."""
    made: dict[tuple[str, str], Fitted] = {}

    def fit(method: Baseline, lm: LanguageModel) -> Fitted:
        if (method.name, lm.name) not in made:
            made[method.name, lm.name] = method.fit(lm, SAMPLES, SETTINGS, seed=1)
        return made[method.name, lm.name]

    return fit


def base_logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = lm.model(input_ids=torch.tensor([lm.question_ids(QUESTIONS[1])])).logits
    return logits


def test_training_lowers_the_loss_of_the_samples(trained_method: Baseline, lm: LanguageModel) -> None:
    few, many = (
        trained_method.fit(lm, SAMPLES, SETTINGS.model_copy(update={"steps": steps}), seed=1)
        for steps in (1, 12)
    )
    # A random LM's answers can hardly be steered from outside it.
    assert many.loss(SAMPLES) < (0.9 if lm.name == "embedded" else 1.0) * few.loss(SAMPLES)


def test_a_fit_is_reproduced_by_its_seed_and_by_nothing_else(
    method: Baseline, lm: LanguageModel, fitted_once: FitOnce
) -> None:
    first = fitted_once(method, lm).state_dict()
    torch.rand(3)  # other draws of the process
    before = torch.get_rng_state()
    again = method.fit(lm, SAMPLES, SETTINGS, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_another_seed_gives_another_fit(trained_method: Baseline, embedded: LanguageModel) -> None:
    one, other = (trained_method.fit(embedded, SAMPLES, SETTINGS, seed).state_dict() for seed in (1, 2))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_lm_is_unharmed(method: Baseline, lm: LanguageModel) -> None:
    modules = {name: type(module) for name, module in lm.model.named_modules()}
    weights = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    logits = base_logits(lm)
    method.fit(lm, SAMPLES, SETTINGS, seed=1).answer(QUESTIONS, 4)
    assert torch.equal(base_logits(lm), logits)
    assert {name: type(module) for name, module in lm.model.named_modules()} == modules
    after = lm.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert all(not weight.requires_grad and weight.grad is None for weight in lm.model.parameters())


def test_two_fits_do_not_see_each_other(method: Baseline, lm: LanguageModel, fitted_once: FitOnce) -> None:
    alone = method.fit(lm, OTHERS, SETTINGS, seed=3)
    expected = alone.loss(OTHERS)
    first = fitted_once(method, lm)
    loss, answers = first.loss(SAMPLES), first.answer(QUESTIONS, 4)
    second = method.fit(lm, OTHERS, SETTINGS, seed=3)
    assert (first.loss(SAMPLES), first.answer(QUESTIONS, 4)) == (loss, answers)
    assert second.loss(OTHERS) == expected


def test_an_answer_does_not_depend_on_the_batch(
    method: Baseline, lm: LanguageModel, fitted_once: FitOnce
) -> None:
    fitted = fitted_once(method, lm)
    together = fitted.answer(QUESTIONS, 6)
    assert together == [fitted.answer([question], 6)[0] for question in QUESTIONS]
    assert fitted.loss(SAMPLES) == pytest.approx(
        sum(fitted.loss([one]) for one in SAMPLES) / len(SAMPLES), rel=1e-5
    )


def test_what_is_kept_is_all_that_answers(method: Baseline, lm: LanguageModel, fitted_once: FitOnce) -> None:
    fitted = fitted_once(method, lm)
    restored = method.restore(lm, load(save(fitted.state_dict())), SETTINGS)
    assert restored.loss(SAMPLES) == fitted.loss(SAMPLES)
    assert restored.answer(QUESTIONS, 6) == fitted.answer(QUESTIONS, 6)


def test_storage_is_the_payload_of_the_stored_file(
    method: Baseline, lm: LanguageModel, fitted_once: FitOnce
) -> None:
    fitted = fitted_once(method, lm)
    state = fitted.state_dict()
    file = save(state)
    header = 8 + int.from_bytes(file[:8], "little")  # safetensors: length of the header, header, payload
    assert fitted.cost.storage_bytes == len(file) - header
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert (fitted.cost.storage_bytes > 0) == (method.name != "zero-shot")


def test_trained_tokens_count_texts_and_virtual_tokens_without_padding(
    method: Baseline, embedded: LanguageModel, fitted_once: FitOnce
) -> None:
    texts = sum(len(embedded.question_ids(q)) + len(embedded.answer_ids(a)) for q, a in SAMPLES)
    each = {"vanilla": 8, "dept": 5}.get(method.name, 0)
    steps = 0 if method.name == "zero-shot" else 3
    cost = fitted_once(method, embedded).cost
    assert (cost.steps, cost.trained_tokens) == (steps, steps * (texts + 4 * each))
    assert cost.shortened == 0
    assert not cost.failed
    assert cost.seconds > 0


@pytest.mark.parametrize(
    ("name", "trained", "stored"),
    [
        # The embedded LM: hidden 128, 4 layers, keys and values 128 wide; queries and values 128 x 128.
        ("zero-shot", 0, 0),
        ("vanilla", 8 * 128, 8 * 128),
        ("prefix-tuning", 8 * 128 + (128 + 1) * 512 + (512 + 1) * 2 * 4 * 128, 8 * 2 * 4 * 128),
        ("p-tuning-v2", 4 * 2 * 4 * 128, 4 * 2 * 4 * 128),
        ("dept", 5 * 128 + 256 + 128, 5 * 128 + 256 + 128),
        ("lora", 4 * 2 * (128 + 128) * 8, 4 * 2 * (128 + 128) * 8),
    ],
)
def test_the_default_costs_are_those_counted_by_hand(
    name: str, trained: int, stored: int, embedded: LanguageModel
) -> None:
    cost = get_baseline(name).fit(embedded, OTHERS, BaselineSettings(steps=1), seed=1).cost
    assert (cost.trained_parameters, cost.storage_bytes) == (trained, 4 * stored)


def test_rows_per_batch_does_not_change_the_fit(trained_method: Baseline, embedded: LanguageModel) -> None:
    whole, parts = (
        trained_method.fit(embedded, SAMPLES, SETTINGS.model_copy(update={"rows_per_batch": rows}), seed=1)
        for rows in (64, 3)
    )
    assert parts.loss(SAMPLES) == pytest.approx(whole.loss(SAMPLES), rel=1e-3)  # Adam enlarges rounding


def test_a_sample_longer_than_the_context_loses_its_end_and_is_counted(
    method: Baseline, make_family: Callable[[str], Path]
) -> None:
    lm = LanguageModel.load(str(make_family("gpt2")), "cpu")  # takes 256 tokens
    long = ("first " + "word " * 300, "x")
    fitted = method.fit(lm, [long], SETTINGS.model_copy(update={"steps": 1}), seed=1)
    assert fitted.cost.shortened == 1
    assert 240 * fitted.cost.steps <= fitted.cost.trained_tokens <= 256 * fitted.cost.steps


def test_an_answer_longer_than_the_context_is_cut_to_half_of_it(
    method: Baseline, make_family: Callable[[str], Path]
) -> None:
    lm = LanguageModel.load(str(make_family("gpt2")), "cpu")  # takes 256 tokens
    long = ("why", "word " * 300)
    fitted = method.fit(lm, [long], SETTINGS.model_copy(update={"steps": 1}), seed=1)
    added = {"vanilla": 8, "prefix-tuning": 8, "p-tuning-v2": 4, "dept": 5}.get(method.name, 0)
    passed = added if method.name in ("vanilla", "dept") else 0
    expected = passed + len(lm.question_ids("why")) + (256 - added) // 2
    assert fitted.cost.shortened == 1
    assert fitted.cost.trained_tokens == fitted.cost.steps * expected
    assert math.isfinite(fitted.loss([long]))


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "lora"])
def test_a_context_without_room_for_a_sample_is_refused(name: str, embedded: LanguageModel) -> None:
    many = BaselineSettings(tokens=511, dept_tokens=511, p_tuning_v2_tokens=511)
    with pytest.raises(DataError, match=f"method '{name}': 511 virtual tokens leave 1 of the 512"):
        get_baseline(name).fit(embedded, OTHERS, many, seed=1)


def test_a_model_in_bfloat16_is_fitted(method: Baseline) -> None:
    half = LanguageModel.load("embedded", "cpu", "bfloat16")
    fitted = method.fit(half, SAMPLES, SETTINGS, seed=1)
    assert fitted.cost.steps == (0 if method.name == "zero-shot" else 3)
    assert not fitted.cost.failed
    assert all(tensor.dtype == torch.float32 for tensor in fitted.state_dict().values())
    assert math.isfinite(fitted.loss(SAMPLES))
    assert len(fitted.answer(QUESTIONS[:1], 2)) == 1


def test_a_user_without_samples_is_refused(method: Baseline, embedded: LanguageModel) -> None:
    with pytest.raises(DataError, match=f"method '{method.name}': there are no samples to fit"):
        method.fit(embedded, [], SETTINGS, seed=1)


def test_a_question_that_does_not_fit_is_refused(method: Baseline, embedded: LanguageModel) -> None:
    fitted = method.fit(embedded, OTHERS, SETTINGS.model_copy(update={"steps": 1}), seed=1)
    with pytest.raises(DataError, match=r"question 'word word .* tokens; at most \d+ fit the context"):
        fitted.answer(["word " * 600], 4)


def test_no_questions_have_no_answers(method: Baseline, embedded: LanguageModel) -> None:
    assert method.fit(embedded, OTHERS, SETTINGS, seed=1).answer([]) == []


def test_one_sample_is_enough(method: Baseline, embedded: LanguageModel) -> None:
    assert len(method.fit(embedded, SAMPLES[:1], SETTINGS, seed=1).answer(QUESTIONS, 2)) == 3


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("vanilla", "vanilla_learning_rate"),
        ("prefix-tuning", "prefix_learning_rate"),
        ("p-tuning-v2", "p_tuning_v2_learning_rate"),
        ("dept", "dept_learning_rate"),
        ("lora", "lora_learning_rate"),
    ],
)
def test_training_that_runs_away_ends_with_what_still_worked_and_says_so(
    name: str, rate: str, steps: int, embedded: LanguageModel
) -> None:
    wild = SETTINGS.model_copy(update={rate: math.inf, "steps": steps})
    fitted = get_baseline(name).fit(embedded, SAMPLES, wild, seed=1)
    assert fitted.cost.failed
    assert fitted.cost.steps < wild.steps
    assert all(bool(torch.isfinite(tensor).all()) for tensor in fitted.state_dict().values())
    assert math.isfinite(fitted.loss(SAMPLES))


def test_an_unknown_baseline_is_refused_with_those_that_exist() -> None:
    names = "zero-shot, vanilla, prefix-tuning, p-tuning-v2, dept, lora"
    with pytest.raises(ConfigError, match=f"no prompt-tuning baseline 'soft'; allowed: {names}"):
        get_baseline("soft")
