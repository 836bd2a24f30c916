"""What is the same to the bit, and what only within a step of the ADC, when threads, batches and packing change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from tests.fidelity.tables import table

INPUTS, OUTPUTS, VECTORS, CHIPS = 200, 96, 40, 5
SETTINGS: dict[str, object] = {"device": "RRAM4", "rows": 64, "cols": 48, "read_noise": 0.05}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the compiled kernel use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generators() -> list[torch.Generator]:
    """One for each chip."""
    return [torch.Generator().manual_seed(61 + chip) for chip in range(CHIPS)]


def weights() -> Tensor:
    """[CHIPS, INPUTS, OUTPUTS]."""
    return torch.randn(CHIPS, INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(66))


def vectors() -> Tensor:
    """[CHIPS, VECTORS, INPUTS]."""
    return torch.randn(CHIPS, VECTORS, INPUTS, generator=torch.Generator().manual_seed(67))


def chips() -> Crossbar:
    """All chips, written in one call."""
    return Crossbar.program(weights(), CrossbarConfig.model_validate(SETTINGS), generators())


def one_by_one() -> list[Crossbar]:
    """Each chip written by itself."""
    config = CrossbarConfig.model_validate(SETTINGS)
    return [
        Crossbar.program(weight, config, generator)
        for weight, generator in zip(weights(), generators(), strict=True)
    ]


def adc_step(crossbar: Crossbar, x: Tensor) -> Tensor:
    """The largest step of the ADCs that add up to each output, as a bound for all: [CHIPS, VECTORS, 1]."""
    columns = crossbar.read_weight().norm(dim=-2).amax(dim=-1)
    step: Tensor = x.norm(dim=-1, keepdim=True) * columns[:, None, None] / 127
    return step


@dataclass(frozen=True)
class Sameness:
    """What was compared over what change. steps: largest difference in ADC steps; share: of outputs that differ by more
    than a hundredth of a step. Both 0 where all bits agree. exact: whether all bits have to agree.
    """

    what: str
    change: str
    exact: bool
    steps: float
    share: float

    @property
    def verdict(self) -> str:
        """In words. What need not agree to the bit is not said to, as that is up to the processor's matrix product."""
        if self.exact:
            return "equal to the bit" if self.steps == 0 else "DIFFERS"
        within = self.steps <= 1.01 and self.share < 0.01
        return "within one ADC step, fewer than 1 % of outputs" if within else "DIFFERS"


def compare(what: str, change: str, exact: bool, one: Tensor, others: list[Tensor], step: Tensor) -> Sameness:
    """The worst of several against the first."""
    gaps = [((one - other).abs() / step) for other in others]
    equal = all(torch.equal(one, other) for other in others)
    worst = max(float(gap.max()) for gap in gaps)
    share = max(float((gap > 0.01).float().mean()) for gap in gaps)
    return Sameness(what, change, exact, 0.0 if equal else max(worst, 1e-9), share)


def batches(read: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Read the vectors in batches of awkward sizes: [CHIPS, VECTORS, OUTPUTS]."""
    return torch.cat([read(part) for part in torch.split(x, [1, 3, 7, 29], dim=1)], dim=1)


def _reads(what: str, exact: bool, x: Tensor) -> list[Sameness]:
    step = adc_step(chips(), x)
    reference = chips().matmul(x)
    by_threads = []
    for count in (2, 3):
        with threads(count):
            by_threads.append(chips().matmul(x))
    alone = torch.stack([c.matmul(part) for c, part in zip(one_by_one(), x, strict=True)])
    stacked = Crossbar.stack(one_by_one()).matmul(x)
    return [
        compare(what, "1, 2 and 3 threads", exact, reference, by_threads, step),
        compare(what, "one batch of 40; batches of 1, 3, 7, 29", exact, reference, [batches(chips().matmul, x)], step),
        compare(what, "5 chips in a call; each alone; stacked", exact, reference, [alone, stacked], step),
    ]  # fmt: skip


@cache
def samenesses() -> tuple[Sameness, ...]:
    """Everything that is compared."""
    with threads(1):
        reference, one = chips().read_weight(), torch.ones(1)
        by_threads = []
        for count in (2, 3):
            with threads(count):
                by_threads.append(chips().read_weight())
        alone = torch.stack([c.read_weight() for c in one_by_one()])
        lone = one_by_one()[0]
        lone.matmul(vectors()[0])  # somewhere in the stream of reads
        restored = Crossbar.from_state(lone.state_dict(), lone.config)
        return (
            compare("cells as written", "1, 2 and 3 threads", True, reference, by_threads, one),
            compare("cells as written", "5 chips in a call; each alone", True, reference, [alone], one),
            *_reads(
                "reads of single rows, with their noise",
                True,
                torch.eye(INPUTS)[:VECTORS].expand(CHIPS, -1, -1),
            ),
            *_reads("reads of whole vectors, with their noise", False, vectors()),
            compare(
                "reads after saving and restoring",
                "state_dict, from_state",
                True,
                lone.matmul(vectors()[0]),
                [restored.matmul(vectors()[0])],
                one,
            ),
        )


def section() -> str:
    """The page's part."""
    rows = [[same.what, same.change, same.verdict] for same in samenesses()]
    return _TEXT.format(first=table(["numbers", "what changes", "result"], rows))


_TEXT = """\
## 6. Reproducibility

200 x 96 weights on 64 x 48 tiles, sigma 0.1, 8-bit converters, 5 % read noise, 5 chips, 40 vectors (seeds 61 to 67):

{first}

Every draw is a function of the chip's key and of what it is for, so none depends on threads, batch or packing, and a
read of single rows, where nothing is summed, shows them to the bit. A product of whole vectors is summed by the
processor's matrix product in an order that depends on the shape; its last bits can move a value across the border of
an ADC's code. Compiled and plain path are compared in `tests/crossbar/test_kernel.py`.
"""
