"""What a trial scores at one point of the grid. Each function is a pure function of its arguments.

The models are loaded once per worker and kept: a sweep's trials share the same files.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from nvcim.analog import analogize
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.data.images import LabelledImage
from nvcim.fleet.node import answer
from nvcim.prompts.scoring import score_answer
from nvcim.randomness import named_generator, named_seed
from nvcim.segmentation import SegmentationNetwork, load_fcn, predict, score_set
from nvcim.sweeps.prompt_bank import PromptBank
from nvcim.sweeps.runner import Evaluate
from nvcim.sweeps.space import TrialPoint, crossbar_at

_MATMUL_SHAPE = (256, 64)  # more rows than a tile, so that the ADCs' partial sums count
_MATMUL_BATCH = 64


def combined(point: TrialPoint, parts: Sequence[Evaluate]) -> dict[str, float]:
    """All scores of several evaluations at one point."""
    scores: dict[str, float] = {}
    for part in parts:
        scores.update(part(point))
    return scores


def matmul_error(point: TrialPoint, base: CrossbarConfig, seed: int) -> dict[str, float]:
    """Error of a crossbar's matmul with a normal weight [256, 64] and input [64, 256].

    Returns:
        `matmul_error`: root mean square error, relative to the root mean square of the exact product.

    Raises:
        ConfigError, DeviceError: no such array.
    """
    data = named_generator(seed, "sweep", "matmul", "data")  # the same weight at every point
    weight = torch.randn(_MATMUL_SHAPE, generator=data)
    x = torch.randn((_MATMUL_BATCH, _MATMUL_SHAPE[0]), generator=data)
    crossbar = Crossbar.program(weight, crossbar_at(base, point), _programming(seed, "matmul", point))
    exact = x @ weight
    error = (crossbar.matmul(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    return {"matmul_error": float(error)}


def segmentation_score(
    point: TrialPoint, fcn: Path, images: Sequence[LabelledImage], base: CrossbarConfig, seed: int
) -> dict[str, float]:
    """Scores of a trained FCN whose layers are written to crossbars at the point's bits and variation.

    Returns:
        `object_f1` and `object_dice` (0..1), pooled over the images by the GlaS contest's definitions.

    Raises:
        ModelError: `fcn` holds no model.
        ConfigError, DeviceError: no such array.
    """
    generator = _programming(seed, "segmentation", point)
    analog = analogize(_fcn(fcn), crossbar_at(base, point), generator)
    assert isinstance(analog, SegmentationNetwork)
    pairs = ((predict(analog, image.pixels), image.instances) for image in images)
    scores = score_set(pairs, [image.name for image in images])
    return {"object_f1": scores.pooled.f1, "object_dice": scores.pooled.dice}


def prompt_score(point: TrialPoint, bank: Path, base: CrossbarConfig, seed: int) -> dict[str, float]:
    """Scores of tuned prompts that are written anew to crossbars at the point's bits and variation.

    Returns:
        `prompt_score`: mean task score (0..1) of the users' queries, each answered with the prompt that the
        search on its user's crossbar finds; `hit_rate`: share of queries whose prompt was tuned for their
        domain, only where domains are known.

    Raises:
        RunError, ModelError: `bank` holds no prompts.
        ConfigError, DeviceError: no such array.
    """
    stored = _bank(bank)
    programmed = named_seed(seed, "sweep", "prompts", "programming", point.repeat)
    nodes = stored.programmed(crossbar_at(base, point), programmed)
    queries = stored.queries
    answers = answer([nodes[q.user_id] for q in queries], [q.input for q in queries], stored.personaliser)
    pairs = list(zip(queries, answers, strict=True))
    scores = [score_answer(query.task, found.text, query.output) for query, found in pairs]
    hits = [found.label == query.domain for query, found in pairs if query.domain is not None]
    result = {"prompt_score": sum(scores) / len(scores)}
    return {**result, "hit_rate": sum(hits) / len(hits)} if hits else result


def _programming(seed: int, subject: str, point: TrialPoint) -> torch.Generator:
    """The generator of a trial's programming draw.

    It depends on the repeat alone: points of one repeat share their random numbers, so that a difference
    between them is due to the setting.
    """
    return named_generator(seed, "sweep", subject, "programming", point.repeat)


@functools.cache
def _bank(folder: Path) -> PromptBank:
    """The tuned prompts of a folder, with their language model."""
    return PromptBank.load(folder)


@functools.cache
def _fcn(folder: Path) -> SegmentationNetwork:
    """The trained model of a folder; `analogize` copies it, so one instance serves all trials."""
    return load_fcn(folder)
