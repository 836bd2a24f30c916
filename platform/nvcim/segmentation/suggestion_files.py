"""Suggestive annotation for a person with a folder of images: which of them to annotate next.

Where some images are annotated, an ensemble is trained on them (or a trained one is handed in) and asked for
its uncertainty of the rest. Where nothing is annotated there is nothing to train on and no uncertainty: the
images that represent the whole folder best are suggested instead, by descriptors of untrained networks.
"""

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nvcim.compute import resolve_device
from nvcim.config import Settings
from nvcim.data.images import Pixels
from nvcim.errors import ConfigError, DataError, ModelError
from nvcim.quantization import quantizer_named
from nvcim.randomness import named_seed
from nvcim.segmentation.architectures import NetworkSettings, make_network
from nvcim.segmentation.ensemble import is_complete, load_members, train_member
from nvcim.segmentation.fcn import FCNSettings
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.segmentation.pool_scoring import ScoringSettings, score_pool, uncertainty_map
from nvcim.segmentation.prediction_files import member_folders
from nvcim.segmentation.suggestion_pool import OnProgress, Pool
from nvcim.segmentation.suggestive import Rule, Suggestion, SuggestionSettings, cosine_similarity, suggest
from nvcim.segmentation.suggestive_members import member_jobs, start_jobs
from nvcim.segmentation.training import TrainingSettings
from nvcim.storage import atomic_write_text

_NETWORK = re.compile(r"(member|start)-")


class FolderSettings(Settings):
    """How a folder's next images are found."""

    k: int = Field(default=8, ge=1, description="images to suggest")
    candidates: int | None = Field(
        default=None,
        ge=1,
        description="K most uncertain images that k are chosen from; None: 2 k, at least 16",
    )
    rule: Rule = "suggestive"
    outliers: float = Field(
        default=0.05,
        ge=0.0,
        le=0.5,
        description="share of the images, those least like any others, that are not suggested while nothing is "
        "annotated",
    )
    weights: str = Field(default="float", description="of the networks: float, inq-7 and so on")
    networks: int = Field(default=5, ge=2, le=100)
    network: NetworkSettings = FCNSettings()
    training: TrainingSettings = Field(
        default=TrainingSettings(),
        description="of the float networks; those with the weights asked for, float too, go on from them for "
        "half as many steps",
    )
    scoring: ScoringSettings = ScoringSettings()


@dataclass(frozen=True)
class FolderSuggestions:
    """What to annotate next, in order, and how it was found.

    how: a sentence that names the rule. nearest: for each suggestion the annotated image most similar to it
    and the cosine, None where none is annotated. images: pixels of the suggested images by name; heat: their
    uncertainty maps [H, W], empty where there is no uncertainty.
    """

    how: str
    annotated: int
    rest: int
    suggestions: tuple[Suggestion, ...]
    nearest: tuple[tuple[str, float] | None, ...]
    images: Mapping[str, Pixels] = field(repr=False)
    heat: Mapping[str, NDArray[np.float32]] = field(repr=False)


def suggest_in_folder(
    pool: Pool,
    settings: FolderSettings | None = None,
    seed: int = 0,
    models: Path | None = None,
    save_models: Path | None = None,
    on_progress: OnProgress | None = None,
) -> FolderSuggestions:
    """Find the `settings.k` images of `pool.rest` to annotate next.

    `models` is the folder of a trained ensemble to ask instead of training one; `save_models` keeps the one
    that is trained (and a killed training goes on there).

    Raises:
        DataError: every image is annotated, fewer than k are not, or images that cannot be trained on.
        ModelError: no ensemble in `models`, or another one in `save_models`.
        ConfigError: settings that do not fit each other, an unknown quantizer or device, or `save_models` where
            no network is trained.
    """
    settings = settings or FolderSettings()
    trains = settings.rule != "random" and models is None and bool(pool.annotated)
    if save_models is not None and not trains:
        raise ConfigError(f"save_models {save_models}: no network is trained that could be kept")
    choice = _choice(settings)
    quantizer_named(settings.weights)
    if not pool.rest:
        raise DataError(f"all {len(pool.annotated)} images are annotated already; none is left to suggest")
    if settings.k > len(pool.rest):
        raise DataError(
            f"k = {settings.k} images cannot be suggested; {len(pool.rest)} are not annotated yet"
        )
    report = on_progress or (lambda what, done, total: None)
    if settings.rule == "random":
        return _result(pool, suggest(pool.rest.names, None, None, choice, seed), _how_random(settings))
    if models is None and not pool.annotated:
        if settings.rule == "uncertainty":
            raise DataError(
                "rule 'uncertainty': nothing is annotated, so there is no uncertainty yet; train networks first"
            )
        return _suggest_cold(pool, choice, settings, seed, report)
    if models is not None:
        networks = load_ensemble(models)
        origin = f"the {len(networks)} networks of {models}"
    else:
        networks = _train(pool, settings, seed, save_models, report)
        origin = (
            f"{settings.networks} networks ({settings.weights} weights) trained on "
            f"{len(pool.annotated)} annotated image{'s' if len(pool.annotated) > 1 else ''}"
        )
    device = resolve_device(settings.training.device)
    return _suggest_warm(pool, [network.to(device) for network in networks], choice, settings, origin, report)


