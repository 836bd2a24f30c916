"""Which images to annotate next: suggestive annotation's uncertainty, similarity and greedy choice.

After Yang et al., 2017 (1706.04737). Several networks look at every image that is not annotated. Of the K
images they disagree on most (`candidates`), k are chosen that together stand for all of the rest best:
F(S_a, S_u) = sum over x in S_u of max over i in S_a of sim(i, x) is raised greedily, with cosine similarity
of the networks' mean image descriptors. F is monotone and submodular, so that the greedy choice reaches at
least 1 - 1/e of the best one (Nemhauser et al., 1978).

Plain functions on tensors; nothing here knows of files or of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from nvcim.config import Settings
from nvcim.errors import DataError
from nvcim.randomness import named_generator

Rule = Literal["suggestive", "uncertainty", "random"]
UncertaintyOf = Literal["object", "foreground"]

# An image is like others where it is like this many: the nearest alone may be another take of the same place.
_OTHERS = 3

# Rows of a similarity matrix that are worked on at once; of 10,000 images the matrix takes 0.8 GB already.
_ROWS = 256

# Gains that differ by less are a tie: matrix products round equal rows differently in different places.
_TIE_DECIMALS = 9


class SuggestionSettings(Settings):
    """How images are chosen; the defaults are suggestive annotation's K = 16 and k = 8."""

    rule: Rule = Field(
        default="suggestive",
        description="suggestive: the most representative of the most uncertain; uncertainty: the most "
        "uncertain; random: by seed",
    )
    k: int = Field(default=8, ge=1, description="images to suggest")
    candidates: int = Field(
        default=16, ge=1, description="K: the suggestive rule chooses among that many most uncertain images"
    )

    outliers: float = Field(
        default=0.0,
        ge=0.0,
        le=0.5,
        description="share of the images, those least like any others, that the suggestive rule does not "
        "choose among where there is no uncertainty",
    )

    @model_validator(mode="after")
    def _enough_candidates(self) -> "SuggestionSettings":
        if self.rule == "suggestive" and self.k > self.candidates:
            raise ValueError(
                f"k = {self.k} images cannot be chosen among candidates = {self.candidates}; raise candidates"
            )
        return self


@dataclass(frozen=True)
class Suggestion:
    """One image to annotate.

    name: of the image. uncertainty: mean over pixels, None where the rule knows none. gain: by how much it
    raised F when it was chosen, None where the rule does not use F. represents: how many unannotated images
    (itself among them) are more similar to it than to any other suggested one, None likewise.
    """

    name: str
    uncertainty: float | None = None
    gain: float | None = None
    represents: int | None = None


def class_probability(probabilities: Tensor, of: UncertaintyOf = "object") -> Tensor:
    """Return the probability that uncertainty is taken of, [..., H, W].

    probabilities: [..., classes, H, W] in the order background, object and, where there are three, contour.
    `object` is the object's class alone, in which touching objects stay apart; `foreground` adds the contour.
    """
    if of == "foreground":
        return 1.0 - probabilities[..., 0, :, :]
    return probabilities[..., 1, :, :]


def pixel_uncertainty(outputs: Tensor) -> Tensor:
    """Return the standard deviation over the networks, [..., H, W].

    outputs: [networks, ..., H, W], the probability each network gives a pixel. The population's deviation
    (divided by the number of networks) is taken; the sample's is a constant factor more and orders alike.

    Raises:
        DataError: fewer than two networks, which cannot disagree.
    """
    if len(outputs) < 2:
        raise DataError(f"uncertainty needs at least 2 networks, given {len(outputs)}")
    return outputs.std(dim=0, correction=0)


def image_uncertainty(outputs: Tensor) -> Tensor:
    """Return the mean of `pixel_uncertainty` over an image's pixels, [...] for [networks, ..., H, W]."""
    return pixel_uncertainty(outputs).mean(dim=(-2, -1))


def mean_descriptor(descriptors: Tensor) -> Tensor:
    """Return the mean over networks, [..., D] for [networks, ..., D]."""
    return descriptors.mean(dim=0)


def cosine_similarity(left: Tensor, right: Tensor) -> Tensor:
    """Return the cosine between every two descriptors, float64 [L, R] for [L, D] and [R, D].

    A descriptor of zeros is like nothing, itself included: its similarities are 0.
    """
    directions = []
    for rows in (left, right):
        values = rows.double()
        length = values.norm(dim=1, keepdim=True)
        directions.append(torch.where(length > 0, values / length.clamp(min=1e-300), 0.0))
    return directions[0] @ directions[1].T


def coverage(similarity: Tensor, chosen: Sequence[int]) -> float:
    """Return F: over the columns, the sum of the greatest similarity to a chosen row; 0 for none chosen.

    similarity: [candidates, unannotated]. A negative similarity counts as 0 (nothing is represented by its
    opposite), so that F never falls when a row is added; the networks' descriptors have none.
    """
    if not chosen:
        return 0.0
    return float(similarity[list(chosen)].clamp(min=0.0).amax(dim=0).double().sum())


