"""Several networks on one annotated set: each on its own resample, trained and saved one by one.

An ensemble's member is a job: data in, a folder out. Whoever has workers may run the jobs of one list side
by side and gets the same folders, since a member depends on nothing but its own job and the images.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvcim.data.images import LabelledImage
from nvcim.errors import ConfigError, ModelError, RunError
from nvcim.quantization import quantizer_named
from nvcim.randomness import named_seed
from nvcim.segmentation.architectures import NetworkSettings, make_network
from nvcim.segmentation.model_files import load_fcn, save_fcn
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.segmentation.training import (
    OnStep,
    TrainingLog,
    TrainingSettings,
    fingerprint,
    smallest_object,
    train,
)
from nvcim.storage import atomic_write_text

_LOG = "training.json"
_CHECKPOINT = "checkpoint.pt"
_FILES = (_LOG, _CHECKPOINT, "fcn.json", "model.safetensors")  # log first: without it nothing is complete


@dataclass(frozen=True)
class MemberJob:
    """One network to train and where it goes.

    `bootstrap` trains on a resample with replacement of the images, drawn by `seed`; else on all of them. A
    draw without any labelled object is drawn again; what is a speck is learnt from all images in any case.
    `start` is the folder of a trained float network to go on from (a quantized member's float twin; give it
    the same seed, so that both see the same resample); None starts from random weights. `training.steps` are
    this job's own steps, whatever its start. `validation` (0 to below 1) is the share of the images, drawn by
    `seed`, that is kept out of training and decides when it is best, as `train` says. `entropy_coded` is for
    the file of quantized weights, as `save_fcn` takes it.
    """

    network: NetworkSettings
    training: TrainingSettings
    out: Path
    seed: int
    quantizer: str = "float"
    bootstrap: bool = True
    start: Path | None = None
    validation: float = 0.0
    entropy_coded: bool = False


TrainMembers = Callable[[Sequence[MemberJob], Sequence[LabelledImage]], list[TrainingLog]]
"""Trains every job on the same images; logs in the order of the jobs. A job may start from an earlier one."""


def bootstrap(count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` indices 0..count-1 drawn with replacement, int64 [count]; the same for the same seed.

    On average 1 - 1/e, about 63 %, of the indices appear (Efron, 1979).
    """
    generator = np.random.default_rng(named_seed(seed, "segmentation", "bootstrap"))
    return generator.integers(0, count, count, dtype=np.int64)


def hold_back(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices 0..count-1 by `seed` into those to train on and those to validate on, both ascending.

    The second are `share` of all, rounded, at least one where the share is above 0 and never all.

    Raises:
        ConfigError: a share outside 0 to below 1, or of fewer than two images.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"validation: the share must be from 0 to below 1, given {share}")
    if share == 0.0:
        return np.arange(count), np.arange(0)
    if count < 2:
        raise ConfigError("validation: needs two images, one to train on and one to validate on")
    held = min(max(round(share * count), 1), count - 1)
    order = np.random.default_rng(named_seed(seed, "segmentation", "validation")).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def train_member(
    job: MemberJob, images: Sequence[LabelledImage], on_step: OnStep | None = None
) -> TrainingLog:
    """Train a job's network, save it to `job.out`, and return its log.

    The folder is complete once its log is there, which is written last: a job that is complete returns what
    is there, and one that was killed goes on from its last checkpoint to the result it would have had.

    Raises:
        DataError, ConfigError: images or settings that cannot be trained with.
        ModelError: `job.out` holds another job's network, `job.start` cannot be loaded or is quantized, or
            training diverged.
        RunError: `job.out` cannot be written to.
    """
    identity = _identity(job, images)
    log = _finished(job.out, identity)
    if log is not None:
        return log
    specks = smallest_object(images)
    training, validation = _draw(job, images)
    model = _start(job)
    # Whatever the weights, networks that go on from one start see the same crops: they are compared in pairs.
    seed = named_seed(job.seed, "segmentation", "member", "start" if job.start is None else "continued")
    checkpoint = job.out / _CHECKPOINT
    quantizer = quantizer_named(job.quantizer)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{job.out}: no folder can be made there ({error.strerror})") from error
    log = train(
        model,
        [images[i] for i in training],
        job.training,
        seed,
        quantizer,
        on_step,
        validation=[images[i] for i in validation],
        checkpoint=checkpoint,
    )
    model.smallest_object = specks
    save_fcn(model.to("cpu"), job.out, entropy_coded=job.entropy_coded)
    content = {"job": identity, **dataclasses.asdict(log)}
    atomic_write_text(job.out / _LOG, json.dumps(content) + "\n")
    checkpoint.unlink(missing_ok=True)
    return log