def load_ensemble(folder: Path) -> list[SegmentationNetwork]:
    """Return the networks in `folder/member-*`, in order of their numbers.

    Raises:
        ModelError: no such folder, fewer than two networks, one that cannot be loaded, or training that was
            cut short: a member not trained to its end, or fewer members than starts beside them.
    """
    found = [place for place in member_folders(folder) if place != folder]
    unfinished = next((place for place in found if not is_complete(place)), None)
    starts = len(list(folder.glob("start-*")))
    if unfinished is None and len(found) < starts:
        unfinished = folder / f"member-{len(found)}"
    if unfinished is not None:
        raise ModelError(f"{unfinished}: is not trained to its end; finish the ensemble's training first")
    if len(found) < 2:
        raise ModelError(
            f"{folder}: an ensemble needs at least 2 trained networks in folders member-0, member-1, ...; "
            f"found {len(found)}"
        )
    return load_members(found)


def write_suggestions(found: FolderSuggestions, path: Path) -> None:
    """Write the suggestions as a table (.csv) or with how they were found (.json), one entry per image.

    Raises:
        ConfigError: another ending.
        RunError: the file cannot be written.
    """
    rows = suggestion_rows(found)
    if path.suffix.lower() == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(path, buffer.getvalue())
    elif path.suffix.lower() == ".json":
        content = {"how": found.how, "annotated": found.annotated, "not_annotated": found.rest}
        atomic_write_text(path, json.dumps({**content, "suggestions": rows}, indent=2) + "\n")
    else:
        raise ConfigError(f"{path}: suggestions are written as .csv or .json")


def suggestion_rows(found: FolderSuggestions) -> list[dict[str, Any]]:
    """One row per suggested image; None where the rule that was used knows no such value."""
    return [
        {
            "rank": rank,
            "image": suggestion.name,
            "uncertainty": suggestion.uncertainty,
            "gain": suggestion.gain,
            "represents": suggestion.represents,
            "nearest_annotated": nearest[0] if nearest else None,
            "similarity": nearest[1] if nearest else None,
        }
        for rank, (suggestion, nearest) in enumerate(
            zip(found.suggestions, found.nearest, strict=True), start=1
        )
    ]


def _choice(settings: FolderSettings) -> SuggestionSettings:
    candidates = settings.candidates or max(16, 2 * settings.k)
    if settings.rule == "suggestive" and settings.k > candidates:
        raise ConfigError(f"k = {settings.k} images cannot be chosen among candidates = {candidates}")
    return SuggestionSettings(
        rule=settings.rule, k=settings.k, candidates=candidates, outliers=settings.outliers
    )


def _train(
    pool: Pool, settings: FolderSettings, seed: int, save_models: Path | None, report: OnProgress
) -> list[SegmentationNetwork]:
    """Train the ensemble, float ones first which its members go on from, and return it."""
    seeds = [
        named_seed(seed, "segmentation", "suggestive network", index) for index in range(settings.networks)
    ]
    with tempfile.TemporaryDirectory(prefix="nvcim-suggest-") as temporary:
        folder = save_models or Path(temporary)
        starts = start_jobs(settings.network, settings.training, folder, seeds)
        members = member_jobs(starts, settings.weights)
        jobs = [*starts, *members]
        _refuse_others(folder, {job.out for job in jobs})
        for number, job in enumerate(jobs, start=1):
            what = f"training network {number} of {len(jobs)}"
            train_member(job, pool.annotated, _step_reporter(report, what))
        return load_members([job.out for job in members])


def _refuse_others(folder: Path, own: Set[Path]) -> None:
    """Raise ModelError where the folder holds networks of a larger ensemble: they would be asked along later."""
    others = sorted(path.name for path in folder.glob("*-*") if _NETWORK.match(path.name) and path not in own)
    if others:
        raise ModelError(
            f"{folder}: holds {others[0]}, which is none of the {len(own) // 2} networks; choose another folder"
        )


