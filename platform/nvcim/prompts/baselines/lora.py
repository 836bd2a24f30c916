"""LoRA (Hu et al., arXiv 2106.09685), through PEFT: a reference point that changes the LM's own linear maps.

Not a prompt: each user needs modules of their own inside the LM. They sit where PEFT puts them for the architecture
(queries and values in most), or on every linear layer of one that PEFT does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from nvcim.prompts.baselines.adapted import Adapted, Inputs
from nvcim.prompts.baselines.base import Baseline, Kept
from nvcim.prompts.baselines.batches import Rows
from nvcim.prompts.baselines.peft_copy import peft_around_copy
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.baselines.training import Rated, train
from nvcim.prompts.language_model import LanguageModel


@dataclass(frozen=True)
class Injected(Adapted):
    """An LM with LoRA's modules in a copy that shares the frozen weights; `peft` is the PEFT model around it."""

    lm: LanguageModel
    peft: Any

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The low-rank factors."""
        return tuple(weight for weight in self.peft.parameters() if weight.requires_grad)

    def inputs(self, rows: Rows) -> Inputs:
        """The text's embeddings."""
        return Inputs(self.lm.embed(rows.ids), rows.mask)


def inject(lm: LanguageModel, settings: BaselineSettings) -> Injected:
    """LoRA's modules in a copy of the LM, drawn from torch's own random state; they change nothing yet."""
    known = lm.model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=None if known else "all-linear",
        fan_in_fan_out=any(
            isinstance(module, Conv1D) for module in lm.model.modules()
        ),  # GPT-2's linear maps
    )
    peft = peft_around_copy(lm.model, config)
    return Injected(replace(lm, model=peft.get_base_model()), peft)


class Lora(Baseline):
    """Low-rank updates of the LM's linear maps."""

    name = "lora"

    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Train the low-rank factors."""
        injected = inject(lm, settings)
        factors = injected.parameters
        trained = train(injected, [Rated(factors, settings.lora_learning_rate)], samples, settings)
        stored = get_peft_model_state_dict(injected.peft)
        state = {name: tensor.detach().float().cpu() for name, tensor in stored.items()}
        return Kept(state, sum(factor.numel() for factor in factors), trained.steps, trained.failed)

    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """A copy of the LM with the stored factors in it."""
        with torch.random.fork_rng(devices=[]):  # PEFT draws a start that is then replaced
            injected = inject(lm, settings)
        set_peft_model_state_dict(injected.peft, dict(state))
        injected.peft.requires_grad_(False)
        return injected
