"""Throughput of tiled inference, against the bare network's forward pass on the same pixels.

    python tests/benchmarks/bench_segmentation.py --cases "tiled_*"

The tiled side does everything: it normalises colours, sees the overlaps twice, blends, and takes the softmax.
The bare side gets normalised colours and returns logits.
"""

from collections.abc import Callable

import numpy as np
import torch

from nvcim.segmentation import PredictionSettings, ResidualFCN, normalise_colours, predict_probabilities
from tests.benchmarks.cases import SMOKE, Case, Run, Setup, compared

SIDE, SMOKE_SIDE = 2048, 160
LIMIT = 1 / 0.85
"""At least 85 % of the bare network's throughput, as a ratio of times."""


def tiled(**settings: int) -> Callable[[Setup], tuple[Run, Run]]:
    """An image of 2048 x 2048 pixels in tiles, and whole."""

    def pair(setup: Setup) -> tuple[Run, Run]:
        smoke = setup.sizes == SMOKE
        side = SMOKE_SIDE if smoke else SIDE
        chosen = PredictionSettings.model_validate({"tile": 128, "overlap": 32} if smoke else settings)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        model = ResidualFCN().to(setup.device).eval()
        x = normalise_colours(torch.from_numpy(pixels).to(setup.device).permute(2, 0, 1)[None])

        def whole() -> object:
            with torch.inference_mode():
                return model(x)

        return lambda: predict_probabilities(model, pixels, chosen), whole

    return pair


CASES = (
    Case("tiled_inference", "tiled inference, 2048 x 2048", compared(tiled(), "x bare forward", LIMIT)),
    Case(
        "tiled_inference_512",
        "tiled inference, 2048 x 2048, tiles of 512",
        compared(tiled(tile=512), "x bare forward", None),
    ),
)
