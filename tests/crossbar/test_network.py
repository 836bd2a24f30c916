"""Non-linear cells and input-gated rows: which path serves them, and what it gives."""

from pathlib import Path

import pytest
import torch

from nvcim.config import parse_settings
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.nonlinear import SinhCell, rows_on, solve_currents
from nvcim.errors import ConfigError

WIRES = {"r_word_ohm": 5.0, "r_bit_ohm": 5.0}
BASE = {"sigma": 0.0, "weight_bits": 3, "g_min_us": 1.0, "g_max_us": 100.0, "rows": 8, "cols": 4}
IDEAL = {"dac_bits": None, "adc_bits": None}


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(
        "devices:\n  - {name: Sinh, technology: RRAM, bits: 2, source: test, level_sigma: 0.01, g_min: 1.0e-6,"
        " g_max: 1.0e-4, v0: 0.25, sources: {v0: test}}\n",
        encoding="utf-8",
    )
    return path


def programmed(**settings: object) -> Crossbar:
    config = parse_settings({**BASE, **settings}, CrossbarConfig, "test")
    weight = torch.randn(13, 6, generator=torch.Generator().manual_seed(0))
    return Crossbar.program(weight, config, torch.Generator().manual_seed(1))


def inputs() -> torch.Tensor:
    x = torch.randn(5, 13, generator=torch.Generator().manual_seed(2))
    x[:, 3] = 0
    x[2, 5:] = 0
    return x


def test_gating_does_nothing_behind_ideal_wires() -> None:
    x = inputs()
    gated = programmed(gated_rows=True, **IDEAL)
    assert gated.read_method == "matrix product"
    assert torch.equal(gated.matmul(x), programmed(**IDEAL).matmul(x))


def test_a_gated_array_equals_one_without_its_idle_rows() -> None:
    # A row that no input drives hangs on the bit lines as a load unless it is cut off.
    x = inputs()
    gated = programmed(wires=WIRES, gated_rows=True, device="RRAM4", **IDEAL)
    plain = programmed(wires=WIRES, device="RRAM4", **IDEAL)
    assert gated.read_method.startswith("iterative solver, because the inputs connect")
    assert "effective matrix (exact)" in plain.read_method
    busy = torch.ones(1, 13)
    assert torch.allclose(gated.matmul(busy), plain.matmul(busy), rtol=1e-3, atol=1e-4)
    difference = (gated.matmul(x) - plain.matmul(x)).abs().max()
    assert float(difference) > 1e-3


def test_sinh_cells_behind_ideal_wires_are_a_product_of_sinh(catalogue: Path) -> None:
    crossbar = programmed(
        device="Sinh", catalogue=catalogue, cell_current="device", read_voltage_v=0.5, **IDEAL
    )
    x = inputs()
    unit = x.abs().amax(dim=-1, keepdim=True) / 0.5
    expected = torch.sinh(x / unit / 0.25) * 0.25 * unit @ crossbar.read_weight()
    assert crossbar.read_method == "matrix product of sinh(V / v0)"
    assert torch.allclose(crossbar.matmul(x), expected, rtol=1e-3, atol=1e-3)


def test_small_voltages_see_linear_cells(catalogue: Path) -> None:
    own = {"device": "Sinh", "catalogue": catalogue, "wires": WIRES, **IDEAL}
    bent = programmed(**own, cell_current="device", read_voltage_v=0.001)
    x = inputs()
    assert torch.allclose(bent.matmul(x), programmed(**own).matmul(x), rtol=1e-3, atol=1e-3)


def test_sinh_cells_behind_wires_equal_the_solver_plane_by_plane(catalogue: Path) -> None:
    crossbar = programmed(
        device="Sinh", catalogue=catalogue, cell_current="device", read_voltage_v=0.5, wires=WIRES, **IDEAL
    )
    x, span = inputs(), 99e-6
    volts = x / x.abs().amax(dim=-1, keepdim=True) * 0.5
    cells = crossbar.cells().conductance[0].double() * span + 1e-6
    scale = float(torch.randn(13, 6, generator=torch.Generator().manual_seed(0)).abs().max()) / 3
    expected = torch.zeros(5, 6, dtype=torch.float64)
    for plane, sign in ((0, 1), (1, -1)):
        for rows in (slice(0, 8), slice(8, 13)):
            for columns in (slice(0, 4), slice(4, 6)):
                solved = solve_currents(
                    cells[plane, rows, columns],
                    volts[:, rows].double(),
                    crossbar.config.wires,
                    iv=SinhCell(v0=0.25),
                )
                expected[:, columns] += sign * solved.currents
    expected = expected / span / 0.5 * x.abs().amax(dim=-1, keepdim=True) * 3 * scale
    assert "iterative solver, because the cells are not linear" in crossbar.read_method
    assert torch.allclose(crossbar.matmul(x).double(), expected, rtol=1e-3, atol=1e-3)


