"""Annotation in rounds: train an ensemble on what is annotated, suggest images, reveal their labels, again.

The labels of the whole pool are known and play the annotator (an oracle), which is how a rule is judged. A
round is on disk when it is done, so that a killed run goes on to the result that it would have had.

On disk: `rounds.json` says which settings, seed and images the folder is for; `round-<n>/scores.parquet`
holds what the networks said of every image not annotated, `round-<n>/round.json` the round, written last;
`round-<n>/networks/` the round's networks (`start-*` and `member-*`), removed when nothing needs them any more
unless they are to stay.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import torch
from pydantic import AfterValidator, Field

from nvcim.compute import resolve_device
from nvcim.config import Settings
from nvcim.data.images import LabelledImage
from nvcim.errors import ConfigError, DataError, RunError
from nvcim.quantization import quantizer_named
from nvcim.randomness import named_generator, named_seed
from nvcim.segmentation.architectures import NetworkSettings
from nvcim.segmentation.ensemble import TrainMembers, load_members, train_members
from nvcim.segmentation.fcn import FCNSettings
from nvcim.segmentation.pool_scoring import PoolScores, ScoringSettings, score_pool
from nvcim.segmentation.suggestive import Rule, Suggestion, SuggestionSettings, suggest
from nvcim.segmentation.suggestive_members import member_jobs, start_jobs
from nvcim.segmentation.training import TrainingSettings
from nvcim.storage import atomic_write_text
from nvcim.storage.files import atomic_write_table

_FORMAT = 3  # 2: float networks go on from their starts too; 3: settings without those of _NOT_OF_THE_RESULT
# Where and in what batches it is computed moves results by rounding alone; a run may go on on another machine.
_NOT_OF_THE_RESULT: dict[str, bool | set[str]] = {
    "keep_networks": True,
    "training": {"device"},
    "scoring": {"batch_pixels"},
}


def _count_or_share(value: int | float) -> int | float:
    if (isinstance(value, int) and value < 1) or not 0 < value < float("inf"):
        raise ValueError("a count of images is at least 1, a share of the pool above 0")
    if isinstance(value, float) and value > 1:
        raise ValueError("a share of the pool is at most 1.0; a count is written without a point")
    return value


Amount = Annotated[int | float, AfterValidator(_count_or_share)]
"""Images, as a count (8) or as a share of the whole pool (0.1); 1 is one image, 1.0 is all of them."""


class RoundsSettings(Settings):
    """How a pool is annotated in rounds; the defaults are suggestive annotation's (5 networks: 1803.04907)."""

    rule: Rule = "suggestive"
    quantizer: str = Field(
        default="float",
        description="weights of the suggestive networks: float (SA), or inq-7 and so on (QSA)",
    )
    networks: int = Field(default=5, ge=2, le=100, description="bootstrapped networks that may disagree")
    start: Amount = Field(default=0.1, description="images annotated at first, drawn by seed")
    budget: Amount = Field(default=0.5, description="images annotated in the end")
    k: Amount = Field(default=8, description="images suggested in a round")
    candidates: Amount = Field(default=16, description="K: the most uncertain images that k are chosen from")
    # Which of the two the paper does is not known.
    networks_start: Literal["afresh", "last round"] = Field(
        default="afresh", description="where each round's networks start training"
    )
    keep_networks: bool = Field(default=False, description="keep every round's networks on disk")
    network: NetworkSettings = FCNSettings()
    training: TrainingSettings = Field(
        default=TrainingSettings(),
        description="of the float networks; those with the quantizer's weights, float too, go on from them "
        "for half as many steps",
    )
    scoring: ScoringSettings = ScoringSettings()


@dataclass(frozen=True)
class Round:
    """One round. `annotated`: names its networks learned from; `suggested`: what they asked for, in order."""

    number: int
    annotated: tuple[str, ...]
    suggested: tuple[Suggestion, ...]

    @property
    def annotated_after(self) -> tuple[str, ...]:
        """Names that are annotated once the suggested images are."""
        return (*self.annotated, *(suggestion.name for suggestion in self.suggested))


