"""A prefix of keys and values in every layer, held by PEFT; what prefix tuning and P-tuning v2 share."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PrefixTuningConfig, TaskType
from torch import Tensor

from nvcim.errors import ModelError
from nvcim.prompts.baselines.adapted import Adapted, Inputs
from nvcim.prompts.baselines.batches import Rows
from nvcim.prompts.baselines.peft_copy import peft_around_copy
from nvcim.prompts.baselines.vanilla import PROMPT
from nvcim.prompts.language_model import LanguageModel


@dataclass(frozen=True)
class Prefixed(Adapted):
    """The LM behind the prefix of a PEFT model over a copy of it.

    PEFT's own forward leaves positions to the model, which counts padding, so that an answer would depend on what it
    is batched with; here PEFT makes the keys and values, and the LM is called with positions of real tokens.
    """

    lm: LanguageModel
    peft: Any

    @property
    def added(self) -> int:  # type: ignore[override]
        """Positions that the prefix takes."""
        return int(self.peft.active_peft_config.num_virtual_tokens)

    @property
    def most_padding(self) -> float:
        """None for a model with a sliding window: padding between prefix and text would push the prefix out of it."""
        config = self.lm.model.config.get_text_config(decoder=True)
        return self.lm.most_padding if getattr(config, "sliding_window", None) is None else 0

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What makes the prefix."""
        return tuple(self.peft.prompt_encoder.parameters())

    @property
    def keys_and_values(self) -> Tensor:
        """The prefix as it is stored: [n, 2 x layers x key-value width]."""
        stored: Tensor = self.peft.get_prompt_embedding_to_save("default")
        return stored

    def inputs(self, rows: Rows) -> Inputs:
        """The text's embeddings behind the prefix's keys and values."""
        past = self.peft.get_prompt(len(rows.ids))
        ones = rows.mask.new_ones(len(rows.ids), self.added)
        return Inputs(self.lm.embed(rows.ids), torch.cat([ones, rows.mask], 1), past)


def new_prefix(lm: LanguageModel, **config: Any) -> Prefixed:
    """A prefix to be trained, drawn from torch's own random state; `config` goes to `peft.PrefixTuningConfig`.

    Raises:
        ModelError: a model that attends to no keys and values (Mamba).
    """
    if "past_key_values" not in inspect.signature(lm.model.forward).parameters:
        raise ModelError(
            f"model '{lm.name}' ({lm.model.config.model_type}) takes no keys and values, of which a prefix is made"
        )
    wanted = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, **config)
    return Prefixed(lm, peft_around_copy(lm.model, wanted))


def stored_prefix(lm: LanguageModel, state: Mapping[str, Tensor]) -> Prefixed:
    """A prefix from its stored keys and values; what they were trained through is not needed any more."""
    with torch.random.fork_rng(devices=[]):  # PEFT draws a start that is then replaced
        prefixed = new_prefix(lm, num_virtual_tokens=len(state[PROMPT]))
    encoder = prefixed.peft.prompt_encoder["default"]
    encoder.load_prompt_embeddings(state[PROMPT])
    encoder.requires_grad_(False)
    return prefixed
