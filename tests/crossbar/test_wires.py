import pytest
import torch

from nvcim.config import parse_settings
from nvcim.crossbar.effective import CHUNK_CELLS, effective_conductance
from nvcim.crossbar.wires import Wires
from nvcim.errors import ConfigError
from tests.crossbar.nodal import nodal_effective

DRIVES = ("left", "right", "both")
SENSES = ("bottom", "top", "both")


def cells(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Conductances between 1 and 100 microsiemens."""
    draw = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ((1 + 99 * draw) * 1e-6).to(dtype)


def worst(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest error relative to the largest value."""
    return float((result.double() - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("shape", [(8, 8), (33, 17), (5, 40), (1, 7), (7, 1), (1, 1)])
def test_exact_agrees_with_the_nodal_solve(shape, drive, sense):
    wires = Wires(r_word_ohm=3, r_bit_ohm=5, r_driver_ohm=120, r_sense_ohm=45, drive=drive, sense=sense)
    conductance = cells(*shape)
    reference = nodal_effective(conductance, wires)
    assert worst(effective_conductance(conductance, wires), reference) <= 1e-9
    assert worst(effective_conductance(conductance.float(), wires), reference) <= 1e-5


@pytest.mark.parametrize(("drive", "sense"), [("left", "bottom"), ("both", "both"), ("right", "top")])
@pytest.mark.parametrize("ohm", [1.0, 5.0])
def test_exact_agrees_with_the_nodal_solve_at_128(ohm, drive, sense):
    wires = Wires(r_word_ohm=ohm, r_bit_ohm=ohm, drive=drive, sense=sense)
    conductance = cells(128, 128)
    reference = nodal_effective(conductance, wires)
    assert worst(effective_conductance(conductance, wires), reference) <= 1e-9
    assert worst(effective_conductance(conductance.float(), wires), reference) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("drive", DRIVES)
def test_exact_agrees_with_the_nodal_solve_at_128_for_all_ends(drive, sense):
    wires = Wires(r_word_ohm=2, r_bit_ohm=1, r_driver_ohm=50, r_sense_ohm=10, drive=drive, sense=sense)
    conductance = cells(128, 128)
    reference = nodal_effective(conductance, wires)
    assert worst(effective_conductance(conductance, wires), reference) <= 1e-9
    assert worst(effective_conductance(conductance.float(), wires), reference) <= 1e-5


@pytest.mark.parametrize(
    "ohms",
    [
        {"r_word_ohm": 0, "r_bit_ohm": 2},
        {"r_word_ohm": 2, "r_bit_ohm": 0},
        {"r_word_ohm": 0, "r_bit_ohm": 2, "r_driver_ohm": 30},
        {"r_word_ohm": 2, "r_bit_ohm": 0, "r_sense_ohm": 30},
        {"r_word_ohm": 0, "r_bit_ohm": 0, "r_driver_ohm": 100, "r_sense_ohm": 30},
        {"r_word_ohm": 1e-7, "r_bit_ohm": 1e-7},
        {"r_word_ohm": 1e4, "r_bit_ohm": 1e4},
        {"r_word_ohm": 1e-6, "r_bit_ohm": 1e4, "r_driver_ohm": 1e5},
    ],
)
@pytest.mark.parametrize(("drive", "sense"), [("left", "bottom"), ("both", "both"), ("right", "both")])
def test_exact_agrees_with_the_nodal_solve_at_extreme_resistances(ohms, drive, sense):
    wires = Wires(**ohms, drive=drive, sense=sense)
    conductance = cells(24, 19)
    conductance[3] = 0
    conductance[:, 5] = 0
    conductance[7, 7] = 1e-2
    reference = nodal_effective(conductance, wires)
    # The nodal solve itself loses 1e-16 times the ratio of the largest wire to the cell conductances (1e12 here).
    bound = 1e-4 if wires.r_word_ohm == 1e-7 else 1e-5 if wires.r_word_ohm == 1e-6 else 1e-9
    assert worst(effective_conductance(conductance, wires), reference) <= bound
    assert worst(effective_conductance(conductance.float(), wires), reference) <= max(bound, 1e-5)


@pytest.mark.parametrize(("ohm", "matrix_bound", "output_bound"), [(1.0, 0.002, 0.0013), (5.0, 0.012, 0.008)])
@pytest.mark.parametrize(("drive", "sense"), [("left", "bottom"), ("both", "both"), ("right", "both")])
def test_fast_approximation_stays_within_its_stated_error_of_exact(
    ohm, matrix_bound, output_bound, drive, sense
):
    wires = {"r_word_ohm": ohm, "r_bit_ohm": ohm, "drive": drive, "sense": sense}
    conductance = cells(2, 128, 128)
    exact = effective_conductance(conductance, Wires(**wires))
    fast = effective_conductance(conductance, Wires(**wires, method="fast"))
    inputs = torch.rand(64, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert (fast - exact).norm() <= matrix_bound * exact.norm()
    assert (inputs @ (fast - exact)).norm() <= output_bound * (inputs @ exact).norm()
    assert (conductance - exact).norm() >= 20 * (fast - exact).norm()


@pytest.mark.parametrize(("drive", "sense"), [("left", "bottom"), ("both", "both")])
@pytest.mark.parametrize("kind", ["mostly off", "logarithmic"])
def test_fast_approximation_tells_unlike_lines_apart(kind, drive, sense):
    """Drivers and amplifiers of a kilohm, cells of 1 nS to 1 mS: what wanders then differs from line to line."""
    chance = torch.rand(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    unlike = torch.where(chance < 0.1, 1e-3, 1e-9).double() if kind == "mostly off" else 1e-9 * 1e6**chance
    ends = {"r_driver_ohm": 1000, "r_sense_ohm": 1000, "drive": drive, "sense": sense}
    for ohm, bound in ((0.0, 1e-9), (1.0, 0.01)):
        wires = {"r_word_ohm": ohm, "r_bit_ohm": ohm, **ends}
        exact = effective_conductance(unlike, Wires(**wires))
        fast = effective_conductance(unlike, Wires(**wires, method="fast"))
        assert (fast - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("shape", [(33, 17), (8, 8), (100, 61), (3, 70)])
def test_fast_approximation_holds_for_any_shape_and_patterned_cells(shape):
    row, col = (torch.arange(n, dtype=torch.float64) for n in shape)
    pattern = 1e-6 + 99e-6 * (torch.sin(row / 7)[:, None] * torch.cos(col / 11)) ** 2
    pattern[shape[0] // 2] = 0
    wires = {"r_word_ohm": 5, "r_bit_ohm": 5, "r_driver_ohm": 50, "r_sense_ohm": 20}
    exact = effective_conductance(pattern, Wires(**wires))
    for dtype in (torch.float64, torch.float32):
        fast = effective_conductance(pattern.to(dtype), Wires(**wires, method="fast"))
        assert (fast - exact).norm() <= 0.02 * exact.norm()


def test_a_tiny_resistance_costs_what_first_order_perturbation_says():
    """Currents lose, to first order in the resistance, what the ideal currents drop on the wires they share."""
    conductance, ohm = cells(16, 12), 1e-6
    row = torch.arange(16, 0, -1, dtype=torch.float64)  # segments of a bit line below the cell
    col = torch.arange(1, 13, dtype=torch.float64)
    word_drop = conductance @ torch.minimum(col[:, None], col)
    bit_rise = torch.minimum(row[:, None], row) @ conductance
    lost = conductance - effective_conductance(conductance, Wires(r_word_ohm=ohm, r_bit_ohm=ohm))
    assert torch.allclose(lost, ohm * conductance * (word_drop + bit_rise), rtol=1e-5)


@pytest.mark.parametrize("ohm", [1e-6, 1e-3])
def test_float32_does_not_cancel_when_both_ends_are_driven_through_small_resistances(ohm):
    conductance = cells(16, 16, dtype=torch.float32)
    wires = Wires(r_word_ohm=ohm, r_bit_ohm=ohm, r_sense_ohm=100, drive="both", sense="both")
    assert (
        worst(effective_conductance(conductance, wires), effective_conductance(conductance.double(), wires))
        < 1e-6
    )


def test_zero_resistance_returns_the_input():
    conductance = cells(2, 9, 4)
    result = effective_conductance(conductance, Wires(r_word_ohm=0, r_bit_ohm=0, drive="both", sense="both"))
    assert torch.equal(result, conductance)
    assert result.data_ptr() != conductance.data_ptr()


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_vanishing_resistance_approaches_the_input(method):
    conductance = cells(40, 24)
    gaps = [
        worst(
            effective_conductance(conductance, Wires(r_word_ohm=r, r_bit_ohm=r, method=method)), conductance
        )
        for r in (1e-1, 1e-3, 1e-5)
    ]
    assert gaps[0] < 0.05
    assert gaps[1] == pytest.approx(gaps[0] / 100, rel=0.05)
    assert gaps[2] == pytest.approx(gaps[0] / 1e4, rel=0.05)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_more_ohms_lower_the_total_current(method):
    conductance = cells(48, 48)
    names = ("r_word_ohm", "r_bit_ohm", "r_driver_ohm", "r_sense_ohm")
    for name in names:
        totals = [
            float(
                effective_conductance(
                    conductance, Wires(**dict.fromkeys(names, 1.0) | {name: ohm, "method": method})
                ).sum()
            )
            for ohm in (0.0, 0.5, 2.0, 8.0, 64.0)
        ]
        assert totals == sorted(totals, reverse=True)
        assert totals[-1] < 0.9 * totals[0]


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_connecting_both_ends_loses_less(method):
    conductance = cells(48, 32)

    def total(drive: str, sense: str) -> float:
        wires = Wires(
            r_word_ohm=2,
            r_bit_ohm=2,
            r_driver_ohm=20,
            r_sense_ohm=20,
            drive=drive,
            sense=sense,
            method=method,
        )
        return float(effective_conductance(conductance, wires).sum())

    assert (
        total("left", "bottom") < total("both", "bottom") < total("both", "both") < float(conductance.sum())
    )
    assert total("left", "bottom") < total("left", "both") < total("both", "both")


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_the_far_corner_loses_most(method):
    uniform = torch.full((32, 32), 5e-5, dtype=torch.float64)
    near = {"left": 0, "right": 31, "bottom": 31, "top": 0}
    for drive, sense in (("left", "bottom"), ("right", "top"), ("left", "top")):
        effective = effective_conductance(
            uniform, Wires(r_word_ohm=1, r_bit_ohm=1, drive=drive, sense=sense, method=method)
        )
        row, col = near[sense], near[drive]
        assert effective.argmax() == row * 32 + col
        assert effective.argmin() == (31 - row) * 32 + (31 - col)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_tiles_of_a_batch_do_not_touch_each_other(method):
    conductance = cells(2, 3, 20, 12)
    wires = Wires(r_word_ohm=1, r_bit_ohm=2, method=method)
    together = effective_conductance(conductance, wires)
    assert together.shape == conductance.shape
    alone = effective_conductance(conductance[1, 2], wires)
    assert torch.allclose(together[1, 2], alone, rtol=1e-13, atol=0)


def test_chunks_do_not_change_the_result_or_the_gradient(monkeypatch):
    wires = Wires(r_word_ohm=1, r_bit_ohm=2)
    conductance = cells(5, 6, 7).requires_grad_()
    weight = cells(5, 6, 7, seed=1)
    whole = effective_conductance(conductance, wires)
    (gradient,) = torch.autograd.grad((whole * weight).sum(), conductance)
    monkeypatch.setitem(CHUNK_CELLS["exact"], "cpu", 84)  # two tiles
    parts = effective_conductance(conductance, wires)
    (again,) = torch.autograd.grad((parts * weight).sum(), conductance)
    assert torch.allclose(whole, parts, rtol=1e-13, atol=0)
    assert torch.allclose(gradient, again, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_a_non_contiguous_input_gives_the_same_answer(method):
    conductance = cells(12, 20)
    wires = Wires(r_word_ohm=1, r_bit_ohm=2, method=method)
    spread = torch.zeros(20, 24, dtype=torch.float64)
    spread[:, ::2] = conductance.T
    assert torch.equal(
        effective_conductance(spread[:, ::2].T, wires), effective_conductance(conductance, wires)
    )


@pytest.mark.parametrize(("drive", "sense"), [("left", "bottom"), ("both", "both")])
@pytest.mark.parametrize("shape", [(3, 2), (2, 5, 6), (9, 3)])
def test_gradients_agree_with_finite_differences(shape, drive, sense):
    wires = Wires(r_word_ohm=0.1, r_bit_ohm=0.2, r_driver_ohm=0.3, r_sense_ohm=0.1, drive=drive, sense=sense)
    conductance = (cells(*shape) * 1e4).requires_grad_()  # ohms and siemens of order one
    assert torch.autograd.gradcheck(lambda g: effective_conductance(g, wires), (conductance,))


def test_fast_gradients_agree_with_finite_differences():
    wires = Wires(r_word_ohm=0.1, r_bit_ohm=0.2, method="fast")
    conductance = (cells(9, 6) * 1e4).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: effective_conductance(g, wires), (conductance,))


def test_float32_is_kept_and_empty_arrays_pass():
    wires = Wires(r_word_ohm=1, r_bit_ohm=1)
    assert effective_conductance(cells(4, 4, dtype=torch.float32), wires).dtype == torch.float32
    assert effective_conductance(torch.zeros(0, 4, 4), wires).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (torch.tensor([[1e-6, -1e-9]]), "at least 0 siemens, found -1e-09"),
        (torch.tensor([[1e-6, float("nan")]]), "finite"),
        (torch.tensor([[1e-6, float("inf")]]), "finite"),
        (torch.ones(2, 2, dtype=torch.float16), "float32 or float64, found torch.float16"),
        (torch.ones(2), "found 1 dimension"),
    ],
)
def test_impossible_conductances_are_refused(bad, complaint):
    with pytest.raises(ConfigError, match=complaint):
        effective_conductance(bad, Wires(r_word_ohm=1, r_bit_ohm=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("r_word_ohm", -1), ("r_bit_ohm", float("inf")), ("drive", "up"), ("sense", "left"), ("method", "slow")],
)
def test_impossible_wires_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        parse_settings({"r_word_ohm": 1, "r_bit_ohm": 1} | {field: value}, Wires, source="wires")