def train_members(jobs: Sequence[MemberJob], images: Sequence[LabelledImage]) -> list[TrainingLog]:
    """Train the jobs one after another in this process; logs in the order of the jobs.

    Raises:
        DataError, ConfigError, ModelError, RunError: as `train_member`.
    """
    return [train_member(job, images) for job in jobs]


def load_members(folders: Sequence[Path]) -> list[SegmentationNetwork]:
    """Return the networks that `train_member` saved, in the order of the folders.

    Raises:
        ModelError, ConfigError: a folder holds no saved network, as `load_fcn`.
    """
    return [load_fcn(folder) for folder in folders]


def holds_member(folder: Path) -> bool:
    """Whether `train_member` has left a network there, or a part of its training."""
    return any((folder / name).exists() for name in _FILES)


def is_complete(folder: Path) -> bool:
    """Whether `train_member` has trained a network there to its end."""
    return (folder / _LOG).is_file() and not (folder / _CHECKPOINT).exists()


def remove_member(folder: Path) -> None:
    """Remove what `train_member` wrote to a folder, and the folder where nothing else is in it.

    Raises:
        RunError: it cannot be removed.
    """
    try:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise RunError(f"{folder}: cannot be cleared ({error.strerror})") from error


def _draw(job: MemberJob, images: Sequence[LabelledImage]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the images to train on, which hold an object, and of those to validate on.

    Some image must hold one. Few draws miss them all; another is made then, by a seed that follows from it.
    """
    labelled = np.array([bool(image.instances.any()) for image in images])
    for attempt in itertools.count():
        seed = named_seed(job.seed, "segmentation", "drawn again", attempt) if attempt else job.seed
        training, validation = hold_back(len(images), job.validation, seed)
        if job.bootstrap:
            training = training[bootstrap(len(training), seed)]
        if labelled[training].any():
            break
    return training, validation


def _start(job: MemberJob) -> SegmentationNetwork:
    """The network a job begins with.

    Raises:
        ModelError: the start's network has another shape or is quantized.
    """
    if job.start is None:
        return make_network(job.network, named_seed(job.seed, "segmentation", "member", "weights"))
    model = load_fcn(job.start)
    if model.settings != job.network:
        raise ModelError(f"{job.start}: the network to start from has other settings than the job's")
    if model.quantizer is not None:
        raise ModelError(
            f"{job.start}: a network to start from must be float, this one is {model.quantizer.name}"
        )
    return model


def _identity(job: MemberJob, images: Sequence[LabelledImage]) -> str:
    """A fingerprint of the job and its images.

    Not of its start, which may be gone when it is done, nor of the device, which is not part of the result.
    """
    training = job.training.model_dump_json(exclude={"device"})
    parts = (job.network.model_dump_json(), training, job.seed, job.quantizer)
    more = (job.bootstrap, job.start is None, job.validation, job.entropy_coded)
    digest = hashlib.sha256("\x1f".join(str(part) for part in (*parts, *more)).encode())
    digest.update(fingerprint(images))
    return digest.hexdigest()


def _finished(folder: Path, identity: str) -> TrainingLog | None:
    """The log of a complete job's folder; None where it is not complete.

    Raises:
        ModelError: the folder is complete, but of another job, or its log is damaged.
    """
    source = folder / _LOG
    if not source.is_file():
        return None
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        found = content["job"]
        losses, validations = content["losses"], content["validations"]
        log = TrainingLog(
            tuple(losses), content["seconds"], content["weights"], tuple((n, x) for n, x in validations)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source}: not the log of a trained member ({error!r})") from error
    if found != identity:
        raise ModelError(
            f"{folder}: holds a network of other settings, seed or images; choose another folder"
        )
    return log