def _step_reporter(report: OnProgress, what: str) -> Callable[[int, int, float], None]:
    """Tell of training steps as of progress with `what`."""

    def on_step(done: int, total: int, loss: float) -> None:
        report(what, done, total)

    return on_step


def _suggest_warm(
    pool: Pool,
    networks: Sequence[SegmentationNetwork],
    choice: SuggestionSettings,
    settings: FolderSettings,
    origin: str,
    report: OnProgress,
) -> FolderSuggestions:
    """Suggest by what an ensemble says."""
    total = len(pool.rest) + len(pool.annotated)
    scores = score_pool(
        networks, pool.rest, settings.scoring, lambda done, _: report("images looked at", done, total)
    )
    suggestions = suggest(pool.rest.names, scores.uncertainty, scores.descriptors, choice)
    known = None
    if pool.annotated:
        before = len(pool.rest)
        known = score_pool(
            networks,
            pool.annotated,
            settings.scoring,
            lambda done, _: report("images looked at", before + done, total),
        ).descriptors
    if choice.rule == "uncertainty":
        how = f"Uncertainty: the {choice.k} most uncertain images"
    else:
        among = min(choice.candidates, len(pool.rest))
        how = (
            f"Suggestive annotation: of the {among} most uncertain images, the {choice.k} that represent "
            f"the {len(pool.rest)} not annotated best"
        )
    how += f"; uncertainty is the disagreement of {origin}."
    return _result(
        pool,
        suggestions,
        how,
        scores.descriptors,
        known,
        lambda pixels: uncertainty_map(networks, pixels, settings.scoring),
    )


def _suggest_cold(
    pool: Pool, choice: SuggestionSettings, settings: FolderSettings, seed: int, report: OnProgress
) -> FolderSuggestions:
    """Suggest where nothing is annotated: representatives of all images by what untrained networks see.

    Random filters tell kinds of images apart already. Measured once on random halves of a mixed set of 495
    images of nuclei (dsb2018) of 10 kinds (size, colour, background): 8 images chosen so met 5.2 kinds, by
    statistics of colour and texture 4.2, by networks trained on generated tissue 4.1, at random 3.8. Leaving out
    the 5 % least like any others changed nothing there (40 halves, 5.03 kinds without and with it); of 40 halves
    of GlaS's 85 images it left 1.3 of the 8 that stand for no more than two images, instead of 2.0.
    """
    device = resolve_device(settings.training.device)
    seeds = [named_seed(seed, "segmentation", "untrained network", i) for i in range(settings.networks)]
    networks = [make_network(settings.network, own).eval().to(device) for own in seeds]
    descriptors = score_pool(
        networks, pool.rest, settings.scoring, lambda done, total: report("images looked at", done, total)
    ).descriptors
    suggestions = suggest(pool.rest.names, None, descriptors, choice)
    aside = min(int(choice.outliers * len(pool.rest)), len(pool.rest) - choice.k)
    how = (
        "Nothing is annotated yet, so no network is trained and there is no uncertainty: the "
        f"{choice.k} images that represent all {len(pool.rest)} best, by the descriptors of "
        f"{settings.networks} untrained networks"
        + (f"; the {aside} least like any others are not suggested." if aside else ".")
    )
    return _result(pool, suggestions, how, descriptors)


def _how_random(settings: FolderSettings) -> str:
    return f"Random: {settings.k} images drawn by the seed; no network was asked."


def _result(
    pool: Pool,
    suggestions: Sequence[Suggestion],
    how: str,
    descriptors: Tensor | None = None,
    known: Tensor | None = None,
    heat_of: Callable[[Pixels], NDArray[np.float32]] | None = None,
) -> FolderSuggestions:
    nearest: list[tuple[str, float] | None] = [None] * len(suggestions)
    if descriptors is not None and known is not None:
        places = {name: place for place, name in enumerate(pool.rest.names)}
        rows = torch.stack([descriptors[places[suggestion.name]] for suggestion in suggestions])
        values, indices = cosine_similarity(rows, known).max(dim=1)
        nearest = [
            (pool.annotated[index].name, value)
            for value, index in zip(values.tolist(), indices.tolist(), strict=True)
        ]
    images = {suggestion.name: pool.rest.named(suggestion.name).pixels for suggestion in suggestions}
    heat = {} if heat_of is None else {name: heat_of(pixels) for name, pixels in images.items()}
    counts = (len(pool.annotated), len(pool.rest))
    return FolderSuggestions(how, *counts, tuple(suggestions), tuple(nearest), images, heat)
