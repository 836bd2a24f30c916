"""Each baseline against its source: the library's own forward, or the formula by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvcim.prompts.baselines import BaselineSettings, get_baseline
from nvcim.prompts.baselines.batches import Rows
from nvcim.prompts.baselines.dept import Decomposed, dept_rank
from nvcim.prompts.baselines.key_value_prefix import Prefixed, new_prefix, stored_prefix
from nvcim.prompts.baselines.lora import Injected, inject
from nvcim.prompts.baselines.vanilla import PROMPT
from nvcim.prompts.generation import generate
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.tuning import TuningJob, TuningSettings, tune
from tests.closeness import close

SAMPLES = [
    ("Which tag does this movie relate to? description: cars chase and explode .", "action"),
    ("Complete the tweet: sailor whale", "reef sang all night send help"),
]
QUESTIONS = ["whale", SAMPLES[0][0]]
SETTINGS = BaselineSettings(steps=6, prefix_encoder_width=32)


@pytest.fixture(params=["llama", "gpt2", "mistral", "gemma"])
def family(request: pytest.FixtureRequest, make_family: Callable[[str], Path]) -> LanguageModel:
    return LanguageModel.load(str(make_family(request.param)), "cpu")


def answer_loss(lm: LanguageModel, question: str, answer: str, logits: Tensor) -> float:
    """Cross-entropy of the answer's tokens, from logits [columns, vocabulary] that end with the answer's."""
    ids = lm.answer_ids(answer)
    return float(torch.nn.functional.cross_entropy(logits[-len(ids) - 1 : -1], torch.tensor(ids)))


def text_ids(lm: LanguageModel, question: str, answer: str) -> Tensor:
    return torch.tensor([lm.question_ids(question) + lm.answer_ids(answer)])


def test_zero_shot_is_the_model_itself(embedded: LanguageModel) -> None:
    fitted = get_baseline("zero-shot").fit(embedded, SAMPLES, SETTINGS, seed=0)
    with torch.no_grad():
        logits = embedded.model(input_ids=text_ids(embedded, *SAMPLES[1])).logits[0]
    assert fitted.loss(SAMPLES[1:]) == pytest.approx(
        answer_loss(embedded, *SAMPLES[1], logits=logits), rel=5e-6
    )
    expected = [one.text for one in generate(embedded, QUESTIONS, [None, None], 8)]
    assert fitted.answer(QUESTIONS, 8) == expected


def test_a_vanilla_prompt_answers_as_the_rooms_own_generation_does(embedded: LanguageModel) -> None:
    fitted = get_baseline("vanilla").fit(embedded, SAMPLES, SETTINGS, seed=0)
    tokens = fitted.state_dict()[PROMPT]
    expected = [one.text for one in generate(embedded, QUESTIONS, [tokens, tokens], 8)]
    assert fitted.answer(QUESTIONS, 8) == expected
    job = TuningJob("as fitted", tuple(SAMPLES), tokens, torch.ones(8), 0)
    (result,) = tune(embedded, [job], TuningSettings(steps=1))
    assert fitted.loss(SAMPLES) == pytest.approx(result.first_loss, abs=1e-4)


def test_a_prefix_predicts_as_pefts_own_forward_does(family: LanguageModel) -> None:
    """One row without padding, where PEFT's positions and ours are the same."""
    fitted = get_baseline("p-tuning-v2").fit(family, SAMPLES, SETTINGS, seed=0)
    assert isinstance(fitted.adapted, Prefixed)
    ids = text_ids(family, *SAMPLES[1])
    with torch.no_grad():
        logits = fitted.adapted.peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    assert fitted.loss(SAMPLES[1:]) == pytest.approx(
        answer_loss(family, *SAMPLES[1], logits=logits), rel=5e-6
    )


