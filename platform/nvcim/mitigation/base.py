"""What a mitigation may do: before, while and after codes are written to an array, each hook on its own.

A mitigation's fields are its parameters. Every hook does nothing by default, so a method says only what it changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from nvcim.config import Settings
from nvcim.crossbar import Crossbar, CrossbarConfig

Perturbation = Callable[[Tensor, Generator], Tensor]
"""(codes [N, width], a generator) -> the codes as an array may give them back, same shape; a new draw per call."""


@dataclass(frozen=True)
class Correction:
    """A digital gain and an offset per output, applied to what an array gives back for inputs of norm 1.

    Attributes:
        gain, offset: [*devices, out].
    """

    gain: Tensor
    offset: Tensor

    def outputs(self, y: Tensor) -> Tensor:
        """Correct outputs [*devices, batch, out] that inputs of Euclidean norm 1 gave."""
        return y * self.gain.unsqueeze(-2) + self.offset.unsqueeze(-2)

    def state_dict(self) -> dict[str, Tensor]:
        """`gain` and `offset`; `Correction(**state)` restores it."""
        return {"gain": self.gain, "offset": self.offset}


class Mitigation(Settings):
    """Base of all mitigations; what is left out does nothing.

    Attributes:
        name: as configurations and tables show it.
        needs_importance: whether a write wants to know how much the loss depends on each element (`ranking`).
    """

    name: ClassVar[str]
    needs_importance: ClassVar[bool] = False

    def writing(self, config: CrossbarConfig) -> CrossbarConfig:
        """How cells are written: the config to program with, for the config that was asked for."""
        return config

    def ranking(self, codes: Tensor, sensitivity: Tensor) -> Tensor | None:
        """Order in which selective write-verify picks elements; larger first.

        Args:
            codes: [devices, elements], what will be written.
            sensitivity: like codes, at least 0: second derivatives of the loss, or squared gradients.

        Returns:
            Like codes; None where the order does not matter.
        """
        return None

    def correction(self, written: Crossbar, intended: Tensor) -> Correction | None:
        """Fit a correction right after a write, by reading the array.

        Args:
            written: the array, [*devices, in, out]; only `matmul` may be used, as on a chip.
            intended: what was to be written, [*devices, in, out].
        """
        return None

    def penalty(self, matrix: Tensor, sigma: float | Tensor = 0.1) -> Tensor | None:
        """What training adds to each job's loss.

        Args:
            matrix: [jobs, n, width], the values that will be written.
            sigma: programming variation of the jobs' devices, one number or [jobs].

        Returns:
            [jobs]; None for nothing.
        """
        return None

    def compensator(self, codes: Tensor, perturb: Perturbation, generator: Generator) -> nn.Module | None:
        """Train a module [..., width] -> [..., width] that undoes noise after read-back.

        Args:
            codes: [N, width], like those that will be stored.
            perturb: the noise to undo, drawn anew at every call.
            generator: of the training.
        """
        return None

    def restored_compensator(self, state: Mapping[str, Tensor]) -> nn.Module | None:
        """The module whose `state_dict` was saved; None for a mitigation without one.

        Raises:
            ModelError: tensors that are not those of this mitigation's compensator.
        """
        return None


def fixed_vectors(count: int, width: int, seed: int) -> Tensor:
    """Gaussian vectors of Euclidean norm 1, [count, width], the same for every array: a chip would keep them in ROM."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.square().sum(dim=1, keepdim=True).sqrt()
