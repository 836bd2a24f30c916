"""The training loop that the baselines share: Adam on a few tensors, the frozen LM's loss on the user's answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.prompts.baselines.adapted import Adapted
from nvcim.prompts.baselines.batches import answered_rows
from nvcim.prompts.baselines.settings import BaselineSettings


@dataclass(frozen=True)
class Rated:
    """Tensors to train, and the learning rate that they start with."""

    tensors: tuple[Tensor, ...]
    learning_rate: float


@dataclass(frozen=True)
class Trained:
    """How a training went.

    Attributes:
        steps: updates kept.
        failed: whether a gradient or what was trained was not finite; the training ended there, before the update that
            led to it.
    """

    steps: int
    failed: bool


def train(
    adapted: Adapted, rated: Sequence[Rated], samples: Sequence[tuple[str, str]], settings: BaselineSettings
) -> Trained:
    """Train tensors in place; every step sees all samples and weighs them alike."""
    fitted = adapted.fitted(samples)
    batches = list(answered_rows(adapted.lm, fitted, settings.rows_per_batch, adapted.most_padding))
    trained = [tensor for group in rated for tensor in group.tensors]
    optimiser = torch.optim.Adam(
        [{"params": list(group.tensors), "lr": group.learning_rate} for group in rated]
    )
    before = [tensor.detach().clone() for tensor in trained]
    for step in range(settings.steps):
        for group, given in zip(optimiser.param_groups, rated, strict=True):
            group["lr"] = given.learning_rate * (1 - 0.9 * step / settings.steps)
        optimiser.zero_grad(set_to_none=True)
        for batch in batches:
            loss = adapted.answer_losses(batch).sum() / len(samples)
            for tensor, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        if not _finite([tensor.grad for tensor in trained if tensor.grad is not None]):
            _restore(trained, before)
            return Trained(max(0, step - 1), failed=True)
        before = [tensor.detach().clone() for tensor in trained]
        optimiser.step()
    if not _finite(trained):  # no later gradient is there to notice
        _restore(trained, before)
        return Trained(settings.steps - 1, failed=True)
    return Trained(settings.steps, failed=False)


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@torch.no_grad()
def _restore(trained: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, last in zip(trained, before, strict=True):
        tensor.copy_(last)