@dataclass(frozen=True)
class ImageCounts:
    """The amounts of a `RoundsSettings` as counts of images."""

    start: int
    budget: int
    k: int
    candidates: int

    @property
    def annotated(self) -> list[int]:
        """Images annotated at the start and after each round; the last round suggests what the budget leaves."""
        return [*range(self.start, self.budget, self.k), self.budget]


def run_rounds(
    pool: Sequence[LabelledImage],
    settings: RoundsSettings,
    folder: Path,
    seed: int,
    train: TrainMembers = train_members,
    on_round: Callable[[Round], None] | None = None,
) -> list[Round]:
    """Annotate `pool` in rounds until the budget, and return the rounds; `folder` is theirs alone.

    A second call with the same arguments goes on where the first was cut short, and returns at once where it
    was done. `on_round` hears of new rounds only, of each at most once: of none that was on disk when the call
    began, and never of one that was written just before a kill. The rounds depend on the seed and on the images, not on
    their order or on how `train` runs the members. Every rule starts from the same images. The random rule
    trains nothing.

    Raises:
        ConfigError: amounts that do not fit the pool or each other, or an unknown quantizer.
        DataError: an empty pool, a name twice, or images that cannot be trained on.
        RunError: the folder holds the rounds of something else, a damaged file, or cannot be written.
    """
    _check_names([image.name for image in pool])
    counts = image_counts(settings, len(pool))
    quantizer_named(settings.quantizer)
    images = {image.name: image for image in sorted(pool, key=lambda image: image.name)}
    _claim(folder, list(images.values()), settings, seed)
    rounds = _rounds_on_disk(folder)
    annotated = rounds[-1].annotated_after if rounds else _start_set(list(images), counts.start, seed)
    while len(annotated) < counts.budget:
        number = len(rounds)
        suggested = _suggest(images, annotated, number, counts, settings, folder, seed, train)
        rounds.append(Round(number, annotated, tuple(suggested)))
        _write_round(rounds[-1], folder)
        annotated = rounds[-1].annotated_after
        _remove_networks(folder, settings, len(rounds) - 1)
        if on_round is not None:
            on_round(rounds[-1])
    if not settings.keep_networks:
        _remove_networks(folder, settings.model_copy(update={"networks_start": "afresh"}), len(rounds))
    return rounds


def annotation_sets(rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    """Return the names annotated at the start and after each round: the points of a budget curve."""
    return [rounds[0].annotated, *(entry.annotated_after for entry in rounds)] if rounds else []


def image_counts(settings: RoundsSettings, pool: int) -> ImageCounts:
    """Return the settings' amounts in a pool of so many images: shares rounded, at least one image.

    Raises:
        ConfigError: amounts that do not fit the pool or each other.
    """
    amounts = (settings.start, settings.budget, settings.k, settings.candidates)
    counts = ImageCounts(
        *(amount if isinstance(amount, int) else max(round(amount * pool), 1) for amount in amounts)
    )
    if counts.budget > pool:
        raise ConfigError(f"field 'budget': {counts.budget} images, but the pool holds {pool}")
    if counts.start >= counts.budget:
        raise ConfigError(
            f"field 'start': {counts.start} images leave nothing of the budget of {counts.budget}"
        )
    if settings.rule == "suggestive" and counts.k > counts.candidates:
        raise ConfigError(
            f"field 'k': {counts.k} images cannot be chosen among {counts.candidates} candidates"
        )
    return counts


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise DataError("the pool holds no image")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"image '{twice}' is in the pool twice; every name may be there once")


