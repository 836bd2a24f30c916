"""What training minimises: cross-entropy weighted by class, and soft Dice where asked."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nvcim.errors import ConfigError

ClassWeights = Literal["none", "inverse-frequency"] | tuple[float, float] | tuple[float, float, float]
"""Weights of the classes: all 1, from the data, or given in the order background, object, contour."""


def class_weights(wanted: ClassWeights, maps: Sequence[Tensor], classes: int) -> Tensor:
    """Return the loss weight of each class, float32 [classes].

    `inverse-frequency` gives class c the weight n / (classes * n_c), n_c of n pixels being of that class, so
    that every class counts alike; a class that does not occur gets 1. Of three given weights, a network of
    two classes takes the first two.

    maps: the class of each pixel, integers of any shape.

    Raises:
        ConfigError: fewer weights given than the network has classes.
    """
    if wanted == "none":
        return torch.ones(classes)
    if wanted == "inverse-frequency":
        counts = torch.zeros(classes, dtype=torch.float64)
        for pixels in maps:
            counts += torch.bincount(pixels.flatten().long(), minlength=classes)
        weights = counts.sum() / (classes * counts.clamp(min=1.0))
        return torch.where(counts > 0, weights, torch.ones_like(weights)).float()
    if len(wanted) < classes:
        raise ConfigError(f"class_weights: {len(wanted)} weights given for a network of {classes} classes")
    return torch.tensor(wanted[:classes])


def segmentation_loss(logits: Tensor, classes: Tensor, weights: Tensor, dice: float) -> Tensor:
    """Return cross-entropy + `dice` * (1 - soft Dice), a scalar.

    Soft Dice is (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) over the batch's pixels (V-Net, 1606.04797, without
    its squares), averaged over all classes but the background.

    logits: [B, classes, H, W]; classes: int64 [B, H, W]; weights: [classes], for the cross-entropy, which is
    divided by the summed weights of its pixels.
    """
    loss = F.cross_entropy(logits, classes, weights)
    if dice == 0.0:
        return loss
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = F.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2)[:, 1:].to(probabilities.dtype)
    axes = (0, 2, 3)
    shared = (probabilities * truth).sum(dim=axes)
    sizes = probabilities.sum(dim=axes) + truth.sum(dim=axes)
    return loss + dice * (1.0 - ((2.0 * shared + 1.0) / (sizes + 1.0)).mean())
