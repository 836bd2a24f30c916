"""Weights become levels and come back exactly."""

import pytest
import torch

from nvcim.crossbar.mapping import Mapping, Scheme, make_mapping, quantize_symmetric
from nvcim.devices import CellDevice
from nvcim.errors import ConfigError


def cell(bits: int) -> CellDevice:
    return CellDevice.model_validate(
        {"name": "Test", "technology": "none", "bits": bits, "level_sigma": 0.0, "source": "test"}
    )


def recombined(mapping: Mapping, integers: torch.Tensor, levels: int) -> torch.Tensor:
    """What nominal cells add up to, less the offset."""
    total = torch.zeros(integers.shape, dtype=torch.float64)
    for side, sign in enumerate(mapping.signs):
        for index, piece in enumerate(mapping.slices):
            found = mapping.levels(integers, side, index)
            assert int(found.min()) >= 0
            assert int(found.max()) < levels
            total += sign * piece.factor * found.double() / (levels - 1)
    return total - mapping.offset


@pytest.mark.parametrize("scheme", ["differential", "offset", "one_sided"])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("cell_bits", [1, 2, 3, 4])
def test_slices_recombine_to_every_integer(scheme: Scheme, weight_bits: int, cell_bits: int) -> None:
    top = 2 ** (weight_bits - 1) - 1
    integers = torch.arange(0 if scheme == "one_sided" else -top, top + 1, dtype=torch.int32)
    found = recombined(make_mapping(weight_bits, cell(cell_bits), scheme), integers, 2**cell_bits)
    assert torch.allclose(found, integers.double(), atol=1e-9)


@pytest.mark.parametrize(
    ("weight_bits", "cell_bits", "slice_bits"),
    [
        (8, 4, (1, 2, 4)),
        (8, 4, (4, 3)),
        (8, 4, (3, 4)),
        (8, 3, (2, 2, 3)),
        (6, 2, (1, 2, 2)),
        (8, 2, (2, 2, 2, 2)),
    ],
)
def test_unequal_slices_recombine_to_every_integer(
    weight_bits: int, cell_bits: int, slice_bits: tuple[int, ...]
) -> None:
    top = 2 ** (weight_bits - 1) - 1
    integers = torch.arange(-top, top + 1, dtype=torch.int32)
    mapping = make_mapping(weight_bits, cell(cell_bits), "differential", slice_bits)
    assert len(mapping.slices) == len(slice_bits)
    found = recombined(mapping, integers, 2**cell_bits)
    assert torch.allclose(found, integers.double(), atol=1e-9)


def test_eight_bits_on_two_bit_cells_take_four_pairs() -> None:
    assert make_mapping(8, cell(2)).cells == 8
    assert make_mapping(8, cell(1)).cells == 14
    assert make_mapping(8, cell(2), "offset").cells == 4


@pytest.mark.parametrize("cell_bits", [1, 2, 3])
@pytest.mark.parametrize("weight_bits", [4, 8])
def test_the_largest_weight_uses_the_whole_top_cell(weight_bits: int, cell_bits: int) -> None:
    mapping = make_mapping(weight_bits, cell(cell_bits))
    largest = torch.tensor(mapping.top, dtype=torch.int32)
    assert int(mapping.levels(largest, 0, len(mapping.slices) - 1)) == 2**cell_bits - 1


@pytest.mark.parametrize(
    ("slice_bits", "complaint"),
    [
        ((3, 2, 2), "asks for 3 bits in one cell; device Test has 4 levels, at most 2 bits"),
        ((2, 2, 2), "hold 6 bits, but 8-bit weights in the differential scheme have 7; allowed: 7 to 8 bits"),
        ((2, 2, 2, 2, 2), "hold 10 bits"),
    ],
)
def test_slices_that_cannot_hold_the_weight_are_refused(slice_bits: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_mapping(8, cell(2), "differential", slice_bits)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantisation_error_is_at_most_half_a_step(bits: int, per_column: bool) -> None:
    weight = torch.randn(3, 20, 10, generator=torch.Generator().manual_seed(0))
    integers, scale = quantize_symmetric(weight, bits, per_column)
    assert int(integers.abs().amax()) == 2 ** (bits - 1) - 1
    assert bool(((integers * scale - weight).abs() <= scale * 0.505).all())


def test_zero_weights_have_scale_zero_and_no_nan() -> None:
    integers, scale = quantize_symmetric(torch.zeros(2, 3, 4), 8, per_column=False)
    assert not integers.any()
    assert not scale.any()
