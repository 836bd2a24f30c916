"""Zero-shot: the frozen LM as it is; nothing is trained and nothing kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nvcim.prompts.baselines.adapted import Adapted, Inputs
from nvcim.prompts.baselines.base import Baseline, Kept
from nvcim.prompts.baselines.batches import Rows
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.language_model import LanguageModel


@dataclass(frozen=True)
class Unadapted(Adapted):
    """The LM and nothing else."""

    lm: LanguageModel

    def inputs(self, rows: Rows) -> Inputs:
        """The text's embeddings."""
        return Inputs(self.lm.embed(rows.ids), rows.mask)


class ZeroShot(Baseline):
    """The frozen LM."""

    name = "zero-shot"

    def train(
        self, lm: LanguageModel, samples: Sequence[tuple[str, str]], settings: BaselineSettings, seed: int
    ) -> Kept:
        """Nothing."""
        return Kept({})

    def restore(self, lm: LanguageModel, state: Mapping[str, Tensor], settings: BaselineSettings) -> Adapted:
        """The LM."""
        return Unadapted(lm)