def greedy_representatives(similarity: Tensor, k: int) -> list[tuple[int, float]]:
    """Choose k rows one after the other, each the one that raises `coverage` most; ties go to the first row.

    similarity: [candidates, unannotated].
    Returns: (row, gain) in the order of choice; all rows where there are no more than k.
    """
    covered = torch.zeros(
        similarity.shape[1], dtype=torch.float64
    )  # so that negative similarities gain nothing
    left = torch.ones(len(similarity), dtype=torch.bool)
    chosen: list[tuple[int, float]] = []
    for _ in range(min(k, len(similarity))):
        gains = torch.cat([(rows - covered).clamp(min=0.0).sum(dim=1) for rows in _blocks(similarity)])
        order = gains.round(decimals=_TIE_DECIMALS).masked_fill(~left, -1.0)
        row = int((order == order.max()).nonzero()[0])
        chosen.append((row, float(gains[row])))
        covered = torch.maximum(covered, similarity[row].double())
        left[row] = False
    return chosen


def without_outliers(similarity: Tensor, share: float, keep: int = 1) -> list[int]:
    """Return the rows, ascending, but for the share (rounded down) least similar to their third nearest other.

    similarity: [images, images]. At least `keep` rows stay; of equal ones the first do.
    """
    count = len(similarity) - min(int(share * len(similarity)), max(len(similarity) - keep, 0))
    others = min(_OTHERS + 1, len(similarity))  # the nearest of all is the image itself
    likeness = torch.cat([rows.topk(others, dim=1).values[:, -1] for rows in _blocks(similarity)])
    return sorted(_greatest(likeness.round(decimals=_TIE_DECIMALS), count))


def suggest(
    names: Sequence[str],
    uncertainty: Tensor | None,
    descriptors: Tensor | None,
    settings: SuggestionSettings | None = None,
    seed: int = 0,
) -> list[Suggestion]:
    """Choose `settings.k` of the unannotated images, in the order of choice.

    names: one per image, each once; the result does not depend on their order, ties go to the first name.
    uncertainty: [images]; descriptors: [images, D]. The random rule needs neither and draws by `seed`; the
    uncertainty rule needs no descriptors. Without uncertainty the suggestive rule chooses among all images but
    `settings.outliers`.

    Raises:
        DataError: fewer images than k, a name twice, tensors of another length, no descriptors for the
            suggestive rule, or no uncertainty for the uncertainty rule.
    """
    settings = settings or SuggestionSettings()
    _check(names, uncertainty, descriptors, settings)
    order = sorted(range(len(names)), key=lambda index: names[index])
    ordered = [names[index] for index in order]
    values = None if uncertainty is None else uncertainty.double()[order]
    if settings.rule == "random":
        generator = named_generator(seed, "segmentation", "random suggestion")
        drawn = torch.randperm(len(ordered), generator=generator)[: settings.k].tolist()
        return [Suggestion(ordered[i], None if values is None else float(values[i])) for i in drawn]
    if settings.rule == "uncertainty":
        assert values is not None
        return [Suggestion(ordered[i], float(values[i])) for i in _greatest(values, settings.k)]
    assert descriptors is not None
    return _representative(ordered, values, descriptors[order], settings)


def _representative(
    names: Sequence[str], uncertainty: Tensor | None, descriptors: Tensor, settings: SuggestionSettings
) -> list[Suggestion]:
    """The suggestive rule on images in name order."""
    if uncertainty is not None:
        rows = sorted(_greatest(uncertainty, settings.candidates))
    elif settings.outliers:
        # The matrix may be large and is worked out anew below: less time than two of them are memory.
        rows = without_outliers(cosine_similarity(descriptors, descriptors), settings.outliers, settings.k)
    else:
        rows = list(range(len(names)))
    similarity = cosine_similarity(descriptors[rows], descriptors)
    chosen = greedy_representatives(similarity, settings.k)
    nearest = similarity[[row for row, _ in chosen]].round(decimals=_TIE_DECIMALS).argmax(dim=0)
    represents = torch.bincount(nearest, minlength=len(chosen)).tolist()
    return [
        Suggestion(
            names[rows[row]],
            None if uncertainty is None else float(uncertainty[rows[row]]),
            gain,
            count,
        )
        for (row, gain), count in zip(chosen, represents, strict=True)
    ]


def _blocks(similarity: Tensor) -> list[Tensor]:
    return [similarity[start : start + _ROWS] for start in range(0, len(similarity), _ROWS)]


def _greatest(values: Tensor, count: int) -> list[int]:
    """Indices of the greatest values, the first of equal ones first."""
    return values.sort(descending=True, stable=True).indices[:count].tolist()


def _check(
    names: Sequence[str], uncertainty: Tensor | None, descriptors: Tensor | None, settings: SuggestionSettings
) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"image '{twice}' is in the pool twice; every name may be there once")
    if settings.k > len(names):
        raise DataError(f"k = {settings.k} images cannot be suggested; {len(names)} are not annotated yet")
    if settings.rule == "suggestive" and descriptors is None:
        raise DataError("the suggestive rule needs an image descriptor of every image")
    if settings.rule == "uncertainty" and uncertainty is None:
        raise DataError("the uncertainty rule needs the uncertainty of every image; train networks first")
    for what, values in (("uncertainties", uncertainty), ("descriptors", descriptors)):
        if values is not None and len(values) != len(names):
            raise DataError(f"{len(values)} {what} given for {len(names)} images")
        if values is not None and not bool(torch.isfinite(values).all()):
            raise DataError(f"the {what} of the images are not all finite; did training diverge?")
