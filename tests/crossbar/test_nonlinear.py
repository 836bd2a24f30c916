import pytest
import torch

from nvcim.config import parse_settings
from nvcim.crossbar import nonlinear
from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.nonlinear import SinhCell, rows_on, solve_currents
from nvcim.crossbar.wires import Wires
from nvcim.errors import ConfigError

WIRES = Wires(r_word_ohm=5, r_bit_ohm=3, r_driver_ohm=100, r_sense_ohm=20)


def cells(*shape: int, seed: int = 0) -> torch.Tensor:
    """Conductances between 1 and 100 microsiemens."""
    draw = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1 + 99 * draw) * 1e-6


def inputs(*shape: int, volts: float = 0.3) -> torch.Tensor:
    """Voltages of both signs, a third of them zero."""
    draw = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return torch.where(draw < 1 / 3, 0.0, volts * (2 * draw - 1))


def worst(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest error relative to the largest value."""
    return float((result - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("sense", ["bottom", "top", "both"])
@pytest.mark.parametrize("drive", ["left", "right", "both"])
def test_linear_cells_give_the_effective_matrix(drive, sense):
    wires = WIRES.model_copy(update={"drive": drive, "sense": sense})
    conductance, volts = cells(20, 13), inputs(6, 20)
    found = solve_currents(conductance, volts, wires)
    assert worst(found.currents, volts @ effective_conductance(conductance, wires)) < 1e-9


@pytest.mark.parametrize(
    "ohms", [(0, 0, 0, 0), (0, 4, 0, 0), (4, 0, 0, 30), (0, 0, 500, 100), (300, 300, 0, 0)]
)
def test_linear_cells_give_the_effective_matrix_at_zero_and_large_resistances(ohms):
    names = ("r_word_ohm", "r_bit_ohm", "r_driver_ohm", "r_sense_ohm")
    wires = Wires(**dict(zip(names, ohms, strict=True)), drive="both")
    conductance, volts = cells(24, 40), inputs(3, 24)
    found = solve_currents(conductance, volts, wires)
    assert worst(found.currents, volts @ effective_conductance(conductance, wires)) < 1e-9


def test_gated_rows_agree_with_one_exact_solve_per_vector():
    conductance, volts = cells(2, 24, 16), inputs(2, 5, 24)
    found = solve_currents(conductance, volts, WIRES, gated=rows_on(volts)).currents
    for tile in range(2):
        for vector in range(5):
            x = volts[tile, vector]
            alone = x @ effective_conductance(conductance[tile] * (x != 0)[:, None], WIRES)
            assert worst(found[tile, vector], alone) < 1e-9
    connected = solve_currents(conductance, volts, WIRES).currents
    assert worst(found, connected) > 1e-3


def test_tiny_voltages_make_sinh_cells_linear():
    conductance, volts = cells(16, 16), inputs(4, 16, volts=1e-6)
    found = solve_currents(conductance, volts, WIRES, iv=SinhCell(v0=0.2)).currents
    assert worst(found, volts @ effective_conductance(conductance, WIRES)) < 1e-9


def test_ideal_wires_give_the_cells_own_currents():
    conductance, volts = cells(9, 7), inputs(4, 9)
    ideal = Wires(r_word_ohm=0, r_bit_ohm=0)
    found = solve_currents(conductance, volts, ideal, iv=SinhCell(v0=0.1)).currents
    expected = (conductance * 0.1 * torch.sinh(volts[..., None] / 0.1)).sum(-2)
    assert worst(found, expected) < 1e-12


def test_one_cell_agrees_with_a_scalar_root():
    """One cell in series with all four resistances: V + R I(V) = x, by bisection."""
    g, v0, x, ohm = 1e-4, 0.05, 0.4, 5 + 3 + 100 + 20
    low, high = 0.0, x
    for _ in range(200):
        middle = (low + high) / 2
        current = g * v0 * float(torch.sinh(torch.tensor(middle / v0, dtype=torch.float64)))
        low, high = (middle, high) if middle + ohm * current < x else (low, middle)
    tensor = {"dtype": torch.float64}
    found = solve_currents(
        torch.tensor([[g]], **tensor), torch.tensor([[x]], **tensor), WIRES, iv=SinhCell(v0=v0)
    )
    assert float(found.currents) == pytest.approx(current, rel=1e-9)


def test_a_strongly_nonlinear_array_converges_and_satisfies_kirchhoff():
    conductance, volts = cells(32, 32), inputs(4, 32, volts=0.5)
    iv = SinhCell(v0=0.03)
    found = solve_currents(conductance, volts, WIRES.model_copy(update={"r_word_ohm": 50.0}), iv=iv)
    assert found.residual <= 1e-11
    assert 2 <= found.iterations <= 40
    # The drop of a cell cannot exceed the span of the inputs, and the currents follow from the drops.
    assert found.drops.abs().max() <= volts.max() - volts.min()
    assert worst(iv(conductance, found.drops)[0].sum(-2), found.currents) < 1e-12


def test_a_warm_start_saves_steps_and_changes_nothing():
    conductance, volts = cells(20, 20), inputs(3, 20, volts=0.4)
    iv = SinhCell(v0=0.06)
    cold = solve_currents(conductance, volts, WIRES, iv=iv)
    again = solve_currents(conductance, volts, WIRES, iv=iv, start=cold.drops)
    near = solve_currents(conductance, volts * 1.001, WIRES, iv=iv, start=cold.drops)
    assert again.iterations == 0
    assert near.iterations < cold.iterations
    assert worst(again.currents, cold.currents) < 1e-12


def test_a_vector_does_not_depend_on_its_companions_or_the_chunk(monkeypatch):
    conductance, volts = cells(3, 8, 6), inputs(3, 5, 8, volts=0.4)
    iv = SinhCell(v0=0.1)
    together = solve_currents(conductance, volts, WIRES, iv=iv, gated=rows_on(volts)).currents
    monkeypatch.setattr(nonlinear, "CHUNK_CELLS", 100)
    parts = solve_currents(conductance, volts, WIRES, iv=iv, gated=rows_on(volts)).currents
    alone = solve_currents(conductance[1], volts[1, 2:3], WIRES, iv=iv, gated=rows_on(volts[1, 2:3])).currents
    assert worst(parts, together) < 1e-11
    assert worst(alone[0], together[1, 2]) < 1e-11


def test_float32_follows_float64():
    conductance, volts = cells(32, 32), inputs(4, 32)
    iv = SinhCell(v0=0.1)
    double = solve_currents(conductance, volts, WIRES, iv=iv).currents
    single = solve_currents(conductance.float(), volts.float(), WIRES, iv=iv)
    assert single.currents.dtype == torch.float32
    assert worst(single.currents.double(), double) < 1e-4


def test_zero_inputs_give_zero_currents():
    found = solve_currents(cells(4, 5), torch.zeros(2, 4, dtype=torch.float64), WIRES, iv=SinhCell(v0=0.1))
    assert torch.equal(found.currents, torch.zeros(2, 5, dtype=torch.float64))


def test_no_convergence_is_said_with_the_residual():
    with pytest.raises(ConfigError, match=r"did not converge in 1 steps, residual \S+; tolerance is 1e-11"):
        solve_currents(cells(8, 8), inputs(2, 8), WIRES, iv=SinhCell(v0=0.02), max_iterations=1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"conductance": -cells(4, 3)}, "at least 0 siemens"),
        ({"voltages": inputs(2, 3)}, "voltages: expected"),
        ({"voltages": inputs(2, 4).float()}, "voltages: expected torch.float64"),
        ({"voltages": inputs(2, 4) / 0}, "voltages: every value must be finite"),
        ({"gated": torch.ones(2, 4)}, "gated: expected bool"),
        ({"start": torch.zeros(2, 3, 4, dtype=torch.float64)}, "start: expected"),
        ({"tolerance": 0.0}, "tolerance: must be"),
        ({"max_iterations": 0}, "max_iterations: must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, complaint):
    arguments = {"conductance": cells(4, 3), "voltages": inputs(2, 4)} | change
    with pytest.raises(ConfigError, match=complaint):
        solve_currents(arguments.pop("conductance"), arguments.pop("voltages"), WIRES, **arguments)


@pytest.mark.parametrize("v0", [0, -1, float("inf")])
def test_an_impossible_cell_is_refused(v0):
    with pytest.raises(ConfigError, match="v0"):
        parse_settings({"v0": v0}, SinhCell, source="cell")