def _start_set(names: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """The first annotated images: drawn by seed alone, so that every rule and quantizer starts alike."""
    generator = named_generator(seed, "segmentation", "annotated at first")
    drawn = torch.randperm(len(names), generator=generator)[:count].tolist()
    return tuple(names[index] for index in sorted(drawn))


def _suggest(
    images: dict[str, LabelledImage],
    annotated: Sequence[str],
    number: int,
    counts: ImageCounts,
    settings: RoundsSettings,
    folder: Path,
    seed: int,
    train: TrainMembers,
) -> list[Suggestion]:
    """One round's suggestions; the scores they rest on are on disk afterwards."""
    known = set(annotated)
    unknown = [image for name, image in images.items() if name not in known]
    k = min(counts.k, counts.budget - len(annotated))
    choice = SuggestionSettings(rule=settings.rule, k=k, candidates=max(counts.candidates, k))
    draw = named_seed(seed, "segmentation", "round", number)
    names = [image.name for image in unknown]
    if settings.rule == "random":
        return suggest(names, None, None, choice, draw)
    learned = [images[name] for name in sorted(known)]
    folders = _train_round(learned, number, settings, folder, seed, train)
    device = resolve_device(settings.training.device)
    models = [model.to(device) for model in load_members(folders)]
    scores = score_pool(models, unknown, settings.scoring)
    suggested = suggest(names, scores.uncertainty, scores.descriptors, choice, draw)
    _write_scores(scores, suggested, folder / _name(number) / "scores.parquet")
    return suggested


def _train_round(
    images: Sequence[LabelledImage],
    number: int,
    settings: RoundsSettings,
    folder: Path,
    seed: int,
    train: TrainMembers,
) -> list[Path]:
    """Folders of the round's trained networks."""
    goes_on = settings.networks_start == "last round" and number > 0
    starts = start_jobs(
        settings.network,
        settings.training,
        folder / _name(number) / "networks",
        [
            named_seed(seed, "segmentation", "suggestive network", number, index)
            for index in range(settings.networks)
        ],
        folder / _name(number - 1) / "networks" if goes_on else None,
    )
    train(starts, images)
    members = member_jobs(starts, settings.quantizer)
    train(members, images)
    return [job.out for job in members]


def _name(number: int) -> str:
    return f"round-{number:03d}"


def _remove_networks(folder: Path, settings: RoundsSettings, rounds: int) -> None:
    """Remove the networks of rounds that are done, but for those that the next round starts from."""
    if settings.keep_networks:
        return
    last = rounds if settings.networks_start == "last round" else rounds + 1
    for number in range(last):
        shutil.rmtree(folder / _name(number) / "networks", ignore_errors=True)


def _claim(folder: Path, images: Sequence[LabelledImage], settings: RoundsSettings, seed: int) -> None:
    """Write what the folder is for, or see that it is for just this.

    Raises:
        RunError: it is for something else, or cannot be read or written.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.name}\x1f{image.pixels.shape}\x1f".encode())
        digest.update(image.pixels.tobytes())
        digest.update(image.instances.tobytes())
    wanted = {
        "format": _FORMAT,
        "seed": seed,
        "images": len(images),
        "pool": digest.hexdigest(),
        "settings": settings.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT),
    }
    path = folder / "rounds.json"
    if not path.exists():
        atomic_write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = _read_json(path)
    different = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
    if different:
        raise RunError(f"{path}: rounds of another {', '.join(different)}; take another folder")


def _write_round(entry: Round, folder: Path) -> None:
    content = {
        "format": _FORMAT,
        "number": entry.number,
        "annotated": list(entry.annotated),
        "suggested": [dataclasses.asdict(suggestion) for suggestion in entry.suggested],
    }
    atomic_write_text(folder / _name(entry.number) / "round.json", json.dumps(content, indent=2) + "\n")


def _rounds_on_disk(folder: Path) -> list[Round]:
    """The rounds that are done, from the first on.

    Raises:
        RunError: a round's file is damaged.
    """
    rounds: list[Round] = []
    while (path := folder / _name(len(rounds)) / "round.json").exists():
        content = _read_json(path)
        try:
            suggested = tuple(Suggestion(**entry) for entry in content["suggested"])
            rounds.append(Round(content["number"], tuple(content["annotated"]), suggested))
        except (KeyError, TypeError) as error:
            raise RunError(f"{path}: not the record of a round ({error!r}); remove its folder") from error
    return rounds


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON ({error})") from error


def _write_scores(scores: PoolScores, suggested: Sequence[Suggestion], path: Path) -> None:
    """One row per image that was not annotated; `chosen` is its place among the suggestions, from 1."""
    places = {suggestion.name: place for place, suggestion in enumerate(suggested, start=1)}
    columns = {
        "name": pa.array(scores.names, pa.string()),
        "uncertainty": pa.array(scores.uncertainty.tolist(), pa.float64()),
        "chosen": pa.array([places.get(name) for name in scores.names], pa.int64()),
        "descriptor": pa.array(scores.descriptors.tolist(), pa.list_(pa.float32())),
    }
    atomic_write_table(path, pa.table(columns))
