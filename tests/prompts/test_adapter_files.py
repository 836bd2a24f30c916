"""Virtual tokens go to PEFT and come from PEFT as files, and mean the same there and here."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from nvcim.errors import ModelError, RunError
from nvcim.prompts.adapter_files import load_adapter, load_adapters, save_adapter, save_adapters
from nvcim.prompts.generation import generate
from nvcim.prompts.language_model import LanguageModel

TEXT = "the conductor at the depot , a ticket and a brake in the tunnel"


def tuned(lm: LanguageModel, n: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, lm.hidden, generator=torch.Generator().manual_seed(seed)) * lm.embedding_rms


def base_model(lm: LanguageModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(lm.model.name_or_path, dtype=torch.float32).eval()


@torch.no_grad()
def our_logits(lm: LanguageModel, tokens: Tensor, ids: Tensor) -> Tensor:
    """Of a text [1, length] after the tokens, those of the tokens included."""
    logits: Tensor = lm.model(
        inputs_embeds=torch.cat([tokens[None].to(lm.dtype), lm.embed(ids)], dim=1)
    ).logits
    return logits


def their_logits(model: Any, ids: Tensor) -> Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PEFT warns that it makes position ids itself
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def peft_of(base: Any, config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for an attribute of an older name
        return get_peft_model(base, config)


def test_what_is_tuned_here_means_the_same_in_peft(any_lm: LanguageModel, tmp_path: Path) -> None:
    tokens = tuned(any_lm)
    save_adapter(tokens, any_lm, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base_model(any_lm), tmp_path).eval()
    ids = torch.tensor([any_lm.question_ids(TEXT)])
    theirs = their_logits(model, ids)
    torch.testing.assert_close(our_logits(any_lm, tokens, ids), theirs, atol=1e-5, rtol=0)
    without = any_lm.model(input_ids=ids).logits
    assert (without - theirs[:, 5:]).abs().max() > 1e-3  # the tokens do change what the model says


def test_what_peft_tuned_means_the_same_here(any_lm: LanguageModel, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        model = peft_of(base_model(any_lm), config)
    ids = torch.tensor([any_lm.question_ids(TEXT)])
    weight = model.prompt_encoder["default"].embedding.weight
    start = weight.detach().clone()
    optimiser = torch.optim.Adam([weight], lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimiser.step()
    model.save_pretrained(tmp_path)
    tokens = load_adapter(tmp_path, any_lm)
    assert tokens.shape == (4, any_lm.hidden)
    assert tokens.dtype == torch.float32
    assert not torch.allclose(tokens, start, atol=0.01)
    theirs = their_logits(model.eval(), ids)
    torch.testing.assert_close(our_logits(any_lm, tokens, ids), theirs, atol=1e-5, rtol=0)


def test_the_files_are_those_that_peft_writes(any_lm: LanguageModel, tmp_path: Path) -> None:
    model = peft_of(base_model(any_lm), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    tokens = tuned(any_lm)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(tokens)
    model.save_pretrained(tmp_path / "theirs")
    save_adapter(tokens, any_lm, tmp_path / "ours")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert sorted(file.name for file in ours.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_a_set_of_many_is_a_folder_each(embedded: LanguageModel, tmp_path: Path) -> None:
    sets = {"user-2": tuned(embedded, 3, 1), "user-1": tuned(embedded, 6, 2)}
    save_adapters(sets, embedded, tmp_path)
    back = load_adapters(tmp_path, embedded)
    assert list(back) == ["user-1", "user-2"]
    assert all(torch.equal(back[name], sets[name]) for name in sets)
    answers = generate(embedded, [TEXT, TEXT], list(back.values()), max_new_tokens=4)
    assert [one.prompt_tokens for one in answers] == [len(embedded.question_ids(TEXT)) + n for n in (6, 3)]


def test_saving_again_replaces_the_tokens(embedded: LanguageModel, tmp_path: Path) -> None:
    save_adapter(tuned(embedded, 5), embedded, tmp_path)
    second = tuned(embedded, 7, seed=3)
    save_adapter(second, embedded, tmp_path)
    assert torch.equal(load_adapter(tmp_path, embedded), second)
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left


def test_bfloat16_tokens_are_kept_in_float32(embedded: LanguageModel, tmp_path: Path) -> None:
    tokens = tuned(embedded).bfloat16()
    save_adapter(tokens, embedded, tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].dtype == torch.float32
    assert torch.equal(load_adapter(tmp_path, embedded), tokens.float())


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\\b"])
def test_a_name_that_is_no_folders_is_refused_before_anything_is_written(
    embedded: LanguageModel, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ModelError, match=f"adapter name '{re.escape(name)}'"):
        save_adapters({"good": tuned(embedded), name: tuned(embedded)}, embedded, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_method_of_peft_is_refused_by_its_name(embedded: LanguageModel, tmp_path: Path) -> None:
    model = peft_of(base_model(embedded), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="peft_type is PREFIX_TUNING; only PROMPT_TUNING can be read"):
        load_adapter(tmp_path, embedded)


def edited(folder: Path, **settings: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings), encoding="utf-8")


def test_what_does_not_fit_is_refused(embedded: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"of shape \[5, 3\]; \[n, 128\] with n of at least 1 fit model"):
        save_adapter(torch.zeros(5, 3), embedded, tmp_path)
    with pytest.raises(ModelError, match="not finite"):
        save_adapter(torch.full((5, embedded.hidden), torch.nan), embedded, tmp_path)
    assert list(tmp_path.iterdir()) == []
    save_adapter(tuned(embedded), embedded, tmp_path)
    edited(tmp_path, num_virtual_tokens=6)
    with pytest.raises(ModelError, match=r"holds 5 virtual tokens, but num_virtual_tokens .* is 6"):
        load_adapter(tmp_path, embedded)
    edited(tmp_path, num_virtual_tokens=5, task_type="SEQ_2_SEQ_LM")
    with pytest.raises(ModelError, match="task_type is SEQ_2_SEQ_LM; only CAUSAL_LM"):
        load_adapter(tmp_path, embedded)
    edited(tmp_path, task_type=None)
    save_file({"prompt_embeddings": torch.zeros(5, 64)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_model.safetensors: virtual tokens of shape \[5, 64\]"):
        load_adapter(tmp_path, embedded)
    save_file({"other": torch.zeros(5, 128)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="has no tensor 'prompt_embeddings'"):
        load_adapter(tmp_path, embedded)


def test_a_missing_or_broken_file_is_refused_in_one_line(embedded: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder of adapters"):
        load_adapters(tmp_path / "nothing", embedded)
    with pytest.raises(ModelError, match=r"adapter_config.json: cannot be read"):
        load_adapter(tmp_path, embedded)
    save_adapter(tuned(embedded), embedded, tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read as an adapter's weights") as caught:
        load_adapter(tmp_path, embedded)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be read as an adapter's weights"):
        load_adapter(tmp_path, embedded)
    config.write_text(config.read_text()[:40], encoding="utf-8")
    with pytest.raises(ModelError, match="not JSON"):
        load_adapter(tmp_path, embedded)
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="not an adapter's settings"):
        load_adapter(tmp_path, embedded)
