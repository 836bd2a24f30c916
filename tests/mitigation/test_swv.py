"""Selective write-verify: what SWIM's score ranks first, and that those elements land well."""

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import DataError
from nvcim.mitigation.swv import SelectiveWriteVerify
from nvcim.randomness import named_generator
from tests.mitigation.conftest import codes, sensitivity


def test_sensitivity_ranks_first_and_magnitude_breaks_ties() -> None:
    values = torch.tensor([[0.1, -3.0, 2.0, 0.5, -0.2]])
    found = SelectiveWriteVerify().ranking(values, torch.tensor([[5.0, 0.0, 0.0, 5.0, 1e-3]]))
    # The two sensitive ones, larger magnitude first; then the slightly sensitive one; then by magnitude.
    assert found.argsort(descending=True).tolist() == [[3, 0, 4, 1, 2]]


def test_ties_are_broken_however_large_the_sensitivity() -> None:
    """In float32 alpha times 1e6 would swallow the magnitude."""
    values = torch.tensor([[0.25, 1.0, 0.5]])
    found = SelectiveWriteVerify().ranking(values, torch.full((1, 3), 1e6))
    assert found.tolist() == [[0, 2, 1]]


def test_the_share_that_matters_lands_nearer() -> None:
    own = SelectiveWriteVerify(share=0.25)
    config = own.writing(CrossbarConfig(device="FeFET2", sigma=0.1))
    values, matters = codes(10).flatten(1), sensitivity(10).flatten(1)
    array = Crossbar.program(
        values[..., None], config, named_generator(0), own.ranking(values, matters)[..., None]
    )
    pulses = array.wear().amax(1)[..., 0]
    best = matters.argsort(dim=1, descending=True)[:, :16]  # a quarter of 64
    others = torch.ones_like(matters, dtype=torch.bool).scatter(1, best, False)
    assert bool((pulses[others] == 1).all())
    error = (array.read_weight()[..., 0] - values).abs()
    ratio = float(error[others].square().mean() / error.gather(1, best).square().mean())
    assert ratio > 4  # a sigma of 0.067 to 0.135 level steps becomes one of 0.03


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 2), r"shape \(1, 2\); the codes have \(1, 3\)"),
        (torch.tensor([[0.0, -1.0, 0.0]]), "negative or non-finite"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), "negative or non-finite"),
    ],
)
def test_sensitivities_that_rank_nothing_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SelectiveWriteVerify().ranking(torch.zeros(1, 3), wrong)
