"""A quantized network's forward pass against the same network's in floating point.

Both run plain float32 weights: `baked` makes a quantized model's once, so the two differ in the values
of their weights and nothing else. The limit is the project's, no slower than float: a ratio of 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nvcim.quantization import quantizer_named
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.network import baked
from tests.benchmarks.cases import SMOKE, Case, Run, Setup, compared
from tests.benchmarks.timing import Result, alternate

LIMIT = 1.0
UNIT = "x float forward"


@dataclass(frozen=True)
class Images:
    """One batch: how many images, and their side in pixels."""

    count: int = 1
    side: int = 512


def images(setup: Setup) -> Images:
    """The batch of a setup's sizes."""
    return Images(count=1, side=64) if setup.sizes is SMOKE else Images()


def network(setup: Setup) -> ResidualFCN:
    """The compact default with weights of its own seed, in evaluation mode."""
    return ResidualFCN(FCNSettings(), seed=0).to(setup.device).eval()


def forward(model: nn.Module, pixels: Tensor) -> Run:
    """One forward pass without gradients."""

    def run() -> None:
        with torch.inference_mode():
            model(pixels)

    return run


def drawn_pixels(setup: Setup) -> Tensor:
    """Gaussian pixels [B, 3, side, side]."""
    wanted = images(setup)
    shape = (wanted.count, 3, wanted.side, wanted.side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(setup.device)


def quantized(name: str, setup: Setup) -> ResidualFCN:
    """The network of `network` under a quantizer, every weight on a level."""
    model, quantizer = network(setup), quantizer_named(name)
    assert quantizer is not None
    model.quantize(quantizer)
    quantizer.advance(model, 1.0)
    return model


def ready(name: str) -> Callable[[Setup], tuple[Run, Run]]:
    """The copy that inference uses."""

    def pair(setup: Setup) -> tuple[Run, Run]:
        pixels = drawn_pixels(setup)
        copied = baked(quantized(name, setup))
        return forward(copied, pixels), forward(network(setup), pixels)

    return pair


def attached(name: str) -> Callable[[Case, Setup], list[Result]]:
    """The model as training has it, which quantizes its weights at every pass; reported without a limit."""

    def measure(case: Case, setup: Setup) -> list[Result]:
        pixels = drawn_pixels(setup)
        timing = alternate(
            forward(quantized(name, setup), pixels), forward(network(setup), pixels), setup.repeats
        )
        line = Result(case.name, case.title, setup.threads, setup.place, timing.ratio, UNIT, timing=timing)
        return [replace(line, note="weights quantized anew at every pass")]

    return measure


QUANTIZERS = ("inq-7", "inq-5", "twn", "ttq", "dorefa-1", "uniform-4")
CASES = (
    *(
        Case(f"quantized_{name}", f"forward, {name}", compared(ready(name), UNIT, LIMIT, "baked"))
        for name in QUANTIZERS
    ),
    *(
        Case(f"attached_{name}", f"forward as in training, {name}", attached(name))
        for name in ("inq-7", "twn", "uniform-4")
    ),
)
