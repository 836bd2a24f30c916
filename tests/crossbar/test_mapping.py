"""Weights become levels and come back exactly."""

import pytest
import torch

from nvcim.crossbar.mapping import quantize_symmetric, slice_count, slice_levels, slice_weight


@pytest.mark.parametrize("weight_bits", [2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("cell_bits", [1, 2, 3, 4])
def test_slices_recombine_to_every_integer(weight_bits: int, cell_bits: int) -> None:
    magnitudes = torch.arange(2 ** (weight_bits - 1), dtype=torch.int32)
    total = torch.zeros(magnitudes.shape, dtype=torch.float64)
    for index in range(slice_count(weight_bits, cell_bits)):
        levels = slice_levels(magnitudes, weight_bits, cell_bits, index)
        assert int(levels.min()) >= 0
        assert int(levels.max()) < 2**cell_bits
        conductance = levels.double() / (2**cell_bits - 1)
        total += slice_weight(weight_bits, cell_bits, index) * conductance
    assert torch.equal(total.round().to(torch.int32), magnitudes)
    assert torch.allclose(total, magnitudes.double(), atol=1e-9)


def test_eight_bits_on_two_bit_cells_take_four_pairs() -> None:
    assert slice_count(8, 2) == 4
    assert slice_count(8, 1) == 7


@pytest.mark.parametrize("cell_bits", [1, 2, 3])
@pytest.mark.parametrize("weight_bits", [4, 8])
def test_the_largest_weight_uses_the_whole_top_cell(weight_bits: int, cell_bits: int) -> None:
    largest = torch.tensor(2 ** (weight_bits - 1) - 1, dtype=torch.int32)
    top = slice_levels(largest, weight_bits, cell_bits, slice_count(weight_bits, cell_bits) - 1)
    assert int(top) == 2**cell_bits - 1


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantisation_error_is_at_most_half_a_step(bits: int) -> None:
    weight = torch.randn(3, 20, 10, generator=torch.Generator().manual_seed(0))
    integers, scale = quantize_symmetric(weight, bits, (1, 2))
    assert int(integers.abs().amax()) == 2 ** (bits - 1) - 1
    assert bool(((integers * scale - weight).abs() <= scale * 0.505).all())


def test_zero_weights_have_scale_zero_and_no_nan() -> None:
    integers, scale = quantize_symmetric(torch.zeros(2, 3, 4), 8, (1, 2))
    assert not integers.any()
    assert not scale.any()
