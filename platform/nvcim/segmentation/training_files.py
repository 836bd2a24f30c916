"""Train one network or several on a folder of labelled images."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from nvcim.data.images import read_image_set
from nvcim.errors import ConfigError
from nvcim.quantization import quantizer_named
from nvcim.randomness import named_seed
from nvcim.segmentation.architectures import NetworkSettings
from nvcim.segmentation.ensemble import MemberJob, forget_member, hold_back, train_member
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
) -> list[TrainingLog]:
    """Train on a labelled image set; one log per training in the order they ran. `limit` images by seed.

    One network is trained on all images and saved to `out`; several each on their own resample, to
    `out/member-0`, `member-1`, ... Quantized weights start from a float network, which is trained first, gets
    twice their steps, and stays in the folder `float` beside them. `validation` is the share of images held
    back to decide when a training is best.

    What `out` holds of an earlier training is replaced, or with `resume` gone on from.

    Raises:
        DataError, ModelError, ConfigError: as `read_image_set` and `train_member`; unknown weights, fewer
            than one network, a share outside 0 to below 1.
    """
    settings, network = settings or TrainingSettings(), network or FCNSettings()
    quantizer_named(weights)
    if networks < 1:
        raise ConfigError(f"networks must be at least 1, given {networks}")
    hold_back(2, validation, seed)
    images = read_image_set(folder, limit, seed)
    jobs: list[MemberJob] = []
    for index in range(networks):
        place = out if networks == 1 else out / f"member-{index}"
        jobs += _jobs(
            place, network, settings, weights, named_seed(seed, "member", index), networks, validation
        )
    if not resume:
        for job in jobs:
            forget_member(job.out)
    total = sum(job.training.steps for job in jobs)
    logs: list[TrainingLog] = []
    before = 0
    for job in jobs:
        logs.append(train_member(job, images, _shifted(on_step, before, total)))
        before += job.training.steps
    return logs


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
