"""What holds for every device of the catalogue, whatever it is."""

import math
from itertools import pairwise

import pytest
import torch

from nvcim.devices import EFFECTS, CellDevice, load_catalogue
from nvcim.devices.ageing import drift_exponents, drifted, relaxation_spread, relaxed, retained
from nvcim.devices.conductance import at_temperature, from_siemens, to_siemens
from nvcim.devices.reading import ReadCondition, read_variance
from nvcim.errors import ConfigError

EVERY = pytest.mark.parametrize("cell", load_catalogue().values(), ids=lambda cell: cell.name)
READ = {"voltage_v": 0.2, "bandwidth_hz": 1e7}


def conductances() -> torch.Tensor:
    return torch.linspace(0, 1, 101)


def normals() -> torch.Tensor:
    return torch.randn(101, generator=torch.Generator().manual_seed(5))


@EVERY
def test_levels_rise_and_sigmas_are_finite(cell: CellDevice) -> None:
    assert len(cell.level_sigma) == len(cell.level_conductance) == cell.levels == 2**cell.bits
    assert all(low < high for low, high in pairwise(cell.level_conductance))
    assert all(math.isfinite(sigma) and 0 <= sigma < 0.1 for sigma in cell.level_sigma)


@EVERY
def test_sigma_is_linear_in_the_global_sigma(cell: CellDevice) -> None:
    assert cell.sigma_at(0.01) == pytest.approx(cell.level_sigma)
    assert cell.sigma_at(0.07) == pytest.approx([7 * sigma for sigma in cell.level_sigma])
    assert set(cell.sigma_at(0.0)) == {0.0}


@EVERY
def test_every_value_has_a_source(cell: CellDevice) -> None:
    assert len(cell.source) > 20
    assert set(cell.sources) == {field for field in EFFECTS if getattr(cell, field) is not None}


@EVERY
def test_a_device_survives_a_round_trip(cell: CellDevice) -> None:
    assert CellDevice.model_validate(cell.model_dump()) == cell
    assert CellDevice.model_validate_json(cell.model_dump_json()) == cell


@EVERY
def test_read_variance_is_never_negative(cell: CellDevice) -> None:
    grid = torch.linspace(-0.2, 1.2, 141)  # writes land beside the range, too
    flat = read_variance(grid, cell, ReadCondition(relative=0.01, full_range=0.001))
    assert bool((flat >= 1e-6 * (1 - 1e-6)).all())
    assert bool((read_variance(grid, cell, ReadCondition()) >= 0).all())


@EVERY
def test_physical_noise_needs_siemens(cell: CellDevice) -> None:
    condition = ReadCondition.model_validate(READ)
    if cell.g_max is None:
        with pytest.raises(ConfigError, match=rf"device {cell.name}: g_min and g_max are unknown"):
            read_variance(conductances(), cell, condition)
        with pytest.raises(ConfigError, match="g_min and g_max are unknown"):
            to_siemens(conductances(), cell)
    else:
        quiet = read_variance(conductances(), cell, ReadCondition())
        loud = read_variance(conductances(), cell, condition)
        assert bool((loud[1:] > quiet[1:]).all())
        back = from_siemens(to_siemens(conductances(), cell), cell)
        assert torch.allclose(back, conductances(), atol=1e-6)


@EVERY
def test_drift_never_raises_a_conductance_and_retention_neither(cell: CellDevice) -> None:
    grid = conductances()
    if cell.drift is None:
        with pytest.raises(ConfigError, match=f"device {cell.name}: drift is unknown"):
            drifted(grid, torch.zeros_like(grid), 1.0, cell)
    else:
        exponents = drift_exponents(grid, cell, normals() * 5)  # draws far beyond any that will be seen
        before = grid
        for elapsed in (0.0, 1.0, 3600.0, 3e7):
            after = drifted(grid, exponents, elapsed, cell)
            assert bool((after <= before).all())
            before = after
        assert torch.equal(drifted(grid, exponents, 0.0, cell), grid)
    if cell.retention is None:
        with pytest.raises(ConfigError, match="retention is unknown"):
            retained(grid, 1.0, cell)
    else:
        assert bool((retained(grid, 3600.0, cell) <= grid).all())


@EVERY
def test_relaxation_only_spreads_and_more_with_time(cell: CellDevice) -> None:
    grid = conductances()
    if cell.relaxation is None:
        with pytest.raises(ConfigError, match="relaxation is unknown"):
            relaxed(grid, grid, normals(), 1.0, cell)
        return
    assert torch.equal(relaxed(grid, grid, normals(), 0.0, cell), grid)
    before = torch.zeros_like(grid)
    for elapsed in (1.0, 3600.0, 86399.0, 1e5, 172799.0, 1e9):
        after = relaxation_spread(grid, elapsed, cell)
        assert bool((after >= before - 1e-7).all())
        before = after
    assert torch.allclose(before, relaxation_spread(grid, 172799.0, cell))


@EVERY
def test_temperature_is_known_or_refused(cell: CellDevice) -> None:
    if cell.temperature is None:
        with pytest.raises(ConfigError, match="temperature is unknown"):
            at_temperature(conductances(), 350.0, cell)
    else:
        reference = at_temperature(conductances(), cell.temperature.reference_k, cell)
        assert torch.allclose(reference, conductances(), atol=1e-6)
