"""Any causal LM loads by its path, is frozen, and serves tuning, memory, search and generation."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.errors import ModelError
from nvcim.fleet.node import EdgeNode, answer, learn
from nvcim.prompts.autoencoder import AutoencoderSettings
from nvcim.prompts.language_model import ANSWER_MARK, LanguageModel
from nvcim.prompts.personaliser import NVCIM_PT, Personaliser, PromptSettings
from nvcim.prompts.tuning import TuningSettings

SMALL = PromptSettings(
    buffer=6,
    representatives=2,
    key_tokens=4,
    layer=1,
    tuning=TuningSettings(tokens=6, steps=4),
    autoencoder=AutoencoderSettings(code=16, steps=20),
    max_new_tokens=4,
)


def test_a_node_lives_with_any_causal_lm(any_lm: LanguageModel, users: list[UserStream]) -> None:
    """Tuning, writing, searching and generating, each checked for what only it can have done."""
    history = [s for s in users[1].history if len(any_lm.question_ids(s.input)) < any_lm.context - 40][:6]
    before = {name: weight.clone() for name, weight in any_lm.model.state_dict().items()}
    personaliser = Personaliser.fit(any_lm, [s.input for s in history], SMALL, seed=0)
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


def test_gemmas_own_scaling_counts_as_part_of_the_embedding(make_family: Callable[[str], Path]) -> None:
    lm = LanguageModel.load(str(make_family("gemma")), "cpu")
    table = lm.model.get_input_embeddings().weight
    assert torch.allclose(lm.embedding_weight, table * 32**0.5, rtol=1e-3)


def test_the_model_is_frozen_and_in_eval_mode(embedded: LanguageModel) -> None:
    assert not embedded.model.training
    assert not any(weight.requires_grad for weight in embedded.model.parameters())


def test_a_question_ends_with_the_answer_mark_and_an_answer_with_the_end_of_text(
    embedded: LanguageModel,
) -> None:
    question, said = embedded.question_ids("a whale"), embedded.answer_ids("at the pier")
    assert embedded.tokenizer.decode(question).endswith(ANSWER_MARK)
    assert said[-1] == embedded.tokenizer.eos_token_id
    assert embedded.decode(said) == "at the pier"


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
    assert lm.tokenizer.pad_token_id == lm.tokenizer.eos_token_id
