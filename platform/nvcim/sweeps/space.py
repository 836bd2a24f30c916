"""The search space: a grid over device, bits of a weight, and programming variation."""

import itertools
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from nvcim.config import LocalPath, Settings, parse_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.devices import get_device, load_catalogue
from nvcim.prompts.language_model import EMBEDDED
from nvcim.prompts.personaliser import PromptSettings
from nvcim.prompts.personaliser_files import ModelName
from nvcim.storage.names import exact

Subject = Literal["matmul", "segmentation", "prompts"]


@dataclass(frozen=True)
class TrialPoint:
    """One point of the grid; `repeat` numbers independent programmings of the same setting."""

    device: str
    weight_bits: int
    sigma: float
    repeat: int

    @property
    def trial_id(self) -> str:
        """The trial's name, the same in every run of the same point, and no other point's.

        A device's name may hold anything: a file of the trial takes `nvcim.storage.names.file_name` of it.
        """
        return f"{self.device}-b{self.weight_bits}-s{exact(self.sigma)}-r{self.repeat}"


class SweepSettings(Settings):
    """A grid and what to score at each of its points."""

    subjects: tuple[Subject, ...] = Field(
        default=("matmul", "segmentation"), min_length=1, description="what each trial scores"
    )
    devices: tuple[str, ...] = Field(default=("FeFET2",), min_length=1)
    weight_bits: tuple[int, ...] = Field(default=(3, 4, 6, 8), min_length=1)
    sigma: tuple[float, ...] = Field(
        default=(0.0, 0.05, 0.1), min_length=1, description="global programming variation, relative"
    )
    repeats: int = Field(default=1, ge=1, le=100, description="independent programmings of each setting")
    crossbar: CrossbarConfig = Field(
        default=CrossbarConfig(), description="the rest of the array; device, weight_bits and sigma are swept"
    )
    from_run: LocalPath | None = Field(
        default=None,
        description="run folder whose models are scored; None trains them first. With the seed, the data and the "
        "counts of images that its FCN was trained with, the images scored on are not those trained on",
    )
    data: LocalPath | None = Field(
        default=None, description="labelled image set for the FCN; None generates tissue-like images"
    )
    images: int = Field(default=6, ge=1, description="images that each trial scores the FCN on")
    training_images: int = Field(
        default=16, ge=1, description="images the FCN is trained on, without from_run"
    )
    training_steps: int = Field(default=240, ge=1, description="optimiser steps of that training")
    users: int = Field(default=4, ge=1, description="users whose prompts are programmed in each trial")
    user_data: LocalPath | None = Field(
        default=None, description="folder of LaMP folders; None generates users with shifting domains"
    )
    model: ModelName = Field(default=EMBEDDED, description="'embedded', or a causal LM's path or hub name")
    prompts: PromptSettings = PromptSettings()
    cpus_per_trial: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)

    def points(self) -> list[TrialPoint]:
        """Every point of the grid, in a fixed order; a value given twice counts once."""
        grid = itertools.product(
            dict.fromkeys(self.devices),
            dict.fromkeys(self.weight_bits),
            dict.fromkeys(self.sigma),
            range(self.repeats),
        )
        return [TrialPoint(*values) for values in grid]

    def crossbar_at(self, point: TrialPoint) -> CrossbarConfig:
        """The array of a trial.

        Raises:
            ConfigError: a swept value that no array can have.
        """
        return crossbar_at(self.crossbar, point)

    def check(self) -> None:
        """Refuse a grid with a point that cannot run, before any trial starts.

        Raises:
            DeviceError: a device that the catalogue does not hold.
            ConfigError: bits or variation out of range.
        """
        catalogue = load_catalogue(self.crossbar.catalogue)
        for device in self.devices:
            get_device(device, catalogue)
        for point in self.points():
            self.crossbar_at(point)


def crossbar_at(base: CrossbarConfig, point: TrialPoint) -> CrossbarConfig:
    """`base` with the point's device, bits and variation (raises ConfigError where they are out of range)."""
    swept = {"device": point.device, "weight_bits": point.weight_bits, "sigma": point.sigma}
    return parse_settings({**base.model_dump(), **swept}, CrossbarConfig, f"sweep point {point.trial_id}")
