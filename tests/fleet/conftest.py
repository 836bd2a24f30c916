"""Small nodes over the tiny random LM, and the embedded LM where scores have to mean something."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.data.users import UserSettings, generate_users
from nvcim.fleet.node import EdgeNode
from nvcim.prompts.autoencoder import AutoencoderSettings
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.selection import SelectionSettings
from nvcim.prompts.tuning import TuningSettings

DEVICES = ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6")
SMALL = PromptSettings(
    buffer=5,
    selection=SelectionSettings(k=2),
    key_tokens=3,
    layer=1,
    one_for_all_samples=4,
    capacity=3,
    tuning=TuningSettings(tokens=4, steps=3),
    autoencoder=AutoencoderSettings(code=16, steps=5),
    max_new_tokens=4,
)


@pytest.fixture(scope="session")
def small() -> PromptSettings:
    """Few tokens, few steps."""
    return SMALL


@pytest.fixture(scope="session")
def streams() -> list[UserStream]:
    """Seven users (no number of hosts divides them) whose last buffer stays half full."""
    return generate_users(7, UserSettings(domains=2, period=4, queries_per_domain=1), seed=2)


@pytest.fixture(scope="session")
def tiny(tiny_lm: Path, streams: list[UserStream]) -> Personaliser:
    """The tiny random LM and an autoencoder fitted to it."""
    samples = [sample for stream in streams for sample in stream.history]
    return Personaliser.fit(LanguageModel.load(str(tiny_lm), "cpu"), samples, SMALL, seed=0)


@pytest.fixture
def make_node(tiny: Personaliser) -> Callable[..., EdgeNode]:
    """Make a node that has seen nothing: make_node(name, device=...)."""

    def make(name: str, device: str = "FeFET2", seed: int = 4, **config: object) -> EdgeNode:
        crossbar = CrossbarConfig.model_validate({"device": device, **config})
        return EdgeNode.new(name, crossbar, seed, tiny)

    return make
