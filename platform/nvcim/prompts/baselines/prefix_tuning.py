"""Prefix tuning (Li and Liang, arXiv 2101.00190) through PEFT: keys and values of every layer, trained through an MLP.

The MLP (Linear, Tanh, Linear) is a means of training: only the keys and values that it makes are kept.
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


class PrefixTuning(Baseline):
    """A prefix of keys and values with the MLP of prefix tuning."""

    name = "prefix-tuning"

    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Train embeddings and MLP; keep what they make."""
        prefixed = new_prefix(
            lm,
            num_virtual_tokens=settings.tokens,
            prefix_projection=True,
            encoder_hidden_size=settings.prefix_encoder_width,
        )
        trained = train(
            prefixed, [Rated(prefixed.parameters, settings.prefix_learning_rate)], samples, settings
        )
        moved = sum(tensor.numel() for tensor in prefixed.parameters)
        return Kept({PROMPT: prefixed.keys_and_values}, moved, trained.steps, trained.failed)

    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """The LM behind the stored keys and values."""
        return stored_prefix(lm, state)

    def added_tokens(self, settings: BaselineSettings) -> int:
        """The prefix."""
        return settings.tokens

    def passed_tokens(self, settings: BaselineSettings) -> int:
        """None: keys and values pass no layer."""
        return 0
