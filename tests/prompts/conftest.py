"""Language models of the prompts room's tests: the embedded one, and tiny random ones of eight architectures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from nvcim.data.lamp import UserStream
from nvcim.data.users import UserSettings, generate_users
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.pretraining import instructions_of, train_tokenizer

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
ALTERNATING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,  # shorter than the tests' texts
}
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "gemma": lambda **ids: GemmaConfig(**SHAPE, num_key_value_heads=1, head_dim=16, **ids),
    "gemma2": lambda **ids: Gemma2Config(**SHAPE, **ALTERNATING, num_key_value_heads=1, head_dim=16, **ids),
    "gemma3_text": lambda **ids: Gemma3TextConfig(
        **SHAPE, **ALTERNATING, num_key_value_heads=1, head_dim=16, **ids
    ),
    "phi": lambda **ids: PhiConfig(**SHAPE, **ids),
    "mistral": lambda **ids: MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=128, **ids),
    "llama": lambda **ids: LlamaConfig(**SHAPE, **ids),
    "qwen2": lambda **ids: Qwen2Config(**SHAPE, num_key_value_heads=1, **ids),
    "qwen3": lambda **ids: Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=16, **ids),
    "gpt2": lambda **ids: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **ids),
}
STORIES = Path(__file__).parents[3] / "shared" / "data" / "lm_stories260K" / "hf"
"""A real pre-trained LM, where the project's shared data is at hand."""


@pytest.fixture(scope="session")
def embedded() -> LanguageModel:
    """The LM that the project ships."""
    return LanguageModel.load("embedded", "cpu")


@pytest.fixture(scope="session")
def users() -> list[UserStream]:
    """Four short users, one per generated task."""
    return generate_users(4, UserSettings(domains=2, period=6, queries_per_domain=1), seed=11)


@pytest.fixture(scope="session")
def personaliser(embedded: LanguageModel, users: list[UserStream]) -> Personaliser:
    """The embedded LM with an autoencoder fitted to those users' samples."""
    samples = [sample for user in users for sample in user.history]
    return Personaliser.fit(embedded, samples, PromptSettings(), seed=0)


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory, users: list[UserStream]) -> Callable[[str], Path]:
    """Folder of a family's tiny random model in the Hugging Face layout, made on first use."""
    texts = [f"{sample.input} {sample.output}" for user in users for sample in user.history]
    tokenizer: Any = train_tokenizer(texts, instructions_of(users), 400)
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config = FAMILIES[name](
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                model = AutoModelForCausalLM.from_config(config)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(params=[*FAMILIES, "stories260K"])
def any_lm(request: pytest.FixtureRequest, make_family: Callable[[str], Path]) -> LanguageModel:
    """One model of each kind in turn, loaded by its path."""
    if request.param == "stories260K":
        if not STORIES.is_dir():
            pytest.skip(f"the pre-trained stories260K model is not at hand: {STORIES}")
        return LanguageModel.load(str(STORIES), "cpu")
    return LanguageModel.load(str(make_family(request.param)), "cpu")


@pytest.fixture
def dynamic_lm(make_family: Callable[[str], Path]) -> LanguageModel:
    """A tiny Llama whose rotation changes with the length of the text: it can cache no prefix."""
    folder = make_family("llama")
    rotation = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = AutoModelForCausalLM.from_pretrained(folder, rope_parameters=rotation)
    return LanguageModel.wrap("dynamic", model, LanguageModel.load(str(folder), "cpu").tokenizer, "cpu")
