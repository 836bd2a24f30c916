"""The networks that suggest images: float ones first, which each kind of weights then goes on from.

Float weights go on as long as quantized ones, so that what quantized networks suggest (QSA) differs from what
float ones do (SA) by their weights alone and not by more steps of training.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nvcim.segmentation.architectures import NetworkSettings
from nvcim.segmentation.ensemble import MemberJob
from nvcim.segmentation.training import TrainingSettings


def start_jobs(
    network: NetworkSettings,
    training: TrainingSettings,
    folder: Path,
    seeds: Sequence[int],
    before: Path | None = None,
) -> list[MemberJob]:
    """Return the float trainings, one per seed, to `folder/start-0`, `start-1`, ...

    They begin with random weights, or with the starts in the folder `before`.
    """
    return [
        MemberJob(network, training, folder / _start(index), seed, start=before and before / _start(index))
        for index, seed in enumerate(seeds)
    ]


def member_jobs(starts: Sequence[MemberJob], quantizer: str) -> list[MemberJob]:
    """Return the trainings that go on from `starts` with a quantizer's weights, to `member-0`, ... beside them.

    Each sees its start's resample and has `TrainingSettings.continued` steps, whatever the weights.
    """
    return [
        dataclasses.replace(
            job,
            training=job.training.continued(),
            out=job.out.with_name(f"member-{index}"),
            quantizer=quantizer,
            start=job.out,
        )
        for index, job in enumerate(starts)
    ]


def _start(index: int) -> str:
    return f"start-{index}"
