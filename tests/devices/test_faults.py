"""Stuck cells and the variation from array to array."""

import math

import pytest
import torch

from nvcim.devices.faults import array_factor, stuck_cells, with_stuck
from nvcim.errors import ConfigError


def test_each_end_of_the_draw_is_a_fault_of_its_own() -> None:
    draws = torch.tensor([0.0, 0.09, 0.11, 0.5, 0.79, 0.81, 0.999])
    stuck = stuck_cells(draws, stuck_on=0.1, stuck_off=0.2)
    assert stuck.dtype == torch.int8
    assert stuck.tolist() == [1, 1, 0, 0, 0, -1, -1]


def test_raising_one_rate_leaves_the_other_faults_where_they_are() -> None:
    draws = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    few, many = stuck_cells(draws, 0.01, 0.02), stuck_cells(draws, 0.05, 0.02)
    assert torch.equal(few == -1, many == -1)
    assert bool(((few == 1) <= (many == 1)).all())


def test_no_rate_means_no_fault_and_full_rates_mean_all() -> None:
    draws = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert not stuck_cells(draws, 0.0, 0.0).any()
    assert stuck_cells(draws, 0.5, 0.5).abs().all()
    assert bool((stuck_cells(draws, 0.0, 1.0) == -1).all())


def test_stuck_cells_sit_at_the_ends_of_the_range() -> None:
    conductance = torch.tensor([0.3, 0.3, 0.3])
    stuck = torch.tensor([-1, 0, 1], dtype=torch.int8)
    assert with_stuck(conductance, stuck).tolist() == pytest.approx([0.0, 0.3, 1.0])
    assert with_stuck(conductance, stuck).dtype == conductance.dtype


@pytest.mark.parametrize(("on", "off"), [(-0.1, 0.0), (0.0, 1.1), (0.6, 0.6), (math.nan, 0.0)])
def test_impossible_rates_are_refused(on: float, off: float) -> None:
    with pytest.raises(ConfigError, match=r"stuck_o(n|ff) must|add up"):
        stuck_cells(torch.zeros(3), on, off)


def test_stuck_statistics_meet_the_rates() -> None:
    # A count of n cells at rate p strays by sqrt(n p (1 - p)); six of these are a chance of 2e-9.
    cells, on, off = 1_000_000, 0.0175, 0.0904
    stuck = stuck_cells(torch.rand(cells, generator=torch.Generator().manual_seed(7)), on, off)
    for value, rate in ((1, on), (-1, off)):
        count = int((stuck == value).sum())
        assert abs(count - cells * rate) < 6 * math.sqrt(cells * rate * (1 - rate))


def test_array_statistics_have_the_spread_of_the_process() -> None:
    # 100,000 arrays: mean within 6 sigma / sqrt(n), deviation within 6 / sqrt(2 n) of itself: chances of 2e-9.
    arrays, sigma = 100_000, 0.05
    factor = array_factor(
        torch.randn(arrays, generator=torch.Generator().manual_seed(2), dtype=torch.float64), sigma
    )
    assert float(factor.mean()) == pytest.approx(1, abs=6 * sigma / math.sqrt(arrays))
    assert float(factor.std()) == pytest.approx(sigma, rel=6 / math.sqrt(2 * arrays))


def test_array_factor_is_never_negative_and_leaves_its_draws_alone() -> None:
    draws = torch.tensor([-3.0, 0.0, 1.0])
    assert array_factor(draws, 0.5).tolist() == [0.0, 1.0, 1.5]
    assert draws.tolist() == [-3.0, 0.0, 1.0]


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_impossible_variation_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="array_sigma must not be negative"):
        array_factor(torch.zeros(2), sigma)
