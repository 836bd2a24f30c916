"""Rounding passes, a fault does not, whatever the size of what is compared."""

import pytest
import torch

from tests.closeness import close


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_rounding_of_a_sum_that_cancels_passes_and_a_fault_of_its_largest_terms_does_not(size: float) -> None:
    expected = torch.tensor([80.0, -3.0, 0.0]) * size
    assert close(expected + torch.tensor([0.0, 0.0, 80e-6]) * size, expected)
    assert not close(expected + torch.tensor([0.0, 0.0, 240e-6]) * size, expected)
    assert not close(expected * (1 + 1e-5), expected)
    assert close(expected * (1 + 1e-5), expected, 2e-5)


def test_shapes_are_compared_and_what_is_not_finite_is_never_close() -> None:
    with pytest.raises(AssertionError, match="compared with"):
        close(torch.ones(2, 1), torch.ones(2))
    assert not close(torch.tensor([1.0, torch.nan]), torch.ones(2))
    for wild in (torch.nan, torch.inf):
        assert not close(torch.ones(2), torch.tensor([1.0, wild]))
