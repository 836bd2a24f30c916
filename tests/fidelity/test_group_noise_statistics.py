"""The group's noise model and the crossbar agree where they should, and differ as they have to.

Bounds. A mean square of n standard normals scatters by sqrt(2 / n); n is 2000 writes times 32 outputs, each of cells of
its own. 50 figures within 6 of these: a false alarm in 1e-7 (1.5 times the Gaussian's tail, as the chi-square leans).
The means of 1600 outputs within 6.5 standard errors: 1600 * 8e-11 = 1.3e-7.
"""

import math

import pytest
import torch

from tests.fidelity import group_noise, published
from tests.fidelity.group_noise import DEVICES, OUTPUTS, WRITES, Agreement, Departure
from tests.fidelity.report import committed
from tests.fidelity.tables import same_up_to_rounding

SCATTER = math.sqrt(2 / (WRITES * OUTPUTS))


def found(device: str) -> list[Agreement]:
    return [a for a in group_noise.agreements() if a.device == device]


def cause(name: str) -> Departure:
    return next(d for d in group_noise.departures() if d.cause == name)


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_of_products_are_those_of_the_levels_of_their_cells(device: str) -> None:
    for one in found(device):
        assert one.mean < 6.5
        assert abs(one.per_cell - 1) < 6 * SCATTER


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_of_the_training_noise_are_those_of_its_formula(device: str) -> None:
    for one in found(device):
        assert abs(one.pair_own - 1) < 6 * SCATTER
        # a ratio of two such figures scatters by sqrt(2) times as much
        assert abs(one.pair / one.pair_closed - 1) < 6 * math.sqrt(2) * SCATTER


def test_statistics_agree_exactly_where_all_levels_are_alike() -> None:
    assert [one.pair_closed for one in found("RRAM1")] == pytest.approx([1.0] * 10, rel=1e-6)


def test_intervals_leave_out_a_few_percent_for_ordinary_weights() -> None:
    for one in group_noise.agreements():
        if one.weights != "small":
            assert 0.95 < one.pair_closed < 1.0001


def test_intervals_miss_the_middle_levels_of_lower_slices() -> None:
    small = [next(a for a in found(device) if a.weights == "small").pair_closed for device in DEVICES]
    assert small == sorted(small, reverse=True)
    assert small[-1] < 0.55


def test_the_published_code_by_hand() -> None:
    # RRAM1: q = 1, B^2 = sum of 4^-i, i to 8 = 0.333328; FeFET2: q^2 = 2.2, edge 1, middle 2, B^2 = 0.0666656.
    weight = torch.tensor([1.0, 0.5, -0.74, 0.75, 0.25, 0.0])
    found = published.group_sigma(weight, "RRAM1", "level_step", 0.1)
    assert found.tolist() == pytest.approx([0.0577346] * 6, rel=1e-5)
    edge = 0.1 * math.sqrt(0.0666656 / 2.2)
    found = published.group_sigma(weight, "FeFET2", "level_step", 0.1)
    assert found.tolist() == pytest.approx([edge, 2 * edge, 2 * edge, edge, edge, edge], rel=1e-5)
    # NeFT: (1 + 4^2 + 4^4 + 4^6) / (1 + 4 + 16 + 64)^2 = 4369 / 7225
    found = published.group_sigma(weight, "FeFET2", "full_range", 0.1)
    assert float(found[0]) == pytest.approx(0.1 * math.sqrt(4369 / 7225 / 2.2))


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_of_a_pair_exceed_the_published_code_by_its_second_cell(device: str) -> None:
    for one in found(device):
        assert abs(one.published / one.published_closed - 1) < 6 * SCATTER
    if device == "RRAM1":  # two cells of 7 slices in place of one of 8: 2 (4^7 - 1) / 3 / 127^2 over B^2
        assert [one.published_closed for one in found(device) if one.unit == "level_step"] == pytest.approx(
            [2 * 5461 / 16129 / 0.333328] * 5, rel=1e-4
        )


def test_the_quieter_the_edge_levels_the_less_the_second_cell_adds() -> None:
    uniform = [
        next(a for a in found(device) if (a.weights, a.unit) == ("uniform", "level_step")).published_closed
        for device in DEVICES
    ]
    assert uniform == sorted(uniform, reverse=True)
    assert 1.05 < uniform[-1] < 1.15


def test_each_cause_adds_what_its_closed_form_says() -> None:
    # 64 chips times 32 outputs; their vectors share the cells. An rms of n normals scatters by 1 / sqrt(2 n).
    scatter = 1 / math.sqrt(2 * 2048)
    checked = [d for d in group_noise.departures() if d.expected is not None and d.cause != "ADC of 4 bits"]
    assert len(checked) == 8
    for one in checked:
        assert one.total == pytest.approx(one.expected, rel=6 * scatter)
    # A step beyond the noise is not dithered, so its error is not uniform.
    four = cause("ADC of 4 bits")
    assert four.total == pytest.approx(four.expected, rel=0.15)


def test_pairs_cancel_what_cells_conduct_when_off() -> None:
    alone, leaky = (
        cause(name)
        for name in (
            "programming variation alone",
            "a cell that conducts a tenth when off (g_min 10 uS)",
        )
    )
    assert leaky.total == pytest.approx(alone.total, rel=1e-4)


def test_wires_bias_products_and_damp_their_spread() -> None:
    names = ("no cell below zero siemens (wires of 1 microohm)", "wires of 1 ohm", "wires of 5 ohm")
    none, one, five = (cause(name) for name in names)
    assert none.bias < one.bias < five.bias
    assert five.spread < one.spread < none.spread < 1
    assert five.bias > 1


def test_the_page_holds_this_section() -> None:
    assert same_up_to_rounding(committed(group_noise), group_noise.section())
