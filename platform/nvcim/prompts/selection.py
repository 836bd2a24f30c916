"""Representative selection: k-means over the buffer's embeddings, the member nearest each centre by cosine.

NVCiM-PT states k-means and cosine; how k follows from the buffer is not known, so k is a setting here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from nvcim.errors import DataError


@dataclass(frozen=True)
class Selection:
    """Outcome of a selection over N embeddings.

    Attributes:
        representatives: index of each cluster's representative, largest cluster first.
        similarity: cosine of each representative to its cluster's centre.
        neighbours: for each cluster its members, nearest to the representative first (itself included).
    """

    representatives: tuple[int, ...]
    similarity: tuple[float, ...]
    neighbours: tuple[tuple[int, ...], ...]


def select_representatives(embeddings: Tensor, k: int, seed: int) -> Selection:
    """Choose at most `k` representatives.

    Args:
        embeddings: [N, hidden], one per buffered sample.
        k: number of clusters; at most N are made (fewer where samples coincide).
        seed: of k-means++.

    Raises:
        DataError: no embeddings, or k below 1.
    """
    if len(embeddings) == 0:
        raise DataError("representative selection: the data buffer is empty")
    if k < 1:
        raise DataError(f"representative selection: k is {k}, at least 1 is needed")
    # Rounded to float32's precision: samples that differ by rounding only are the same sample to k-means.
    points = functional.normalize(embeddings.detach().to("cpu", torch.float64), dim=1).numpy().round(6)
    distinct = len(np.unique(points, axis=0))
    model = KMeans(n_clusters=min(k, distinct), n_init=4, random_state=seed % 2**32).fit(points)
    chosen = []
    for centre_index, centre in enumerate(model.cluster_centers_):
        members = np.flatnonzero(model.labels_ == centre_index)
        cosine = points[members] @ centre / (np.linalg.norm(centre) + 1e-12)
        representative = int(members[cosine.argmax()])
        order = np.argsort(-(points[members] @ points[representative]), kind="stable")
        chosen.append((representative, float(cosine.max()), tuple(int(m) for m in members[order])))
    chosen.sort(key=lambda entry: (-len(entry[2]), entry[0]))
    return Selection(*(tuple(column) for column in zip(*chosen, strict=True)))