def test_a_stack_of_circuits_reads_as_its_members() -> None:
    members = [programmed(wires=WIRES, gated_rows=True, device="RRAM4") for _ in range(2)]
    again = [programmed(wires=WIRES, gated_rows=True, device="RRAM4") for _ in range(2)]
    x = inputs()
    stacked = Crossbar.stack(members).matmul(x)
    assert torch.allclose(stacked, torch.stack([one.matmul(x) for one in again]), rtol=1e-4, atol=1e-4)


def test_rows_on_are_those_with_an_input() -> None:
    assert rows_on(torch.tensor([[0.0, 1.0, -2.0]])).tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"cell_current": "device"}, "cell_current device needs read_voltage_v"),
        ({"gated_rows": True, "read_mode": "cell"}, "read_mode cell is for linear cells"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        programmed(**settings)


def test_a_device_without_a_curve_is_refused() -> None:
    with pytest.raises(ConfigError, match="cell_current: device needs a cell with v0; FeFET2 has none"):
        programmed(cell_current="device", read_voltage_v=0.2).matmul(inputs())


def sinh_cells(catalogue: Path, **fields: object) -> Crossbar:
    own = {"device": "Sinh", "catalogue": catalogue, "cell_current": "device", "read_voltage_v": 0.5}
    config = parse_settings({**BASE, "rows": 64, "cols": 32, **own, **fields}, CrossbarConfig, "test")
    weight = torch.rand(64, 32, generator=torch.Generator().manual_seed(0))
    return Crossbar.program(weight, config, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scaling", ["full", "norm", "calibrated"])
def test_adc_ranges_know_what_non_linear_cells_conduct(catalogue: Path, scaling: str) -> None:
    crossbar = sinh_cells(catalogue, adc_scaling=scaling)
    x = torch.rand(50, 64, generator=torch.Generator().manual_seed(2))
    if scaling == "calibrated":
        crossbar.calibrate(x, percentile=100)
    crossbar.matmul(x)
    assert crossbar.counts.adc_reads == 50 * 32
    assert crossbar.counts.adc_clipped == 0


@pytest.mark.parametrize("noise", [{"read_noise": 0.05}, {"read_noise_floor": 0.05}])
def test_statistics_of_read_noise_follow_the_current_of_non_linear_cells(
    catalogue: Path, noise: dict[str, float]
) -> None:
    crossbar = sinh_cells(catalogue, **IDEAL, **noise)
    x = torch.rand(1, 64, generator=torch.Generator().manual_seed(2))
    unit = float(x.max()) / 0.5
    current = torch.sinh(x / unit / 0.25) * 0.25 * unit
    cells = crossbar.cells().conductance[0] + 1 / 99  # above zero siemens, in units of the range
    scale = float(torch.rand(64, 32, generator=torch.Generator().manual_seed(0)).max()) / 3
    spread = cells * noise["read_noise"] if "read_noise" in noise else torch.full_like(cells, 0.05)
    sigma = (current.square() @ spread.square().sum(dim=0)).sqrt() * 3 * scale
    found = crossbar.matmul(x.expand(20_000, 64)).std(dim=0)
    # 32 sample deviations of 20,000 reads, each within 6 of its standard errors, 1 / sqrt(2 n)
    assert bool(((found / sigma - 1).abs() < 6 / 40_000**0.5).all())


def test_circuits_with_other_wires_are_not_stacked() -> None:
    thick, thin = (
        programmed(wires={"r_word_ohm": r, "r_bit_ohm": r}, gated_rows=True, device="RRAM4")
        for r in (1.0, 100.0)
    )
    with pytest.raises(ConfigError, match="can be stacked only if their cells are alike"):
        Crossbar.stack([thick, thin])
