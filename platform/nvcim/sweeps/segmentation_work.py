"""What Ray workers do for the segmentation comparison: train a network, run rounds of annotation, score networks.

Images lie in Ray's object store, one object each, put there once; a task is told which of them it needs. Nothing
here raises: a failure travels back as an `Outcome` with its reason, so that the rest of the comparison goes on.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nvcim.data.images import LabelledImage
from nvcim.segmentation.annotation_rounds import Round, RoundsSettings, run_rounds
from nvcim.segmentation.ensemble import MemberJob, train_member
from nvcim.segmentation.training import TrainingLog

Row = dict[str, Any]
Ref = Any
"""A Ray object reference; Ray's own type is not known below its late import."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended: `value` where it succeeded, else `error`, one line."""

    value: Any
    error: str | None
    seconds: float


def outcome_of(work: Callable[[], Any], threads: int) -> Outcome:
    """Do `work` on so many threads; whatever it raises becomes the outcome's error."""
    import torch

    torch.set_num_threads(threads)  # those that the task has asked Ray for
    started = time.perf_counter()
    try:
        value = work()
    except Exception as error:  # whatever it is, it is this task's
        return Outcome(None, reason_of(error), time.perf_counter() - started)
    return Outcome(value, None, time.perf_counter() - started)


def reason_of(error: BaseException) -> str:
    """An error as one line."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1]


def store(images: Sequence[LabelledImage]) -> dict[str, Ref]:
    """Put images into Ray's object store, by name; labels that fit take two bytes instead of four."""
    import ray

    return {image.name: ray.put(_small(image)) for image in images}


def fetch(refs: Sequence[Ref]) -> list[LabelledImage]:
    """Take images out of the object store, their labels int32 again."""
    import ray

    found: list[LabelledImage] = ray.get(list(refs))
    return [replace(image, instances=image.instances.astype(np.int32)) for image in found]


def _small(image: LabelledImage) -> LabelledImage:
    fits = image.instances.size == 0 or int(image.instances.max()) <= np.iinfo(np.uint16).max
    return replace(image, instances=image.instances.astype(np.uint16)) if fits else image


@dataclass(frozen=True)
class RayTrainMembers:
    """Trains an ensemble's members as Ray tasks side by side; a `TrainMembers` of suggestive annotation.

    images: references by name, as `store` returns them.
    """

    images: Mapping[str, Ref]
    cpus: int = 1
    gpus: float = 0.0

    def __call__(self, jobs: Sequence[MemberJob], images: Sequence[LabelledImage]) -> list[TrainingLog]:
        """Train every job on the stored images of these names; logs in the order of the jobs.

        A job that starts from another one's folder waits for it.

        Raises:
            DataError, ConfigError, ModelError: as `train_member`, of the first job that failed.
        """
        import ray

        task: Any = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=1)(train_stored)
        refs = [self.images[image.name] for image in images]
        started: dict[Path, Ref] = {}
        for job in jobs:
            before = started.get(job.start) if job.start is not None else None
            started[job.out] = task.remote(job, refs, self.cpus, before)
        return list(ray.get([started[job.out] for job in jobs]))


def train_stored(job: MemberJob, refs: Sequence[Ref], threads: int, before: object = None) -> TrainingLog:
    """Train a job on stored images; `before` is what Ray waits for first (raises as `train_member`)."""
    import torch

    torch.set_num_threads(threads)
    return train_member(job, fetch(refs))


def train_work(job: MemberJob, refs: Sequence[Ref], threads: int, start: Outcome | None = None) -> Outcome:
    """Train a job on stored images; the outcome's value is its log. `start`: how its start's training ended."""
    if start is not None and start.error is not None:
        return Outcome(None, f"the network it starts from failed: {start.error}", 0.0)
    return outcome_of(lambda: train_member(job, fetch(refs)), threads)


def rounds_work(
    images: Mapping[str, Ref], settings: RoundsSettings, folder: Path, seed: int, cpus: int, gpus: float
) -> Outcome:
    """Run the rounds of one strategy, its networks as tasks of their own; the value is the list of rounds."""

    def work() -> list[Round]:
        pool = fetch(list(images.values()))
        return run_rounds(pool, settings, folder, seed, RayTrainMembers(images, cpus, gpus))

    return outcome_of(work, cpus)
