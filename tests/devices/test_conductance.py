"""Siemens, values between levels, temperature and current, against numbers worked out by hand."""

from collections.abc import Callable

import pytest
import torch

from nvcim.devices import CellDevice, get_device
from nvcim.devices.conductance import (
    at_temperature,
    by_level,
    cell_current,
    from_siemens,
    relative_to_max,
    scaled,
    to_siemens,
)
from nvcim.errors import ConfigError

MakeCell = Callable[..., CellDevice]


def test_normalised_zero_is_g_min_and_one_is_g_max(make_cell: MakeCell) -> None:
    cell = make_cell()
    siemens = to_siemens(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), cell)
    assert siemens.tolist() == pytest.approx([1e-5, 6e-5, 1.1e-4])
    assert from_siemens(siemens, cell).tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert cell.on_off == pytest.approx(11)
    assert relative_to_max(torch.tensor([1.0, -1.0]), cell).tolist() == pytest.approx([1.0, 1e-7])


def test_scaling_acts_on_siemens_and_not_on_the_normalised_value(make_cell: MakeCell) -> None:
    # 60 uS halved is 30 uS: 20 uS above g_min, of a range of 100 uS.
    assert scaled(torch.tensor([0.5]), 0.5, make_cell()).tolist() == pytest.approx([0.2])


def test_values_per_level_are_interpolated_between_levels(make_cell: MakeCell) -> None:
    cell = make_cell(level_conductance=[0.1, 0.2, 0.6, 1.0])
    at = torch.tensor([[-1.0, 0.0, 0.1], [0.15, 0.5, 2.0]])
    expected = [[1.0, 1.0, 1.0], [2.0, 6.0, 7.0]]
    assert by_level(at, cell, (1.0, 3.0, 7.0, 7.0)).tolist()[0] == pytest.approx(expected[0])
    assert by_level(at, cell, (1.0, 3.0, 7.0, 7.0)).tolist()[1] == pytest.approx(expected[1])
    assert by_level(at, cell, (4.0,)).unique().tolist() == [4.0]


def test_values_per_level_accept_any_layout(make_cell: MakeCell) -> None:
    grid = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(
        by_level(grid, make_cell(), (0.0, 1 / 3, 2 / 3, 1.0)).round(decimals=5), grid.round(decimals=5)
    )


def test_temperature_changes_siemens_by_its_coefficient(make_cell: MakeCell) -> None:
    # 60 uS times 1 - 0.002 * 50 K = 54 uS; level 3 at +0.001 per kelvin: 110 uS * 1.05 = 115.5 uS.
    cell = make_cell(temperature={"coefficient_per_k": [-0.002], "reference_k": 300})
    assert at_temperature(torch.tensor([0.5]), 350, cell).tolist() == pytest.approx([0.44])
    levels = make_cell(temperature={"coefficient_per_k": [0, 0, 0, 0.001], "reference_k": 300})
    assert at_temperature(torch.tensor([0.0, 1.0]), 350, levels).tolist() == pytest.approx([0.0, 1.055])


def test_heat_never_turns_a_conductance_negative(make_cell: MakeCell) -> None:
    cell = make_cell(temperature={"coefficient_per_k": [-0.02], "reference_k": 300})
    assert to_siemens(at_temperature(torch.tensor([0.5]), 400, cell), cell).tolist() == pytest.approx(
        [0], abs=1e-12
    )


@pytest.mark.parametrize("kelvin", [0.0, -3.0, float("nan")])
def test_impossible_temperatures_are_refused(make_cell: MakeCell, kelvin: float) -> None:
    cell = make_cell(temperature={"coefficient_per_k": [0.1], "reference_k": 300})
    with pytest.raises(ConfigError, match="kelvin must be positive"):
        at_temperature(torch.tensor([0.5]), kelvin, cell)


def test_current_is_ohmic_at_small_voltage_and_a_sinh_at_large(make_cell: MakeCell) -> None:
    cell, siemens = make_cell(v0=0.25), torch.tensor(1e-4, dtype=torch.float64)
    volts = torch.tensor([-0.5, 0.0, 1e-6, 0.5], dtype=torch.float64)
    # sinh(2) = 3.626860407847019; 1e-4 S * 0.25 V * that = 90.67 uA, against 50 uA by Ohm's law.
    expected = [-9.0671510196e-5, 0.0, 1e-10, 9.0671510196e-5]
    assert cell_current(volts, siemens, cell).tolist() == pytest.approx(expected, rel=1e-9)
    assert cell_current(volts, siemens, make_cell()).tolist() == pytest.approx([-5e-5, 0, 1e-10, 5e-5])


def test_siemens_of_a_device_without_a_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="device FeFET2: g_min and g_max are unknown"):
        from_siemens(torch.tensor([1e-5]), get_device("FeFET2"))


def test_another_range_moves_a_measured_spread_with_it(make_cell: MakeCell) -> None:
    # 1 + 9 x uS, x = G / g_max. 10 to 110 uS: level 0 at x = 1/11. 0 to 90 uS: 1 and 10 uS of 90.
    cell = make_cell(level_sigma=None, sigma_law={"coefficients_us": [1.0, 9.0]})
    assert cell.level_sigma[0] == pytest.approx((1 + 9 / 11) / 100)
    other = cell.with_range(g_min=0.0, g_max=9e-5)
    assert (other.level_sigma[0], other.level_sigma[3]) == pytest.approx((1 / 90, 10 / 90))
    assert (cell.with_range(), other.name) == (cell, cell.name)


def test_another_range_leaves_a_table_of_sigmas_alone() -> None:
    cell = get_device("FeFET2").with_range(g_min=1e-6, g_max=1e-5)
    assert cell.level_sigma == get_device("FeFET2").level_sigma
    assert cell.on_off == pytest.approx(10)


@pytest.mark.parametrize(("g_min", "g_max"), [(1e-4, 1e-5), (-1e-6, None), (None, float("inf"))])
def test_impossible_ranges_are_refused(make_cell: MakeCell, g_min: float | None, g_max: float | None) -> None:
    with pytest.raises(ConfigError, match=r"device Test: .*g_m"):
        make_cell().with_range(g_min, g_max)
