"""Any causal LM loads by its path, is frozen, and serves tuning, memory, search and generation."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BloomConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.errors import ModelError
from nvcim.fleet.node import EdgeNode, answer, learn
from nvcim.prompts import model_checks
from nvcim.prompts.autoencoder import AutoencoderSettings
from nvcim.prompts.language_model import ANSWER_MARK, LanguageModel
from nvcim.prompts.methods import NVCIM_PT
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.selection import SelectionSettings
from nvcim.prompts.tuning import TuningSettings
from tests.prompts.conftest import FAMILIES

SMALL = PromptSettings(
    buffer=6,
    selection=SelectionSettings(k=2),
    key_tokens=4,
    layer=1,
    tuning=TuningSettings(tokens=6, steps=12),
    autoencoder=AutoencoderSettings(code=16, steps=20),
    max_new_tokens=4,
)


def test_a_node_lives_with_any_causal_lm(any_lm: LanguageModel, users: list[UserStream]) -> None:
    """Tuning, writing, searching and generating, each checked for what only it can have done."""
    history = [s for s in users[1].history if len(any_lm.question_ids(s.input)) < any_lm.context - 40][:6]
    before = {name: weight.clone() for name, weight in any_lm.model.state_dict().items()}
    personaliser = Personaliser.fit(any_lm, history, SMALL, seed=0)
    node = EdgeNode.new("n", CrossbarConfig(), 5, personaliser)
    for sample in history:
        node.observe(sample)
    rows = learn([node], personaliser, (NVCIM_PT,))
    assert all(math.isfinite(row["last_loss"]) for row in rows)
    assert sum(row["last_loss"] for row in rows) < sum(row["first_loss"] for row in rows)
    assert len(node.memories["nvcim-pt"]) == len(rows) == 2
    answers = answer([node, node], [history[0].input, history[1].input], personaliser)
    assert all(got.slot in {0, 1} and got.completion_tokens <= 4 for got in answers)
    assert all(got.prompt_tokens > 6 for got in answers)
    after = any_lm.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert all(weight.grad is None for weight in any_lm.model.parameters())


def test_a_texts_embeddings_are_what_the_model_makes_of_its_ids(any_lm: LanguageModel) -> None:
    ids = torch.tensor([any_lm.question_ids("a whale at the pier")])
    by_ids = any_lm.model(input_ids=ids).logits
    by_embeddings = any_lm.model(inputs_embeds=any_lm.embed(ids)).logits
    assert torch.allclose(by_ids, by_embeddings, atol=1e-5)
    assert torch.equal(any_lm.embedding_weight[ids[0]], any_lm.embed(ids)[0])
    assert any_lm.embedding_rms == pytest.approx(float(any_lm.embedding_weight.square().mean().sqrt()))
    assert any_lm.hidden == any_lm.embed(ids).shape[-1]
    assert any_lm.context == any_lm.model.config.max_position_embeddings


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_gemmas_own_scaling_counts_as_part_of_the_embedding(
    make_family: Callable[[str], Path], family: str
) -> None:
    lm = LanguageModel.load(str(make_family(family)), "cpu")
    table = lm.model.get_input_embeddings().weight
    assert torch.allclose(lm.embedding_weight, table * 32**0.5, rtol=1e-3)


@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_bfloat16_is_kept_and_near_float32(make_family: Callable[[str], Path], family: str) -> None:
    """Logits within a tenth of their spread (6 % seen): bfloat16 keeps 8 bits of each product."""
    folder = str(make_family(family))
    full, half = LanguageModel.load(folder, "cpu"), LanguageModel.load(folder, "cpu", "bfloat16")
    assert full.dtype == torch.float32
    assert {half.dtype, *(weight.dtype for weight in half.model.parameters())} == {torch.bfloat16}
    ids = torch.tensor([full.question_ids("a whale at the pier")])
    assert half.embed(ids).dtype == torch.bfloat16
    expected = full.model(input_ids=ids).logits
    got = half.model(inputs_embeds=half.embed(ids)).logits.float()
    assert 0 < (got - expected).abs().max() < 0.1 * expected.std()


def test_a_checkpoints_own_precision_is_taken_if_asked_for(
    tmp_path: Path, make_family: Callable[[str], Path]
) -> None:
    half = LanguageModel.load(str(make_family("llama")), "cpu", "bfloat16")
    half.model.save_pretrained(tmp_path)
    half.tokenizer.save_pretrained(tmp_path)
    assert LanguageModel.load(str(tmp_path), "cpu", "auto").dtype == torch.bfloat16
    assert LanguageModel.load(str(tmp_path), "cpu").dtype == torch.float32
    with pytest.raises(ModelError, match="dtype 'int3' is not one of float32, bfloat16, auto"):
        LanguageModel.load(str(tmp_path), "cpu", "int3")  # type: ignore[arg-type]


def test_the_model_is_frozen_and_in_eval_mode(embedded: LanguageModel) -> None:
    assert not embedded.model.training
    assert not any(weight.requires_grad for weight in embedded.model.parameters())


def test_a_question_ends_with_the_answer_mark_and_an_answer_with_the_end_of_text(
    embedded: LanguageModel,
) -> None:
    question, said = embedded.question_ids("a whale"), embedded.answer_ids("at the pier")
    assert embedded.tokenizer.decode(question).endswith(ANSWER_MARK)
    assert said[-1] == embedded.tokenizer.eos_token_id
    assert embedded.decode(said) == " at the pier"


def test_text_is_shortened_from_its_end_until_it_fits(embedded: LanguageModel) -> None:
    text = " ".join(f"word{i}" for i in range(300))
    cut = embedded.shortened(text, 50)
    assert text.startswith(cut + " ")
    assert 30 < len(embedded.question_ids(cut)) <= 50
    assert embedded.shortened("short text", 50) == "short text"


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        LanguageModel.load(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded"):
        LanguageModel.load(str(tmp_path / "empty"))


@pytest.mark.parametrize("broken", ["weights", "config", "tokenizer"])
def test_a_broken_model_is_refused_in_one_line(
    tmp_path: Path, make_family: Callable[[str], Path], broken: str
) -> None:
    folder = tmp_path / "lm"
    shutil.copytree(make_family("llama"), folder)
    name = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}[broken]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        LanguageModel.load(str(folder), "cpu")
    assert "\n" not in str(caught.value)


def test_a_model_without_a_causal_head_is_refused(tmp_path: Path, make_family: Callable[[str], Path]) -> None:
    folder = tmp_path / "lm"
    shutil.copytree(make_family("llama"), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded as a causal LM"):
        LanguageModel.load(str(folder), "cpu")


@pytest.fixture
def folder_of(tmp_path: Path, make_family: Callable[[str], Path]) -> Callable[[Any], str]:
    """Saves a model beside a tokenizer that loads."""

    def save(model: Any) -> str:
        shutil.copytree(make_family("llama"), tmp_path / "lm")
        (tmp_path / "lm" / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / "lm")
        return str(tmp_path / "lm")

    return save


BERT = BertConfig(
    vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
)


def test_an_encoder_with_a_head_is_refused_though_transformers_loads_it(
    folder_of: Callable[[Any], str],
) -> None:
    folder = folder_of(BertForMaskedLM(BERT))
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "BertLMHeadModel"
    with pytest.raises(ModelError, match=r"\(bert\) is an encoder without a causal head") as caught:
        LanguageModel.load(folder, "cpu")
    assert "\n" not in str(caught.value)


def test_a_decoder_of_the_same_family_is_taken(folder_of: Callable[[Any], str]) -> None:
    config = BertConfig(**{**BERT.to_dict(), "is_decoder": True})
    assert LanguageModel.load(folder_of(BertLMHeadModel(config)), "cpu").hidden == 32


def test_an_encoder_decoder_is_refused(folder_of: Callable[[Any], str]) -> None:
    config = T5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match=r"\(t5\) is an encoder-decoder, not a causal LM"):
        LanguageModel.load(folder_of(T5ForConditionalGeneration(config)), "cpu")


def test_a_file_without_the_heads_weights_is_refused(folder_of: Callable[[Any], str]) -> None:
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    with pytest.raises(ModelError, match=r"lack 1 of the weights, 'lm_head.weight' among them"):
        LanguageModel.load(folder_of(LlamaModel(config)), "cpu")


def test_gptq_weights_without_their_library_are_refused_by_its_name(
    tmp_path: Path, make_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_checks, "GPTQ_LIBRARIES", ("nvcim", "no_such_gptq_library"))
    shutil.copytree(make_family("llama"), tmp_path / "lm")
    file = tmp_path / "lm" / "config.json"
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    settings = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(settings), encoding="utf-8")
    expected = (
        r"has GPTQ weights, which need a library that is not installed: pip install no_such_gptq_library$"
    )
    with pytest.raises(ModelError, match=expected):
        LanguageModel.load(str(tmp_path / "lm"), "cpu")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_of_plain_attention_can_cache_prefixes(
    make_family: Callable[[str], Path], family: str
) -> None:
    assert LanguageModel.load(str(make_family(family)), "cpu").can_cache_prefix


def test_a_model_of_other_layers_cannot_cache_prefixes(embedded: LanguageModel) -> None:
    config = Lfm2Config(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        layer_types=["conv", "full_attention"],
    )
    lm = LanguageModel.wrap("mine", AutoModelForCausalLM.from_config(config), embedded.tokenizer, "cpu")
    assert not lm.can_cache_prefix


def test_the_longest_text_is_the_settings_or_a_stated_guess(
    make_family: Callable[[str], Path], embedded: LanguageModel
) -> None:
    assert LanguageModel.load(str(make_family("gpt2")), "cpu").context == 256  # its `n_positions`
    windowed = LanguageModel.load(str(make_family("gemma2")), "cpu")
    assert (windowed.model.config.sliding_window, windowed.context) == (16, 256)
    bloom = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=2))
    assert LanguageModel.wrap("mine", bloom, embedded.tokenizer, "cpu").context == 2048


def test_a_tokenizer_without_an_end_of_text_is_refused(embedded: LanguageModel) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=embedded.tokenizer.backend_tokenizer)
    with pytest.raises(ModelError, match="no end-of-text token"):
        LanguageModel.wrap("mine", embedded.model, tokenizer, "cpu")


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(embedded: LanguageModel) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=embedded.tokenizer.backend_tokenizer, eos_token="</s>"
    )
    lm = LanguageModel.wrap("mine", embedded.model, tokenizer, "cpu")
    assert lm.pad_id == lm.tokenizer.eos_token_id
