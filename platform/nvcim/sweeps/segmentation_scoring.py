"""What Ray workers measure of trained networks: scores on held-back images, sizes on disk, scores on crossbars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nvcim.errors import RunError
from nvcim.quantization import packed_sizes
from nvcim.quantization.base import weighted_layers
from nvcim.segmentation.crossbar_study import crossbar_rows, level_rows
from nvcim.segmentation.crossbar_weights import with_best_levels
from nvcim.segmentation.ensemble import load_members
from nvcim.segmentation.inference import PredictionSettings
from nvcim.segmentation.instances import predict_growing
from nvcim.segmentation.mask_scores import score_masks
from nvcim.segmentation.model_files import load_fcn
from nvcim.segmentation.network import SegmentationNetwork, baked
from nvcim.storage import table_schema
from nvcim.sweeps.segmentation_settings import FLOAT, CrossbarPart, Point, levels_name
from nvcim.sweeps.segmentation_work import Outcome, Ref, Row, fetch, outcome_of

WEIGHTS = "model.safetensors"
"""The file of a saved network that holds its weights."""


@dataclass(frozen=True)
class ScoringJob:
    """A point to score: its networks' folders, and how many images were annotated for it."""

    point: Point
    annotated: int
    annotated_share: float
    folders: Sequence[Path]
    prediction: PredictionSettings


@dataclass(frozen=True)
class Sizes:
    """Bytes of a network on disk: its convolutions' weights and the whole file, as stored and in float32."""

    weight_bytes: int
    float32_bytes: int
    file_bytes: int


def sizes_on_disk(folder: Path) -> Sizes:
    """Measure a saved network's file; weights count with their scales and exponents, without the file's header.

    Raises:
        ModelError: no saved network.
    """
    model, file = load_fcn(folder), folder / WEIGHTS
    plain = {
        name: 4 * layer.weight.numel()
        for name, layer in weighted_layers(model)
        if isinstance(layer.weight, Tensor)
    }
    stored = dict(plain)
    if model.quantizer is not None:
        stored |= {size.layer: size.disk_bytes for size in packed_sizes(file) if size.layer in plain}
    return Sizes(sum(stored.values()), sum(plain.values()), file.stat().st_size)


def score_work(job: ScoringJob, held_back: Sequence[Ref], threads: int, *trained: Outcome) -> Outcome:
    """Score a point's networks; the value is rows of `segmentation_scores` and `segmentation_images`.

    trained: outcomes of the point's trainings: its networks' in order, after those of the networks they go on from.
    """
    return outcome_of(lambda: _scores(job, held_back, trained), threads)


def _scores(job: ScoringJob, held_back: Sequence[Ref], trained: Sequence[Outcome]) -> dict[str, list[Row]]:
    _all_trained(trained)
    images, point = fetch(held_back), job.point
    members = [baked(model) for model in load_members(list(job.folders))]
    sizes = [sizes_on_disk(folder) for folder in job.folders]
    tables: dict[str, list[Row]] = {"segmentation_scores": [], "segmentation_images": []}
    # A network that several rows average is run once.
    grown = [predict_growing(members, point.networks, image.pixels, job.prediction) for image in images]
    for networks in point.networks:
        scores = score_masks(
            zip([found[networks] for found in grown], [image.instances for image in images], strict=True),
            [image.name for image in images],
        )
        pooled, means = scores.pooled.values(), scores.means()
        seconds = [log.value.seconds for place, log in enumerate(trained) if place % len(members) < networks]
        for strategy in point.strategies:
            arm = {
                "part": point.part,
                "repeat": point.repeat,
                "rule": strategy.rule,
                "suggestive": strategy.suggestive,
                "quantizer": point.quantizer,
                "networks": networks,
                "round": point.round,
                "basis": "measured",
            }
            tables["segmentation_scores"].append(
                {
                    **arm,
                    "annotated": job.annotated,
                    "annotated_share": job.annotated_share,
                    "images": len(images),
                    **{name: pooled[name] for name in _POOLED},
                    **{f"mean_{name}": means[name] for name in _OBJECT_SCORES},
                    "one_side_empty": scores.one_side_empty,
                    "weight_bytes": sum(size.weight_bytes for size in sizes[:networks]),
                    "float32_bytes": sum(size.float32_bytes for size in sizes[:networks]),
                    "file_bytes": sum(size.file_bytes for size in sizes[:networks]),
                    "trained_seconds": sum(seconds),
                }
            )
            tables["segmentation_images"] += [
                {
                    **arm,
                    "image": name,
                    "objects_segmented": image.objects.objects_segmented,
                    "objects_truth": image.objects.objects_truth,
                    **{score: image.values()[score] for score in _OBJECT_SCORES},
                }
                for name, image in zip(scores.names, scores.images, strict=True)
            ]
    return tables


def crossbar_work(
    folders: Mapping[str, Path],
    held_back: Sequence[Ref],
    part: CrossbarPart,
    prediction: PredictionSettings,
    repeat: int,
    seed: int,
    threads: int,
    *trained: Outcome,
) -> Outcome:
    """Put networks (by the name of their weights) on crossbars.

    The value is rows of `segmentation_crossbars` and `segmentation_levels`. The float network is there a second time,
    untrained on the levels that suit the cells best, at the base config's bits.
    """

    def work() -> dict[str, list[Row]]:
        _all_trained(trained)
        images, study = fetch(held_back), part.study
        models = {name: load_fcn(folder) for name, folder in folders.items()}
        rows = crossbar_rows(models, images, study, seed, prediction=prediction)
        if FLOAT in models and part.best_levels is not None:
            placed = with_best_levels(models[FLOAT], study.crossbar, part.best_levels)
            assert isinstance(placed, SegmentationNetwork)
            name = levels_name(part.best_levels)
            models[name] = placed
            # Made for the base config's bits: along other bits there is nothing to see.
            along_sigma = study.model_copy(update={"weight_bits": ()})
            rows += crossbar_rows({name: placed}, images, along_sigma, seed, prediction=prediction)
        bits = sorted({study.crossbar.weight_bits, *study.weight_bits})
        return {
            "segmentation_crossbars": _rows_of("segmentation_crossbars", repeat, rows),
            "segmentation_levels": _rows_of("segmentation_levels", repeat, level_rows(models, study, bits)),
        }

    return outcome_of(work, threads)


def _rows_of(table: str, repeat: int, rows: Sequence[Row]) -> list[Row]:
    """Rows with the columns of a table and their repetition."""
    columns = table_schema(table).names
    return [
        {"repeat": repeat, **{name: value for name, value in row.items() if name in columns}} for row in rows
    ]


def _all_trained(trained: Sequence[Outcome]) -> None:
    """Refuse to go on where a training failed.

    Raises:
        RunError: with the first reason.
    """
    for outcome in trained:
        if outcome.error is not None:
            raise RunError(f"its training failed: {outcome.error}")


_OBJECT_SCORES = ("object_f1", "object_dice", "object_hausdorff")
_POOLED = (*_OBJECT_SCORES, "pixel_dice", "pixel_iou", "aji", "pq")
