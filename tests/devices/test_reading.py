"""Read noise against closed forms: 4 k T G df, 2 q I df, and the 1/f law of Joshi et al. (2020)."""

import math
from collections.abc import Callable

import pytest
import torch

from nvcim.config import parse_settings
from nvcim.devices import CellDevice, get_device
from nvcim.devices.conductance import to_siemens
from nvcim.devices.reading import ReadCondition, read_variance
from nvcim.errors import ConfigError

MakeCell = Callable[..., CellDevice]
GRID = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
SIEMENS = [1e-5, 6e-5, 1.1e-4]
RANGE = 1e-4


def test_thermal_noise_is_4kTG_per_hertz(make_cell: MakeCell) -> None:
    # At a nanovolt the shot noise, 2qGV df, vanishes beside it.
    volt, hertz = 1e-9, 1e3
    condition = ReadCondition(voltage_v=volt, bandwidth_hz=hertz, temperature_k=350)
    current_variance = read_variance(GRID, make_cell(), condition) * RANGE**2 * volt**2
    expected = [4 * 1.380649e-23 * 350 * siemens * hertz for siemens in SIEMENS]
    assert current_variance.tolist() == pytest.approx(expected, rel=1e-6)


def test_shot_noise_is_2qI_per_hertz(make_cell: MakeCell) -> None:
    volt, hertz = 0.2, 1e7
    cold = ReadCondition(voltage_v=volt, bandwidth_hz=hertz, temperature_k=1e-9)
    current_variance = read_variance(GRID, make_cell(), cold) * RANGE**2 * volt**2
    expected = [2 * 1.602176634e-19 * siemens * volt * hertz for siemens in SIEMENS]
    assert current_variance.tolist() == pytest.approx(expected, rel=1e-6)


def test_thermal_and_shot_noise_of_a_usual_read_add_up(make_cell: MakeCell) -> None:
    # 60 uS, 0.2 V, 10 MHz, 300 K: 4kTG df = 9.9407e-18 A^2, 2qI df = 3.8452e-17 A^2; together 6.956 nA of 12 uA.
    condition = ReadCondition(voltage_v=0.2, bandwidth_hz=1e7)
    sigma = float(read_variance(GRID, make_cell(), condition)[1].sqrt()) * RANGE * 0.2
    assert sigma == pytest.approx(6.9565e-9, rel=1e-4)


def test_float32_keeps_the_tiny_variance_of_physical_noise(make_cell: MakeCell) -> None:
    condition = ReadCondition(voltage_v=1.0, bandwidth_hz=1.0)
    single = read_variance(GRID.float(), make_cell(), condition)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(read_variance(GRID, make_cell(), condition).tolist(), rel=1e-5)


def test_flat_terms_are_of_the_conductance_and_of_the_range(make_cell: MakeCell) -> None:
    cell = make_cell()
    relative = read_variance(GRID, cell, ReadCondition(relative=0.03)).sqrt() * RANGE
    assert relative.tolist() == pytest.approx([0.03 * siemens for siemens in SIEMENS])
    assert read_variance(GRID, cell, ReadCondition(full_range=0.02)).sqrt().tolist() == pytest.approx(
        [0.02] * 3
    )
    both = read_variance(GRID, cell, ReadCondition(relative=0.03, full_range=0.02))
    assert both.tolist() == pytest.approx([(0.03 * g / RANGE) ** 2 + 0.02**2 for g in SIEMENS])


def test_relative_noise_of_a_cell_without_siemens_is_of_the_normalised_conductance() -> None:
    variance = read_variance(GRID, get_device("FeFET2"), ReadCondition(relative=0.1))
    assert variance.tolist() == pytest.approx([0, 0.0025, 0.01])


def test_flicker_noise_per_level_grows_with_the_logarithm_of_time(make_cell: MakeCell) -> None:
    # t0 = t_read: ln((t + t_read) / (2 t_read)) is 0 at the start and 4 at t = (2 e^4 - 1) t_read.
    noise = {"coefficient": [0.1, 0.2, 0.3, 0.4], "t_read_s": 1.0, "t0_s": 1.0}
    cell = make_cell(read_noise=noise)
    assert read_variance(GRID, cell, ReadCondition()).tolist() == pytest.approx([0, 0, 0], abs=1e-30)
    late = ReadCondition(elapsed_s=2 * math.exp(4) - 2)
    expected = [2 * q * g / RANGE for q, g in zip([0.1, 0.25, 0.4], SIEMENS, strict=True)]
    assert read_variance(GRID, cell, late).sqrt().tolist() == pytest.approx(expected)


def test_flicker_noise_of_pcm_is_the_published_law() -> None:
    # 25 uS: Q = 0.0088, ln((20 + 2.5e-7) / 5e-7) = 17.50439; 0.0088 * sqrt(17.50439) = 3.68178 %.
    # 2.5 uS: Q = 0.0088 * 10^0.65 = 0.0393082; of a tenth of the range 16.4459 %.
    # 0.025 uS: the law says 0.783, the cap 0.2; of a thousandth of the range 83.676 %.
    cell = get_device("PCM_Joshi2020")
    grid = torch.tensor([1.0, 0.1, 0.001, 0.0], dtype=torch.float64)
    sigma = read_variance(grid, cell, ReadCondition()).sqrt()
    assert sigma.tolist() == pytest.approx([0.0368178, 0.1 * 0.164459, 0.001 * 0.836765, 0.0], rel=1e-5)


def test_flicker_coefficient_can_be_taken_at_what_was_written() -> None:
    cell, grid = get_device("PCM_Joshi2020"), torch.tensor([0.5], dtype=torch.float64)
    written = torch.tensor([1.0], dtype=torch.float64)
    sigma = read_variance(grid, cell, ReadCondition(), written).sqrt()
    assert sigma.tolist() == pytest.approx([0.5 * 0.0368178], rel=1e-5)


def test_read_statistics_are_those_of_the_variance(make_cell: MakeCell) -> None:
    # 200,000 draws: the sample deviation strays by 1 / sqrt(2 * 200000) = 0.158 %; six of these are a chance of 2e-9.
    cell, draws = make_cell(), 200_000
    grid = torch.full((draws,), 0.5, dtype=torch.float64)
    condition = ReadCondition(voltage_v=0.1, bandwidth_hz=1e6)
    normals = torch.randn(draws, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    currents = 0.1 * to_siemens(grid + read_variance(grid, cell, condition).sqrt() * normals, cell)
    expected = math.sqrt((4 * 1.380649e-23 * 300 * 6e-5 + 2 * 1.602176634e-19 * 6e-6) * 1e6)
    assert float(currents.std()) == pytest.approx(expected, rel=6 / math.sqrt(2 * draws))
    assert float(currents.mean()) == pytest.approx(6e-6, abs=6 * expected / math.sqrt(draws))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"voltage_v": 0.2}, "need both voltage_v and bandwidth_hz"),
        ({"bandwidth_hz": 1e6}, "need both voltage_v and bandwidth_hz"),
        ({"voltage_v": 0, "bandwidth_hz": 1e6}, "'voltage_v'.*greater than 0"),
        ({"relative": -0.1}, "'relative'.*greater than or equal to 0"),
        ({"full_range": float("nan")}, "'full_range'.*finite"),
        ({"elapsed_s": -1}, "'elapsed_s'"),
        ({"temperature_k": 0}, "'temperature_k'"),
        ({"voltage": 0.2}, "unknown field 'voltage'.*did you mean 'voltage_v'"),
    ],
)
def test_impossible_reads_are_refused(content: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_settings(content, ReadCondition, source="read")
