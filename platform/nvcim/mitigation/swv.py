"""Selective write-verify: the few elements that the loss depends on most are read back and written again.

Source: SWIM (Yan, Hu, Shi, DAC 2022; code MariusAnje/SWIM). Weights are ranked by

    |d2L/dw2| * max|W| * alpha + |w|,   alpha = 1e6: magnitude only breaks ties

and the top share is written with verification, the rest once. SWIM draws verified weights with a sigma of 0.03; here
the array's own write-verify does it, pulse by pulse, until a cell is within `tolerance` of its level, or keeps the
nearest of `max_pulses`. What is left on verified cells at a sigma of 0.1 is 0.024 to 0.028 level steps if sigma is of
a step (`sigma_unit: level_step`), and 0.028 (RRAM1) to 0.032 if it is of the full range (`full_range`), where a pulse
on a middle level misses by 0.4 of a step and 4 % of the cells never come within the tolerance.

Ours: a code's element takes the place of a weight, and the loss is the language model's on the sample that the code
was tuned for. Squared gradients (the diagonal of the empirical Fisher matrix) may stand for second derivatives.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nvcim.crossbar import CrossbarConfig
from nvcim.crossbar.settings import Programming
from nvcim.errors import DataError
from nvcim.mitigation.base import Mitigation


class SelectiveWriteVerify(Mitigation):
    """SWIM's selective write-verify."""

    name: ClassVar[str] = "swv"
    needs_importance: ClassVar[bool] = True

    share: float = Field(
        0.1, gt=0, le=1, description="elements that are verified; the example in SWIM's README"
    )
    alpha: float = Field(1e6, gt=0, description="weight of the sensitivity against the magnitude (SWIM)")
    tolerance: float = Field(
        0.05,
        gt=0,
        description="level steps; evenly within it is a sigma of 0.05 / sqrt(3) = 0.03, SWIM's after verification",
    )
    max_pulses: int = Field(20, ge=1, le=255, description="the array's default; SWIM has no limit")

    def writing(self, config: CrossbarConfig) -> CrossbarConfig:
        """Selective write-verify in place of the config's own programming."""
        own = Programming(
            method="selective", tolerance=self.tolerance, max_pulses=self.max_pulses, share=self.share
        )
        return config.model_copy(update={"programming": own})

    def ranking(self, codes: Tensor, sensitivity: Tensor) -> Tensor:
        """Ranks of SWIM's score, 0 for the least: [devices, elements], exact in float32.

        Raises:
            DataError: sensitivities of another shape, negative or not finite.
        """
        if sensitivity.shape != codes.shape:
            raise DataError(
                f"importance has shape {tuple(sensitivity.shape)}; the codes have {tuple(codes.shape)}"
            )
        if not bool(torch.isfinite(sensitivity).all()) or bool((sensitivity < 0).any()):
            raise DataError("importance holds negative or non-finite numbers; allowed: 0 or more")
        # float64: beside alpha, float32 would round the magnitude away.
        magnitude = codes.detach().double().abs()
        largest = magnitude.amax(dim=1, keepdim=True)
        score = sensitivity.double() * largest * self.alpha + magnitude
        return score.argsort(dim=1, stable=True).argsort(dim=1).float()
