"""Drift, retention and relaxation against closed forms and against published fits at points worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from nvcim.devices import CellDevice, get_device
from nvcim.devices.ageing import drift_exponents, drifted, relaxation_spread, relaxed, retained
from nvcim.devices.conductance import to_siemens
from nvcim.errors import ConfigError

MakeCell = Callable[..., CellDevice]
DRIFT = {"t0_s": 20.0, "exponent_mean": [0.01, 0.02, 0.03, 0.06], "exponent_sd": [0.002]}


def grid(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_drift_is_a_power_law_in_siemens(make_cell: MakeCell) -> None:
    # 60 uS, exponent 0.5, at 4 t0: halved to 30 uS, which is 0.2 of the range above 10 uS. 10 uS falls below g_min.
    cell = make_cell(drift=DRIFT)
    later = drifted(grid(0.5, 0.0), grid(0.5, 0.5), 60.0, cell)
    assert later.tolist() == pytest.approx([0.2, -0.05])


def test_time_may_differ_from_device_to_device(make_cell: MakeCell) -> None:
    cell = make_cell(drift=DRIFT)
    times = torch.tensor([[0.0], [60.0]], dtype=torch.float64)
    later = drifted(grid(0.5, 0.5).expand(2, 2), grid(0.5, 0.0).expand(2, 2), times, cell)
    assert later.flatten().tolist() == pytest.approx([0.5, 0.5, 0.2, 0.5])


def test_exponents_follow_the_level_that_was_written(make_cell: MakeCell) -> None:
    cell = make_cell(drift=DRIFT)
    levels = grid(0.0, 1 / 3, 2 / 3, 1.0)
    assert drift_exponents(levels, cell, torch.zeros(4, dtype=torch.float64)).tolist() == pytest.approx(
        DRIFT["exponent_mean"]
    )
    draws = drift_exponents(levels, cell, grid(1, -1, 2, -2))
    assert draws.tolist() == pytest.approx([0.012, 0.018, 0.034, 0.056])


def test_pcm_exponents_are_the_published_law() -> None:
    # mean: at g_max 0.0244, held at 0.049; at 0.1: 0.0155 ln 10 + 0.0244 = 0.0600901; at 1e-3: 0.13147, held at 0.1.
    # sd: at g_max -0.0059, held at 0.008; at 0.1: 0.0125 ln 10 - 0.0059 = 0.0228823; at 1e-3: 0.0805, held at 0.045.
    cell, at = get_device("PCM_Joshi2020"), grid(1.0, 0.1, 1e-3, 0.0)
    mean = drift_exponents(at, cell, torch.zeros(4, dtype=torch.float64))
    assert mean.tolist() == pytest.approx([0.049, 0.0600901, 0.1, 0.1], abs=1e-7)
    sd = drift_exponents(at, cell, torch.ones(4, dtype=torch.float64)) - mean
    assert sd.tolist() == pytest.approx([0.008, 0.0228823, 0.045, 0.045], abs=1e-7)


def test_pcm_spread_is_the_published_polynomial() -> None:
    # sigma in uS: x = 0: 0.26348; x = 0.2: 0.26348 + 0.393 - 0.046924 = 0.609556; x = 0.6: 0.26348 + 1.179 - 0.422316
    # = 1.020164; x = 1: 1.05538. Over 25 uS, at the levels 0, 51, 153 and 255 of 255.
    cell = get_device("PCM_Joshi2020")
    found = [cell.level_sigma[level] * 25 for level in (0, 51, 153, 255)]
    assert found == pytest.approx([0.26348, 0.609556, 1.020164, 1.05538], rel=1e-9)
    assert cell.sigma_at(0.01) == pytest.approx(cell.level_sigma)


def test_rram_spread_agrees_with_another_fit_of_the_same_measurement() -> None:
    # CrossSim (Sandia), simulator/devices/custom/RRAM_Wan.py: cubic in uS, fitted to the same figure, up to 39.26 uS.
    cell = get_device("RRAM_Wan2022")
    gaps = []
    for level, sigma in zip(cell.level_conductance, cell.level_sigma, strict=True):
        g = 40 * level
        cubic = 1.536e-4 * g**3 - 1.167e-2 * g**2 + 2.374e-1 * g + 1.053
        gaps.append(abs(40 * sigma - cubic))
    assert max(gaps[:251]) < 0.71  # level 250 is 39.2 uS
    assert max(gaps[26:251]) < 0.53  # from 4 uS on, where the spreads are 1.2 to 2.3 uS


def test_rram_relaxation_at_the_measured_times() -> None:
    # At x = 0.5, uS: 2.023 at 1 s, 3.909 at 1 day: sqrt(3.909^2 - 2.0229375^2) = 3.344848 uS of 40.
    cell, at = get_device("RRAM_Wan2022"), grid(0.5)
    day = relaxation_spread(at, 86399.0, cell)
    assert day.tolist() == pytest.approx([3.344848 / 40], rel=1e-6)
    # Half-way in ln t between 1 s and 1 day: half of it.
    assert relaxation_spread(at, math.sqrt(86400) - 1, cell).tolist() == pytest.approx([float(day) / 2])
    moved = relaxed(at, at, grid(-2.0), 86399.0, cell)
    assert moved.tolist() == pytest.approx([0.5 - 2 * 3.344848 / 40], rel=1e-6)


def test_retention_loses_its_share_per_decade(make_cell: MakeCell) -> None:
    # 60 uS, 5 % per decade, t = 1000 t0: 15 % less, 51 uS.
    cell = make_cell(retention={"t0_s": 1.0, "loss_per_decade": [0.05]})
    assert retained(grid(0.5), 999.0, cell).tolist() == pytest.approx([0.41])
    per_level = make_cell(retention={"t0_s": 1.0, "loss_per_decade": [0.0, 0.0, 0.0, 0.1]})
    assert retained(grid(0.0, 1.0), 9.0, per_level).tolist() == pytest.approx([0.0, 0.89])


def test_retention_ends_at_zero_siemens(make_cell: MakeCell) -> None:
    cell = make_cell(retention={"t0_s": 1.0, "loss_per_decade": [0.5]})
    assert to_siemens(retained(grid(0.5), 1e9, cell), cell).tolist() == pytest.approx([0], abs=1e-18)


@pytest.mark.parametrize("elapsed", [-1.0, float("nan")])
def test_going_back_in_time_is_refused(make_cell: MakeCell, elapsed: float) -> None:
    cell = make_cell(drift=DRIFT, retention={"t0_s": 1.0, "loss_per_decade": [0.5]})
    with pytest.raises(ConfigError, match="elapsed_s must not be negative"):
        drifted(grid(0.5), grid(0.1), elapsed, cell)
    with pytest.raises(ConfigError, match="elapsed_s must not be negative"):
        retained(grid(0.5), elapsed, cell)
    with pytest.raises(ConfigError, match="elapsed_s must not be negative"):
        relaxation_spread(grid(0.5), elapsed, get_device("RRAM_Wan2022"))


def test_drift_statistics_recover_the_exponent_by_regression() -> None:
    # Each cell's G(t) is read at ten times; the slope of ln G over ln t is its exponent exactly. Over 50,000 cells at
    # g_max (mean 0.049, sd 0.008, negative draws beyond six sd) the mean of the slopes strays by 0.008 / sqrt(50000),
    # their sd by 0.008 / sqrt(100000); six of these are a chance of 2e-9.
    cell, cells = get_device("PCM_Joshi2020"), 50_000
    written = torch.ones(cells, dtype=torch.float64)
    exponents = drift_exponents(written, cell, normals(cells))
    elapsed = torch.logspace(0, 7, 10, dtype=torch.float64)[:, None]
    log_g = to_siemens(drifted(written.expand(10, -1), exponents, elapsed, cell), cell).log()
    log_t = torch.log((elapsed + 20) / 20)
    centred = log_t - log_t.mean()
    slopes = -(centred * log_g).sum(0) / centred.square().sum()
    assert torch.allclose(slopes, exponents, atol=1e-12)
    assert float(slopes.mean()) == pytest.approx(0.049, abs=6 * 0.008 / math.sqrt(cells))
    assert float(slopes.std()) == pytest.approx(0.008, abs=6 * 0.008 / math.sqrt(2 * cells))


def test_relaxation_statistics_reach_the_published_spread() -> None:
    # A write's spread and relaxation's, drawn independently, make up the spread after two days: at 20 uS 3.929 uS.
    # 200,000 cells: six standard errors of a deviation are 6 / sqrt(400000) = 0.95 %, a chance of 2e-9.
    cell, cells = get_device("RRAM_Wan2022"), 200_000
    target = torch.full((cells,), 0.5, dtype=torch.float64)
    written = target + 2.0229375 / 40 * normals(cells, seed=1)
    aged = relaxed(written, target, normals(cells, seed=2), 172799.0, cell)
    expected = (0.782 + 20.274 / 2 - 43.507 / 4 + 37.062 / 8 - 11.934 / 16) / 40
    assert float(aged.std()) == pytest.approx(expected, rel=6 / math.sqrt(2 * cells))
