"""Stuck cells, arrays that lie apart from their design, and temperature."""

import math
from pathlib import Path

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig, programming
from nvcim.crossbar.programming import stuck_map
from tests.closeness import close


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def ideal(**fields: object) -> CrossbarConfig:
    base = {"device": "Ideal2", "sigma": 0.0, "weight_bits": 3, "dac_bits": None, "adc_bits": None}
    return CrossbarConfig.model_validate({**base, **fields})


@pytest.mark.parametrize(("on", "off"), [(0.01, 0.02), (0.3, 0.0), (0.0, 0.3), (0.5, 0.5)])
def test_statistics_of_stuck_cells_are_the_rates(on: float, off: float) -> None:
    crossbar = Crossbar.program(normal(2, 150, 100), ideal(stuck_on=on, stuck_off=off), generator())
    stuck = crossbar.cells().stuck
    assert stuck is not None
    count = stuck.numel()
    for kind, rate in ((1, on), (-1, off)):
        found = float((stuck == kind).double().mean())
        # 6 standard errors of a share: rarer than 1e-8
        assert abs(found - rate) <= 6 * math.sqrt(rate * (1 - rate) / count)


def test_statistics_of_stuck_cells_are_independent_over_planes_and_devices() -> None:
    stuck = stuck_map(torch.tensor([1, 2, 3]), torch.Size([3, 4, 100, 100]), 0.1, 0.1).double()
    correlation = torch.corrcoef(stuck.reshape(12, -1)) - torch.eye(12)
    assert float(correlation.abs().max()) < 6 / 100


@pytest.mark.parametrize(("on", "off", "kind"), [(1.0, 0.0, 1), (0.0, 1.0, -1)])
def test_all_cells_can_be_stuck(on: float, off: float, kind: int) -> None:
    assert bool((stuck_map(torch.arange(4), torch.Size([4, 2, 60, 60]), on, off) == kind).all())


def test_no_cell_is_stuck_off_at_a_rate_of_zero_whatever_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    # float32 rounds draws that lie within 3e-8 of 1 to 1
    monkeypatch.setattr(
        programming, "uniforms", lambda keys, purpose, index, count: torch.ones(len(keys), count)
    )
    shape = torch.Size([1, 1, 2, 2])
    assert not stuck_map(torch.arange(1), shape, 0.5, 0.0).any()
    assert bool((stuck_map(torch.arange(1), shape, 1.0, 0.0) == 1).all())


def test_stuck_cells_hold_the_ends_of_the_range_whatever_was_written() -> None:
    # one slice: a weight is 3 (positive - negative side); all on: both sides 1, all off: both 0
    weight = normal(20, 10)
    for rates in ({"stuck_on": 1.0}, {"stuck_off": 1.0}):
        assert not Crossbar.program(weight, ideal(**rates), generator()).read_weight().any()
    crossbar = Crossbar.program(weight, ideal(stuck_on=0.2, stuck_off=0.2), generator())
    cells = crossbar.cells()
    assert cells.stuck is not None
    held = torch.where(cells.stuck == 0, cells.levels / 3, (cells.stuck > 0).float())
    scale = float(weight.abs().max()) / 3
    assert close(crossbar.read_weight(), (held[:, 0] - held[:, 1])[0] * 3 * scale)


def test_a_chip_keeps_its_stuck_cells_over_rewrites_time_and_saving() -> None:
    config = ideal(device="PCM_Joshi2020", stuck_on=0.1, stuck_off=0.1, sigma=0.01)
    crossbar = Crossbar.program(normal(2, 20, 10), config, generator())
    first = crossbar.cells().stuck
    assert first is not None
    crossbar.rewrite(normal(2, 20, 10, seed=1))
    crossbar.age(1e6)
    again = Crossbar.from_state(crossbar.state_dict(), config).cells().stuck
    assert again is not None
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_more_faults_leave_those_there_were() -> None:
    few, many = (stuck_map(torch.arange(2), torch.Size([2, 2, 50, 50]), rate, 0.05) for rate in (0.05, 0.2))
    assert bool((many[few == 1] == 1).all())
    assert torch.equal(few == -1, many == -1)


def test_every_array_has_one_factor_of_its_own() -> None:
    # positive weights on one side: read / written is the factor of the array
    config = ideal(array_sigma=0.1, rows=8, cols=5, scheme="one_sided", accumulate="digital", weight_bits=5)
    weight = normal(2, 20, 12).abs() + 0.5
    crossbar = Crossbar.program(weight, config, generator())
    clean = Crossbar.program(weight, config.model_copy(update={"array_sigma": 0.0}), generator())
    ratio = crossbar.state_dict()["weight"] / clean.state_dict()["weight"]  # [devices, slices, in, out]
    factors = []
    for device in range(2):
        for index in range(2):
            for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):
                for columns in (slice(0, 5), slice(5, 10), slice(10, 12)):
                    tile = ratio[device, index, rows, columns]
                    tile = tile[~tile.isnan()]
                    assert torch.allclose(tile, tile[0].expand_as(tile), rtol=1e-4)
                    factors.append(round(float(tile[0]), 5))
    assert len(set(factors)) == len(factors) == 36


def test_statistics_of_array_factors_are_those_of_the_setting() -> None:
    config = ideal(array_sigma=0.1, rows=1, cols=1, scheme="one_sided")
    factors = Crossbar.program(torch.ones(150, 150), config, generator()).read_weight().double()
    assert abs(float(factors.mean()) - 1) < 6 * 0.1 / 150
    assert abs(float(factors.std()) - 0.1) < 6 * 0.1 / math.sqrt(2 * 150 * 150)


def test_process_variation_scales_what_leaks_as_well() -> None:
    # A pair at equal levels reads zero only if both sides' arrays are alike.
    config = ideal(array_sigma=0.1, g_min_us=10, g_max_us=50, rows=4)
    weight = torch.zeros(8, 3)
    weight[0, 0] = 1
    read = Crossbar.program(weight, config, generator()).read_weight()
    assert float(read[1:].abs().min()) > 0
    assert torch.allclose(read[1:4], read[1, 0].expand(3, 3), rtol=1e-4)
    assert torch.allclose(read[4:8], read[4, 0].expand(4, 3), rtol=1e-4)


def test_temperature_scales_the_conductance_of_each_level(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "devices:\n  - {name: Warm, technology: RRAM, bits: 2, source: test, level_sigma: 0, g_min: 1.0e-5, "
        "g_max: 5.0e-5, temperature: {coefficient_per_k: [0.004, 0.003, 0.002, 0.001], reference_k: 300}, "
        "sources: {temperature: test}}\n",
        encoding="utf-8",
    )
    weight = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    factors = torch.tensor([1.05, 1.1, 1.15, 1.2])  # 50 K more, at levels 3, 2, 1, 0
    for kelvin, expected in ((300, weight), (350, None)):
        config = ideal(device="Warm", catalogue=path, temperature_k=kelvin, scheme="one_sided")
        read = Crossbar.program(weight, config, generator()).read_weight()
        if expected is None:
            # siemens: 10 + 40 level / 3, warmed, less the g_min that the digital side takes off
            expected = ((10 + 40 * weight / 3) * factors - 10) / 40 * 3
        assert close(read, expected, 5e-6)
