"""Times of a case and of its reference, taken alternately in one process, and how quiet the machine was."""

import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from nvcim.crossbar.kernel import kernel_status
from tests.benchmarks import isa

# A quarter of the reference's runs taking this much longer than another quarter: something else was running.
UNSTEADY = 1.25
PLAIN_SECONDS = 15.0  # a run in plain torch may take a hundred times as long as a compiled one
BUSY_LOAD = 0.3  # load average over the last minute, before the benchmark itself adds to it


@dataclass(frozen=True)
class Spread:
    """Milliseconds of one call over the repeats."""

    median: float
    low: float
    quarter: float
    three_quarters: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Order statistics of one or more values."""
        quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median(values), min(values), quarters[0], quarters[2], max(values))


@dataclass(frozen=True)
class Timing:
    """A case and its reference, timed alternately.

    Attributes:
        case, reference: milliseconds.
        ratio: of the medians.
        ratios: spread of the ratio of a case's run to the reference's run just before it.
        repeats: how many runs of each.
        plain: milliseconds of the case without compiled kernels, of fewer runs where they take long; None where no
            kernel would serve it.
    """

    case: Spread
    reference: Spread
    ratio: float
    ratios: Spread
    repeats: int
    plain: Spread | None = None

    @property
    def steady(self) -> bool:
        """Whether the reference took about the same time throughout."""
        return self.reference.three_quarters <= UNSTEADY * self.reference.quarter

    @property
    def slower_than_plain(self) -> bool | None:
        """Whether compiling costs time instead of saving it, by the medians; None without a plain counterpart."""
        return None if self.plain is None else self.case.median > self.plain.median


def alternate(
    case: Callable[[], object],
    reference: Callable[[], object],
    repeats: int,
    plain: Callable[[], AbstractContextManager[object]] | None = None,
) -> Timing:
    """Run reference and case in turn, `repeats` times each after one run of each that is not counted.

    Where `plain` gives a context, the case is run inside such a one too, after each run outside, until that has taken
    `PLAIN_SECONDS`: where one run takes as long, the first is the last. All wait for the GPU, if there is one, before
    the clock is read.
    """
    references, cases, plains = [], [], []
    case(), reference()
    if plain is not None:
        first = _inside(plain, case)
        spent = first / 1e3
        plains = [first] if spent > PLAIN_SECONDS else []
    for _ in range(repeats):
        references.append(_milliseconds(reference))
        cases.append(_milliseconds(case))
        if plain is not None and (not plains or spent < PLAIN_SECONDS):
            plains.append(_inside(plain, case))
            spent += plains[-1] / 1e3
    pairs = [one / other for one, other in zip(cases, references, strict=True)]
    ratio = median(cases) / median(references)
    spread = Spread.of(plains) if plains else None
    return Timing(Spread.of(cases), Spread.of(references), ratio, Spread.of(pairs), repeats, spread)


def _inside(context: Callable[[], AbstractContextManager[object]], run: Callable[[], object]) -> float:
    with context():
        return _milliseconds(run)


def _milliseconds(run: Callable[[], object]) -> float:
    _synchronise()
    start = time.perf_counter()
    run()
    _synchronise()
    return (time.perf_counter() - start) * 1e3


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        case, title: of `cases.Case`.
        threads: torch's. device: cpu, or the GPU's name.
        value: what was measured, in `unit`; None if the case was skipped.
        limit: the value should not exceed it; None: reported without a limit.
        timing: None where the value is not a time.
        note: how it was measured, or why the case was skipped.
    """

    case: str
    title: str
    threads: int
    device: str
    value: float | None
    unit: str
    limit: float | None = None
    timing: Timing | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the limit was met; None without a limit or a value."""
        return None if self.limit is None or self.value is None else self.value <= self.limit

    @property
    def slower_than_plain(self) -> bool | None:
        """See `Timing`; None without times."""
        return None if self.timing is None else self.timing.slower_than_plain

    @property
    def failed(self) -> bool:
        """Whether the line is beyond its limit or slower than its plain counterpart."""
        return self.met is False or self.slower_than_plain is True

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and strings, for `--json`."""
        return {
            **asdict(self),
            "met": self.met,
            "slower_than_plain": self.slower_than_plain,
            "failed": self.failed,
            "steady": None if self.timing is None else self.timing.steady,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Result":
        """What `as_json` gave, in another process."""
        own = {one.name: found[one.name] for one in fields(cls)}
        times = own["timing"]
        if times is not None:
            spreads = {name: Spread(**value) for name, value in times.items() if isinstance(value, dict)}
            own["timing"] = Timing(**{**times, **spreads})
        return cls(**own)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",  # type: ignore[no-untyped-call]
        "kernel": kernel_status(),
        **isa.in_use(),
        "load_before": round(_load(), 2),
    }


def load_warnings() -> list[str]:
    """Say if the machine was busy before the benchmark began."""
    if _load() <= BUSY_LOAD:
        return []
    return [f"the machine was not idle: load average {_load():.2f} before the first case; figures may be off"]


def steadiness_warnings(results: list[Result]) -> list[str]:
    """Say in which cases the reference's time wandered."""
    shaken = [f"{one.case} ({one.threads})" for one in results if one.timing and not one.timing.steady]
    if not shaken:
        return []
    why = f"quartiles of the reference's time differ by more than {UNSTEADY - 1:.0%}"
    return [f"unsteady, measure again: {', '.join(shaken)}: {why}"]


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
