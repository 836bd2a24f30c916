"""Trained ternary quantization (TTQ, Zhu et al., 1612.01064): {-W_n, 0, +W_p}, both scales learnt.

D = t max|w|; w_q = +W_p where w > D, -W_n where w < -D, 0 between. Gradients, with g that of w_q:
dL/dW_p = sum of g over w > D, dL/dW_n = -sum of g over w < -D (the chain rule's sign, which a much-copied
implementation lacks), and the float weights get W_p g, g, or W_n g by their region.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nvcim.quantization.base import QuantizedWeight, Quantizer, QuantizerSettings, Side


class TTQSettings(QuantizerSettings):
    """TTQ's settings; the official code (czhu95/ternarynet) keeps the first and the last layer float.

    `start` says where the scales begin: `means` takes the mean magnitude of each region, which keeps a trained
    float model's layers near their scale; the official code begins with `ones`, which leaves that to the
    normalisation after every layer.
    """

    kind: Literal["ttq"] = "ttq"
    bits: Literal[2] = 2
    float_layers: tuple[str, ...] = ("first", "last")
    threshold: float = Field(default=0.05, ge=0.0, lt=1.0, description="t, share of the largest |w|")
    start: Literal["means", "ones"] = "means"


class _Ternary(torch.autograd.Function):
    """The forward rule, and the paper's three gradients."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor) -> Tensor:
        above, below = weight > threshold, weight < -threshold
        ctx.save_for_backward(above, below, positive, negative)
        zero = torch.zeros_like(weight)
        return torch.where(above, positive, torch.where(below, -negative, zero)) + 0.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        above, below, positive, negative = ctx.saved_tensors
        gradient = gradients[0]
        slope = torch.where(above, positive, torch.where(below, negative, torch.ones_like(gradient)))
        to_positive = (gradient * above).sum().view_as(positive)
        to_negative = -(gradient * below).sum().view_as(negative)
        return slope * gradient, to_positive, to_negative, None


class TTQWeight(QuantizedWeight):
    """Parametrization of one weight; the two scales are parameters of the model, [1] each."""

    kind = "ttq"

    def __init__(self, weight: Tensor, settings: TTQSettings) -> None:
        super().__init__()
        self.threshold = settings.threshold
        ones = torch.ones(1, dtype=weight.dtype, device=weight.device)
        if settings.start == "ones":
            self.positive, self.negative = nn.Parameter(ones), nn.Parameter(ones.clone())
        else:
            border = self._border(weight)
            self.positive = nn.Parameter(_mean(weight, weight > border))
            self.negative = nn.Parameter(_mean(-weight, weight < -border))

    def _border(self, weight: Tensor) -> Tensor:
        return self.threshold * weight.detach().abs().amax()

    def forward(self, original: Tensor) -> Tensor:
        """Return the ternary weight, same shape."""
        quantized: Tensor = _Ternary.apply(  # type: ignore[no-untyped-call]
            original, self.positive, self.negative, self._border(original)
        )
        return quantized

    def side(self, original: Tensor) -> Side:
        """Return the two scales, [1] each."""
        return {"positive": self.positive, "negative": self.negative}


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the chosen values, [1]; 0 where none is chosen."""
    return ((values * where).sum() / where.sum().clamp(min=1)).view(1)


class TTQ(Quantizer):
    """TTQ over the weighted layers of a model."""

    settings: TTQSettings

    def __init__(self, settings: TTQSettings | None = None) -> None:
        self.settings = settings or TTQSettings()

    @property
    def kind(self) -> str:
        """`ttq`."""
        return "ttq"

    @property
    def name(self) -> str:
        """`ttq`: its bits cannot be chosen."""
        return self.kind

    def _parametrization(self, weight: Tensor) -> QuantizedWeight:
        return TTQWeight(weight, self.settings)

    def levels_from(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return {-W_n, 0, +W_p} ascending, [3]; training may have turned a scale's sign."""
        positive, negative = side["positive"], side["negative"]
        return torch.cat([-negative, torch.zeros_like(positive), positive]).sort().values + 0.0
