"""Representative selection: k-means over the buffer's embeddings, the member nearest each centre by cosine.

NVCiM-PT states k-means and cosine, and that k is adjusted with the buffer's size and the user's preference. The rule
is not known, so it is a setting: a fixed k, a share of the buffer, or the k whose clusters are told apart best, by the
mean silhouette (Rousseeuw, J. Comput. Appl. Math. 20, 1987) over cosine distances.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, isqrt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional

from nvcim.config import Settings
from nvcim.errors import DataError

Rule = Literal["fixed", "ratio", "silhouette"]
SMALLEST_SCORED = 4
"""Samples from which on floor(sqrt(N)) leaves a k of two or more to try; fewer get two clusters, unscored."""


class SelectionSettings(Settings):
    """How many clusters a buffer of N samples is split into; never more than it has distinct samples.

    `fixed` takes `k`, `ratio` takes ceil(ratio * N), `silhouette` tries 2 to floor(sqrt(N)) and keeps the k of the best
    mean silhouette, the smallest of equals. Below 4 samples there is no k to try: `silhouette` then takes two.
    """

    rule: Rule = "fixed"
    k: int = Field(3, ge=1, description="for rule fixed")
    ratio: float = Field(0.12, gt=0, le=1, description="for rule ratio; 0.12 of the paper's 25 samples is 3")
    largest: int | None = Field(
        None, ge=1, description="most clusters, whatever the rule; null: as the rule says"
    )

    def counts(self, samples: int) -> range:
        """The k to choose from, for a buffer of `samples`; one k unless silhouettes are to be compared."""
        if self.rule == "fixed":
            low = high = self.k
        elif self.rule == "ratio":
            # rounded: 0.28 of 25 is 7, not the 7.000000000000001 of floating point
            low = high = ceil(round(self.ratio * samples, 9))
        else:
            low, high = 2, max(2, isqrt(samples))
        most = samples if self.largest is None else min(samples, self.largest)
        return range(min(low, most), min(high, most) + 1)


@dataclass(frozen=True)
class Selection:
    """Outcome of a selection over N embeddings.

    Attributes:
        representatives: index of each cluster's representative, largest cluster first.
        similarity: cosine of each representative to its cluster's centre.
        neighbours: for each cluster its members, nearest to the representative first (itself included).
        rule: how k was chosen.
        scores: mean silhouette (-1 to 1) by the k that were tried; empty where none were compared.
    """

    representatives: tuple[int, ...]
    similarity: tuple[float, ...]
    neighbours: tuple[tuple[int, ...], ...]
    rule: Rule = "fixed"
    scores: Mapping[int, float] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Clusters that were made."""
        return len(self.representatives)

    @property
    def samples(self) -> int:
        """Samples that were in the buffer (N)."""
        return sum(len(members) for members in self.neighbours)

    def log_rows(self) -> list[dict[str, str | int | float | None]]:
        """One flat row per representative, for a table: what was chosen from, how, and with which scores.

        `silhouette` is that of the chosen k, None where no k were compared; `cosine` is the representative's to its
        cluster's centre.
        """
        return [
            {
                "buffer": self.samples,
                "rule": self.rule,
                "k": self.k,
                "silhouette": self.scores.get(self.k),
                "index": index,
                "cosine": cosine,
                "cluster_size": len(members),
            }
            for index, cosine, members in zip(
                self.representatives, self.similarity, self.neighbours, strict=True
            )
        ]


def select_representatives(embeddings: Tensor, k: int | SelectionSettings, seed: int) -> Selection:
    """Choose representatives.

    Args:
        embeddings: [N, hidden], one per buffered sample; only their directions count.
        k: the rule for the number of clusters; a number is a fixed k. At most N are made, fewer where samples
            coincide.
        seed: of k-means++.

    Raises:
        DataError: no embeddings, one that is not finite, or k below 1.
    """
    if len(embeddings) == 0:
        raise DataError("representative selection: the data buffer is empty")
    if isinstance(k, int):
        if k < 1:
            raise DataError(f"representative selection: k is {k}, at least 1 is needed")
        k = SelectionSettings(k=k)
    broken = (~embeddings.isfinite()).any(1).nonzero().flatten().tolist()
    if broken:
        raise DataError(f"representative selection: the embedding of sample {broken[0]} is not finite")
    # Rounded to float32's precision: samples that differ by rounding only are the same sample to k-means.
    points = functional.normalize(embeddings.detach().to("cpu", torch.float64), dim=1).numpy().round(6)
    counts = sorted({min(count, len(np.unique(points, axis=0))) for count in k.counts(len(points))})
    fits = {
        count: KMeans(n_clusters=count, n_init=4, random_state=seed % 2**32).fit(points) for count in counts
    }
    scores: dict[int, float] = {}
    if k.rule == "silhouette" and len(points) >= SMALLEST_SCORED and counts[-1] > 1:
        distances = _cosine_distances(points)
        scores = {
            count: float(silhouette_score(distances, fit.labels_, metric="precomputed"))
            for count, fit in fits.items()
        }
    best = max(counts, key=lambda count: (scores.get(count, 0.0), -count))
    chosen = _nearest_by_cosine(points, fits[best])
    representatives, similarity, neighbours = zip(*chosen, strict=True)
    return Selection(representatives, similarity, neighbours, k.rule, scores)


def _cosine_distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - cosine between rows [N, hidden] of unit length: [N, N], 0 on the diagonal."""
    distances: NDArray[np.float64] = np.clip(1.0 - points @ points.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def _nearest_by_cosine(
    points: NDArray[np.float64], model: KMeans
) -> list[tuple[int, float, tuple[int, ...]]]:
    """Of each cluster the representative, its cosine to the centre, and the members, largest cluster first."""
    chosen = []
    for label in np.unique(model.labels_):
        centre = model.cluster_centers_[label]
        members = np.flatnonzero(model.labels_ == label)
        cosine = points[members] @ centre / (np.linalg.norm(centre) + 1e-12)
        representative = int(members[cosine.argmax()])
        order = np.argsort(-(points[members] @ points[representative]), kind="stable")
        chosen.append((representative, float(cosine.max()), tuple(int(m) for m in members[order])))
    chosen.sort(key=lambda entry: (-len(entry[2]), entry[0]))
    return chosen
