"""P-tuning v2 (Liu et al., arXiv 2110.07602), through PEFT: keys and values for every layer, trained directly.

PEFT's prefix encoder is P-tuning v2's own; its code's defaults are 4 tokens and no MLP.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from nvcim.prompts.baselines.adapted import Adapted
from nvcim.prompts.baselines.base import Baseline, Kept
from nvcim.prompts.baselines.key_value_prefix import new_prefix, stored_prefix
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.baselines.training import Rated, train
from nvcim.prompts.baselines.vanilla import PROMPT
from nvcim.prompts.language_model import LanguageModel


class PTuningV2(Baseline):
    """A prefix of keys and values, trained as it is."""

    name = "p-tuning-v2"

    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Train the keys and values."""
        prefixed = new_prefix(lm, num_virtual_tokens=settings.p_tuning_v2_tokens)
        trained = train(
            prefixed, [Rated(prefixed.parameters, settings.p_tuning_v2_learning_rate)], samples, settings
        )
        moved = sum(tensor.numel() for tensor in prefixed.parameters)
        return Kept({PROMPT: prefixed.keys_and_values}, moved, trained.steps, trained.failed)

    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """The LM behind the stored keys and values."""
        return stored_prefix(lm, state)

    def added_tokens(self, settings: BaselineSettings) -> int:
        """The prefix."""
        return settings.p_tuning_v2_tokens

    def passed_tokens(self, settings: BaselineSettings) -> int:
        """None: keys and values pass no layer."""
        return 0
