"""Train one network or several on a folder of labelled images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from nvcim.data.images import read_image_set
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import quantizer_named
from nvcim.randomness import named_seed
from nvcim.segmentation.architectures import NetworkSettings
from nvcim.segmentation.ensemble import MemberJob, hold_back, holds_member, remove_member, train_member
from nvcim.segmentation.fcn import PAPER_FCN, FCNSettings
from nvcim.segmentation.training import OnStep, TrainingLog, TrainingSettings
from nvcim.segmentation.unet import UNetSettings

NETWORKS: Mapping[str, NetworkSettings] = MappingProxyType(
    {"fcn": FCNSettings(), "unet": UNetSettings(), "paper": PAPER_FCN}
)
"""Networks by name: the compact FCN, a U-Net of about its size, and the FCN at the paper's size."""


def network_called(name: str) -> NetworkSettings:
    """Return the settings of a network of `NETWORKS`.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in NETWORKS:
        raise ConfigError(f"network '{name}' is not known; allowed: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def train_on_folder(
    folder: Path,
    out: Path,
    network: NetworkSettings | None = None,
    settings: TrainingSettings | None = None,
    weights: str = "float",
    limit: int | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    *,
    networks: int = 1,
    validation: float = 0.0,
    resume: bool = False,
    entropy_coded: bool = False,
) -> list[TrainingLog]:
    """Train on a labelled image set; one log per training in the order they ran. `limit` images by seed.

    One network is trained on all images and saved to `out`; several each on their own resample, to
    `out/member-0`, `member-1`, ... Quantized weights start from a float network, which is trained first, gets
    twice their steps, and stays in the folder `float` beside them. `validation` is the share of images held
    back to decide when a training is best. `entropy_coded` is for the files of quantized weights, as
    `save_fcn` takes it.

    What `out` holds of an earlier training is removed, or with `resume` gone on from.

    Raises:
        DataError, ModelError, ConfigError: as `read_image_set` and `train_member`; unknown weights, fewer
            than one network, a share outside 0 to below 1, patience without validation images, entropy
            coding of float weights; to resume, networks in `out` that are none of these.
        RunError: `out` cannot be written to.
    """
    settings, network = settings or TrainingSettings(), network or FCNSettings()
    quantizer_named(weights)
    if networks < 1:
        raise ConfigError(f"networks must be at least 1, given {networks}")
    hold_back(2, validation, seed)
    if settings.patience is not None and validation == 0.0:
        raise ConfigError("patience: needs images to validate on; give a share of them as validation")
    if entropy_coded and weights == "float":
        raise ConfigError("entropy coding: is for quantized weights, these are float")
    images = read_image_set(folder, limit, seed)
    jobs: list[MemberJob] = []
    for index in range(networks):
        place = out if networks == 1 else out / f"member-{index}"
        jobs += _jobs(
            place, network, settings, weights, named_seed(seed, "member", index), networks, validation
        )
    jobs = [dataclasses.replace(job, entropy_coded=entropy_coded) for job in jobs]
    _make_room(out, jobs, resume)
    total = sum(job.training.steps for job in jobs)
    logs: list[TrainingLog] = []
    before = 0
    for job in jobs:
        logs.append(train_member(job, images, _shifted(on_step, before, total)))
        before += job.training.steps
    return logs


def _make_room(out: Path, jobs: Sequence[MemberJob], resume: bool) -> None:
    """Remove the networks of earlier trainings, which would be predicted with beside the new ones.

    Raises:
        ModelError: to resume, there are networks of another training.
        RunError: a network cannot be removed.
    """
    members = [*(path for path in sorted(out.glob("member-*")) if path.is_dir()), out]
    found = [place for member in members for place in (member / "float", member) if holds_member(place)]
    if not resume:
        for place in found:
            remove_member(place)
        return
    others = [place for place in found if place not in {job.out for job in jobs}]
    if others:
        raise ModelError(
            f"{others[0]}: holds a network that is none of this training's; choose another folder, "
            "or train anew without resuming"
        )


def _jobs(
    out: Path,
    network: NetworkSettings,
    settings: TrainingSettings,
    weights: str,
    seed: int,
    networks: int,
    validation: float,
) -> list[MemberJob]:
    """The trainings of one network: float, and from there quantized where that is asked."""
    again = networks > 1
    if weights == "float":
        return [MemberJob(network, settings, out, seed, bootstrap=again, validation=validation)]
    twin = MemberJob(network, settings, out / "float", seed, bootstrap=again, validation=validation)
    quantized = MemberJob(
        network, settings.continued(), out, seed, weights, again, twin.out, validation=validation
    )
    return [twin, quantized]


def _shifted(on_step: OnStep | None, before: int, total: int) -> OnStep | None:
    """A callback for one training of several, which counts the steps of all."""
    if on_step is None:
        return None
    return lambda done, _, loss: on_step(before + done, total, loss)
