"""The compiled kernel gives the loss and gradient of the model's own forward pass, for the models that it knows."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nvcim.prompts.frozen_decoder import (
    FrozenDecoder,
    Shortcuts,
    frozen_rows,
    unknown,
)
from nvcim.prompts.frozen_kernel import frozen_kernel, frozen_kernel_status
from nvcim.prompts.frozen_rows import PlainRows, Row
from nvcim.prompts.language_model import LanguageModel

pytestmark = pytest.mark.skipif(frozen_kernel() is None, reason=frozen_kernel_status())
# Awkward on purpose: widths that fill no panel or register, heads that share keys, a single layer.
SHAPE = {"vocab_size": 77, "max_position_embeddings": 128, "num_attention_heads": 4}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=40, intermediate_size=51, num_hidden_layers=3, head_dim=10, **SHAPE)
    ),
    "llama tied, scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
            **SHAPE,
        )
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=2,
            num_key_value_heads=2,
            head_dim=48,
            **SHAPE,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(hidden_size=64, intermediate_size=33, num_hidden_layers=1, num_key_value_heads=1, **SHAPE)
    ),
}
ROWS = (
    Row(tuple(range(1, 40)), (5, 6, 7), 0.5),
    Row((3,), (4,), 0.5),
    Row(tuple(range(70, 8, -2)), tuple(range(20, 60)), 1.0),
)
OWNERS = (0, 0, 1)


class Words:
    """As much of a tokenizer as a batch needs."""

    pad_token_id = 0
    eos_token_id = 1

    def __call__(self, text: str, **how: object) -> dict[str, list[int]]:
        return {"input_ids": [2] * len(text)}


def made(name: str) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = MODELS[name]()
        for key, weight in model.named_parameters():
            with (
                torch.no_grad()
            ):  # as initialised, norms are 1 and biases 0, and a mistake in them would not show
                weight.copy_(torch.randn(weight.shape) * (0.15 if weight.dim() > 1 else 0.5))
                if "norm" in key:
                    weight.add_(1.0)
    return LanguageModel.wrap(name, model, Words(), "cpu")


def tokens_for(lm: LanguageModel, n: int = 3) -> Tensor:
    draws = torch.randn(2, n, lm.hidden, generator=torch.Generator().manual_seed(2))
    return lm.embedding_rms * draws


def assert_same(lm: LanguageModel, rows: Any, tolerance: float) -> None:
    tokens = tokens_for(lm)
    expected, right = PlainRows(lm).gradients(ROWS, OWNERS, 2, 3)(tokens)
    losses, gradient = rows.gradients(ROWS, OWNERS, 2, 3)(tokens)
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    for job in range(2):
        assert float((gradient[job] - right[job]).norm()) <= tolerance * float(right[job].norm())


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_the_models_own_pass(name: str) -> None:
    lm = made(name)
    assert unknown(lm) is None
    rows = frozen_rows(lm, "float32", 90)
    assert isinstance(rows, FrozenDecoder)
    assert_same(lm, rows, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_shortcuts_change_nothing(name: str) -> None:
    lm = made(name)
    for first in (False, True):
        for last in (False, True):
            assert_same(lm, FrozenDecoder(lm, shortcuts=Shortcuts(first, last)), 1e-5)


def test_the_embedded_model_is_known(embedded: LanguageModel) -> None:
    rows = frozen_rows(embedded, "float32", 512)
    assert isinstance(rows, FrozenDecoder)
    assert_same(embedded, rows, 1e-5)


def test_bfloat16_is_near(embedded: LanguageModel) -> None:
    if unknown(embedded, "bfloat16") is not None:
        pytest.skip(str(unknown(embedded, "bfloat16")))
    rows = frozen_rows(embedded, "bfloat16", 512)
    assert isinstance(rows, FrozenDecoder)
    assert_same(embedded, rows, 0.05)
    with pytest.raises(AssertionError):
        assert_same(embedded, rows, 1e-5)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_row_is_the_same_to_the_bit_in_any_company(embedded: LanguageModel) -> None:
    rows = frozen_rows(embedded, "float32", 512)
    tokens = tokens_for(embedded)
    torch.set_num_threads(1)
    losses, gradient = rows.gradients(ROWS, OWNERS, 2, 3)(tokens)
    torch.set_num_threads(3)
    together = rows.gradients((ROWS[2], *ROWS, ROWS[2]), (0, 1, 1, 0, 0), 2, 3)(tokens.flip(0))
    alone = rows.gradients(ROWS[:2], (0, 0), 1, 3)(tokens[:1])
    assert losses[0] == together[0][1] == alone[0][0]
    assert torch.equal(gradient[0], together[1][1])
    assert torch.equal(gradient[0], alone[1][0])
    single = rows.gradients(ROWS[2:], (0,), 1, 3)(tokens[1:])
    assert torch.equal(gradient[1], single[1][0])


def test_a_row_that_is_not_finite_spoils_no_other(embedded: LanguageModel) -> None:
    rows = frozen_rows(embedded, "float32", 512)
    tokens = tokens_for(embedded)
    good = rows.gradients(ROWS, OWNERS, 2, 3)(tokens)
    for bad in (float("nan"), float("inf")):
        spoilt = tokens.clone()
        spoilt[1, 2, 5] = bad
        losses, gradient = rows.gradients(ROWS, OWNERS, 2, 3)(spoilt)
        assert losses[0] == good[0][0]
        assert torch.equal(gradient[0], good[1][0])
        assert not losses[1].isfinite()
    again = rows.gradients(ROWS, OWNERS, 2, 3)(tokens)
    assert torch.equal(again[1], good[1])


def test_other_families_take_their_own_pass(any_lm: LanguageModel) -> None:
    known = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
    rows = frozen_rows(any_lm, "float32", 60)
    assert isinstance(rows, FrozenDecoder if type(any_lm.model).__name__ in known else PlainRows)
    assert (unknown(any_lm) is None) == isinstance(rows, FrozenDecoder)
    assert_same(any_lm, rows, 1e-5)


def test_rows_beyond_a_sliding_window_take_the_models_own_pass(make_family: Callable[[str], Path]) -> None:
    lm = LanguageModel.load(str(make_family("mistral")), "cpu")  # window 128 of a context of 256
    assert isinstance(frozen_rows(lm, "float32", 128), FrozenDecoder)
    assert isinstance(frozen_rows(lm, "float32", 129), PlainRows)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"mlp_bias": True}, "model.layers.0.mlp.gate_proj has a bias"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary positions of kind dynamic",
        ),
    ],
)
def test_what_the_kernel_does_not_model_is_named(changes: dict[str, Any], why: str) -> None:
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, **SHAPE, **changes)
    lm = LanguageModel.wrap("odd", LlamaForCausalLM(config), Words(), "cpu")
    assert unknown(lm) == why
    assert isinstance(frozen_rows(lm, "float32", 20), PlainRows)


def test_a_model_that_computes_something_else_is_caught_by_the_probe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = made("llama")
    lm.model.model.layers[1].mlp.register_forward_hook(lambda module, given, out: 2 * out)
    assert unknown(lm) is None
    assert isinstance(frozen_rows(lm, "float32", 20), PlainRows)
    assert "the compiled kernel disagrees" in caplog.text


def test_weights_that_change_are_packed_anew() -> None:
    lm = made("llama")
    before = frozen_rows(lm, "float32", 20)
    assert frozen_rows(lm, "float32", 20) is before
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.mul_(2)
    after = frozen_rows(lm, "float32", 20)
    assert after is not before
    assert_same(lm, after, 1e-5)


def test_a_model_that_was_tuned_can_be_forgotten() -> None:
    lm = made("llama")
    rows = frozen_rows(lm, "float32", 20)
    assert isinstance(rows, FrozenDecoder)
    model, packed = weakref.ref(lm.model), weakref.ref(rows)
    del rows
    gc.collect()
    assert packed() is not None
    del lm
    gc.collect()
    assert model() is None
    assert packed() is None


def test_weights_in_bfloat16_are_packed_and_give_what_they_are_worth_in_float32(
    embedded: LanguageModel,
) -> None:
    half = LanguageModel.load("embedded", "cpu", "bfloat16")
    rows = frozen_rows(half, "float32", 512)
    assert isinstance(rows, FrozenDecoder)
    worth = LanguageModel.load("embedded", "cpu", "bfloat16")
    worth.model.float()
    tokens = tokens_for(embedded)
    losses, gradient = rows.gradients(ROWS, OWNERS, 2, 3)(tokens)
    expected, right = PlainRows(worth).gradients(ROWS, OWNERS, 2, 3)(tokens)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    assert float((gradient - right).norm() / right.norm()) <= 1e-5


@pytest.mark.parametrize(("limit", "positions"), [("context", 13), ("window", 8)])
def test_a_model_too_short_for_the_probe_takes_its_own_pass(
    limit: str, positions: int, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    if limit == "context":
        small: Any = LlamaForCausalLM(LlamaConfig(vocab_size=77, max_position_embeddings=positions, **sizes))
    else:
        small = MistralForCausalLM(
            MistralConfig(vocab_size=77, num_key_value_heads=4, sliding_window=positions, **sizes)
        )
    lm = LanguageModel.wrap("small", small, Words(), "cpu")
    assert unknown(lm) == f"its {positions} positions are fewer than the probe's 14"
    assert isinstance(frozen_rows(lm, "float32", 5), PlainRows)
    assert "disagrees" not in caplog.text  # nothing was computed beyond its tables


def test_a_model_as_long_as_the_probe_is_packed() -> None:
    config = LlamaConfig(
        vocab_size=77,
        max_position_embeddings=14,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    lm = LanguageModel.wrap("enough", LlamaForCausalLM(config), Words(), "cpu")
    assert isinstance(frozen_rows(lm, "float32", 14), FrozenDecoder)
