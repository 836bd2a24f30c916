"""Codes as a prompt memory stores them, made up: tokens that share a few directions, and a device to write them to."""

import pytest
import torch
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.mitigation import MITIGATIONS, Mitigation, Perturbation
from nvcim.randomness import named_generator

TOKENS, WIDTH = 4, 16


def codes(count: int, seed: int = 0) -> Tensor:
    """[count, TOKENS, WIDTH]: Gaussian along axes whose sizes fall tenfold, as principal components do."""
    sizes = torch.logspace(0, -1, WIDTH)
    return torch.randn(count, TOKENS, WIDTH, generator=named_generator(seed, "codes")) * sizes


def sensitivity(count: int, seed: int = 0) -> Tensor:
    """How much a loss depends on each element: few much, most little. Like `codes`."""
    drawn = torch.randn(count, TOKENS, WIDTH, generator=named_generator(seed, "sensitivity"))
    return (2 * drawn).exp()


def perturbation(config: CrossbarConfig) -> Perturbation:
    """Codes [N, width] as fresh arrays of one token each give them back."""

    def perturb(tokens: Tensor, generator: torch.Generator) -> Tensor:
        return Crossbar.program(tokens[..., None], config, generator).read_weight()[..., 0]

    return perturb


@pytest.fixture(params=MITIGATIONS.values(), ids=list(MITIGATIONS))
def mitigation(request: pytest.FixtureRequest) -> Mitigation:
    """Every registered mitigation in turn, with its default parameters."""
    made: Mitigation = request.param()
    return made
