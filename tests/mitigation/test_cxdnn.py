"""CxDNN's factors: the least-squares fit, and what it takes out of an array."""

import numpy as np
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.mitigation import Correction
from nvcim.mitigation.base import fixed_vectors
from nvcim.mitigation.cxdnn import CxDNN
from nvcim.randomness import named_generator
from tests.mitigation.conftest import codes


def test_gain_and_offset_are_those_of_a_straight_line_fit() -> None:
    columns = codes(3).flatten(1)[..., None]
    array = Crossbar.program(columns, CrossbarConfig(device="RRAM1", sigma=0.1), named_generator(0))
    found = CxDNN(vectors=50).correction(array, columns)
    x = fixed_vectors(50, 64, 0)
    for i in range(3):
        slope, start = np.polyfit(array.matmul(x)[i, :, 0].numpy(), (x @ columns[i])[:, 0].numpy(), 1)
        np.testing.assert_allclose(
            [found.gain[i, 0], found.offset[i, 0]], [slope, start], rtol=1e-4, atol=1e-6
        )


def test_what_a_whole_array_does_alike_is_taken_out() -> None:
    """Arrays that conduct more or less as a whole: one factor per column undoes it."""
    columns = codes(40).abs().flatten(1)[..., None]
    config = CrossbarConfig(
        device="Ideal8", sigma=0.0, array_sigma=0.2, adc_bits=None, scheme="one_sided"
    )  # all bits of a weight in one array
    array = Crossbar.program(columns, config, named_generator(1))
    correction = CxDNN().correction(array, columns)
    x = fixed_vectors(100, 64, seed=5)  # others than those it was fitted on
    ideal, y = x @ columns, array.matmul(x)
    plain, corrected = ((one - ideal).square().mean() for one in (y, correction.outputs(y)))
    assert corrected < plain / 20


def test_a_column_of_zeros_is_left_alone() -> None:
    columns = torch.zeros(1, 8, 1)
    array = Crossbar.program(columns, CrossbarConfig(), named_generator(0))
    found = CxDNN().correction(array, columns)
    assert found.gain.tolist() == [[1.0]]
    assert found.offset.tolist() == [[0.0]]


def test_a_correction_is_applied_per_output() -> None:
    own = Correction(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.5, 0.0]]))
    assert own.outputs(torch.tensor([[[1.0, 3.0], [2.0, 4.0]]])).tolist() == [[[2.5, 3.0], [4.5, 4.0]]]