def test_a_prefix_answers_as_pefts_own_generation_does(embedded: LanguageModel) -> None:
    fitted = get_baseline("p-tuning-v2").fit(embedded, SAMPLES, SETTINGS, seed=0)
    assert isinstance(fitted.adapted, Prefixed)
    ids = torch.tensor([embedded.question_ids(QUESTIONS[1])])
    with torch.no_grad():
        output = fitted.adapted.peft.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
    written = embedded.decode(output[0, ids.shape[1] :].tolist())
    assert fitted.answer(QUESTIONS, 8)[1] == written


def test_stored_keys_and_values_stand_in_for_the_mlp_that_made_them(embedded: LanguageModel) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        through_mlp = new_prefix(
            embedded, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16
        )
    stored = through_mlp.keys_and_values
    assert stored.shape == (3, 2 * 4 * 128)
    restored = stored_prefix(embedded, {PROMPT: stored})
    assert restored.loss(SAMPLES) == pytest.approx(through_mlp.loss(SAMPLES), rel=2e-6)


def test_lora_predicts_as_peft_does_and_holds_no_second_copy_of_the_weights(family: LanguageModel) -> None:
    fitted = get_baseline("lora").fit(family, SAMPLES, SETTINGS, seed=0)
    assert isinstance(fitted.adapted, Injected)
    with torch.no_grad():
        logits = fitted.adapted.peft(input_ids=text_ids(family, *SAMPLES[1])).logits[0]
    assert fitted.loss(SAMPLES[1:]) == pytest.approx(
        answer_loss(family, *SAMPLES[1], logits=logits), rel=5e-6
    )
    weights = {weight.data_ptr() for weight in family.model.parameters()}
    new = [p for p in fitted.adapted.peft.parameters() if p.data_ptr() not in weights]
    assert sum(p.numel() for p in new) == fitted.cost.trained_parameters


def test_lora_sits_on_queries_and_values(embedded: LanguageModel) -> None:
    state = get_baseline("lora").fit(embedded, SAMPLES, SETTINGS, seed=0).state_dict()
    places = {name.split(".self_attn.")[1].split(".")[0] for name in state}
    assert places == {"q_proj", "v_proj"}


def test_lora_takes_every_linear_layer_of_an_architecture_that_peft_does_not_know(
    make_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel.load(str(make_family("llama")), "cpu")
    monkeypatch.setattr("nvcim.prompts.baselines.lora.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    factors = inject(lm, SETTINGS).parameters
    assert len(factors) == 2 * 2 * 7  # two layers of q, k, v, o, gate, up and down, two factors each


def test_dept_updates_the_question_alone_by_position_from_its_first_token(embedded: LanguageModel) -> None:
    """Two rows of four columns: [pad, q0, q1, a0] and [q0, q1, q2, a0], an update for two positions."""
    a = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    b = torch.zeros(2, embedded.hidden)
    b[0, 0], b[1, 1] = 1.0, 10.0
    tokens = torch.full((3, embedded.hidden), 7.0)
    adapted = Decomposed(embedded, tokens, a, b, alpha=8.0)
    ids = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    given = adapted.inputs(Rows(ids, mask, torch.tensor([2, 3])))
    assert torch.equal(given.embedded[0, 1:4], tokens)
    assert torch.equal(given.embedded[1, :3], tokens)
    assert given.mask.tolist() == [[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]
    change = (given.embedded[:, 3:] - embedded.embed(ids))[..., :3]
    scale = 8 / 2**0.5
    first, second, none = [scale, 20 * scale, 0.0], [3 * scale, -10 * scale, 0.0], [0.0, 0.0, 0.0]
    expected = torch.tensor([[first, second, none], [first, second, none]])  # [q0, q1, a0] and [q0, q1, q2]
    assert close(torch.stack([change[0, 1:], change[1, :3]]), expected)
    assert not change[1, 3].any()


def test_depts_rank_spends_what_the_short_prompt_leaves() -> None:
    source = BaselineSettings(tokens=100, dept_tokens=40)
    assert dept_rank(768, source) == 45  # DePT's code: m 40, r 45, length 256, on a model 768 wide
    assert dept_rank(128, BaselineSettings()) == 1  # 5 x 128 + (256 + 128) x 1 = 8 x 128
    assert dept_rank(32, BaselineSettings()) == 1  # never none
