"""Remapping around stuck cells: the least error that an order of lines can have, and nothing else changes."""

from itertools import permutations
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.collapse import background
from nvcim.crossbar.converters import make_adc
from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.programming import stuck_map
from nvcim.crossbar.remapping import Places, in_array, line_costs, seen_by_weights, tile_orders
from nvcim.crossbar.wires import Wires
from nvcim.errors import ConfigError
from tests.closeness import close

WAYS = ["rows", "columns", "both"]
Tile = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# Devices without ageing data warn when they age.
pytestmark = pytest.mark.filterwarnings("ignore:device .* its drift")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def settings(**changes: Any) -> CrossbarConfig:
    own = {"device": "RRAM4", "stuck_on": 0.02, "stuck_off": 0.03, "sigma": 0.0, "rows": 16, "cols": 16}
    return CrossbarConfig.model_validate({**own, "dac_bits": None, "adc_bits": None, **changes})


def squared_error(crossbar: Crossbar, weight: torch.Tensor, config: CrossbarConfig) -> torch.Tensor:
    """Of what the cells hold against the same cells without faults, per device."""
    clean = config.model_copy(update={"stuck_on": 0.0, "stuck_off": 0.0, "remap": "none"})
    exact = Crossbar.program(weight, clean, generator()).read_weight()
    return (crossbar.read_weight() - exact).double().square().sum(dim=(-2, -1))


@pytest.fixture
def tile() -> Tile:
    """Stuck cells, targets, factors and column weights of 4 planes of 6 x 5 cells."""
    stuck = stuck_map(torch.tensor([5]), torch.Size([1, 4, 6, 5]), 0.1, 0.15)[0]
    targets = torch.rand(4, 6, 5, dtype=torch.float64, generator=generator(1))
    factors = torch.tensor([1.0, 4.0, -1.0, -4.0], dtype=torch.float64)
    return stuck, targets, factors, torch.rand(1, 5, dtype=torch.float64, generator=generator(2)) + 0.5


def error_of(tile: Tile, rows: list[int], columns: list[int]) -> float:
    stuck, targets, factors, worth = tile
    seen = stuck[:, rows][:, :, columns]
    ends = (seen > 0).double()
    missed = torch.where(seen != 0, ends - targets, 0.0) * factors[:, None, None]
    return float((missed.sum(dim=0).square() * worth).sum())


def test_costs_are_the_errors_that_stuck_cells_make(tile: Tile) -> None:
    stuck, targets, factors, worth = tile
    cost = line_costs(stuck, targets, factors, worth)
    for logical in range(6):
        for physical in range(6):
            pair = (stuck[:, physical : physical + 1], targets[:, logical : logical + 1], factors, worth)
            assert float(cost[logical, physical]) == pytest.approx(
                error_of(pair, [0], list(range(5))), abs=1e-12
            )


def test_rows_and_columns_are_as_good_as_the_best_of_all_orders(tile: Tile) -> None:
    stay = [list(range(6)), list(range(5))]
    rows, none = tile_orders(*tile, "rows")
    assert none.tolist() == stay[1]
    best = min(error_of(tile, list(order), stay[1]) for order in permutations(stay[0]))
    assert best < 0.9 * error_of(tile, *stay)
    assert error_of(tile, rows.tolist(), stay[1]) == pytest.approx(
        best, abs=6 / 1024
    )  # a step of cost per line
    none, columns = tile_orders(*tile, "columns")
    assert none.tolist() == stay[0]
    best = min(error_of(tile, stay[0], list(order)) for order in permutations(stay[1]))
    assert error_of(tile, stay[0], columns.tolist()) == pytest.approx(best, abs=5 / 1024)


def test_both_ends_where_neither_rows_nor_columns_can_be_better(tile: Tile) -> None:
    rows, columns = (order.tolist() for order in tile_orders(*tile, "both"))
    reached = error_of(tile, rows, columns)
    assert reached <= error_of(tile, tile_orders(*tile, "rows")[0].tolist(), list(range(5))) + 6 / 1024
    for order in permutations(range(6)):
        assert error_of(tile, [rows[i] for i in order], columns) >= reached - 6 / 1024
    for order in permutations(range(5)):
        assert error_of(tile, rows, [columns[i] for i in order]) >= reached - 5 / 1024


def test_a_pair_that_is_stuck_alike_costs_what_the_weight_loses() -> None:
    # Both cells of a pair stuck on hold the weight 0: the error is the weight, not the sum of both cells' errors.
    stuck = torch.tensor([[[1]], [[1]]], dtype=torch.int8)
    targets, factors = torch.tensor([[[0.25]], [[0.0]]]).double(), torch.tensor([1.0, -1.0]).double()
    assert float(line_costs(stuck, targets, factors, torch.ones(1, 1).double())) == pytest.approx(0.0625)


@pytest.mark.parametrize("remap", WAYS)
def test_lines_stay_in_their_tile_and_each_is_used_once(remap: str) -> None:
    crossbar = Crossbar.program(normal(2, 37, 41), settings(remap=remap), generator())
    state = crossbar.state_dict()
    rows, columns = state["row_places"].long(), state["column_places"].long()
    assert rows.shape == (2, 37, 3)
    assert columns.shape == (2, 3, 41)
    for start in (0, 16, 32):
        own = torch.arange(start, min(start + 16, 37))
        assert (rows[:, own].sort(dim=1).values == own[None, :, None]).all()
        own = torch.arange(start, min(start + 16, 41))
        assert (columns[:, :, own].sort(dim=2).values == own).all()
    moved = (bool((rows != torch.arange(37)[:, None]).any()), bool((columns != torch.arange(41)).any()))
    assert moved == (remap != "columns", remap != "rows")
    # Every word line of a tile is that of one input in all of its cells.
    chip = stuck_map(crossbar._writing().keys, crossbar.cells().levels.shape, 0.02, 0.03)
    seen = crossbar.cells().stuck
    assert seen is not None
    for device, i, j in [(0, 3, 5), (1, 20, 39), (0, 36, 17)]:
        at = (int(rows[device, i, j // 16]), int(columns[device, i // 16, j]))
        assert torch.equal(seen[device, :, i, j], chip[device, :, at[0], at[1]])
    assert int(seen.abs().sum()) == int(chip.abs().sum()) > 0


@pytest.mark.parametrize("scheme", ["differential", "offset", "one_sided"])
@pytest.mark.parametrize("scale_per", ["device", "column"])
def test_nominal_error_never_grows_and_both_is_no_worse_than_rows(scheme: str, scale_per: str) -> None:
    # One column is 100 times the others, so that what columns are worth matters.
    weight = normal(4, 24, 20, seed=3) * torch.where(torch.arange(20) == 4, 100.0, 1.0)
    weight = weight.abs() if scheme == "one_sided" else weight
    found = {}
    for remap in ["none", *WAYS]:
        config = settings(scheme=scheme, scale_per=scale_per, remap=remap, accumulate="digital")
        found[remap] = squared_error(Crossbar.program(weight, config, generator(7)), weight, config)
    for remap in WAYS:
        assert (found[remap] < found["none"]).all()
    assert (found["both"] <= found["rows"] * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("share", "most"), [(0.01, {"rows": 0.55, "both": 0.4}), (0.05, {"rows": 0.8, "both": 0.7})]
)
def test_error_falls_clearly(share: float, most: dict[str, float]) -> None:
    # Seen on 16 chips of 128 x 128 Gaussian weights, squared error against no remapping, and its range over the chips:
    # 1 %: rows 0.43 (0.37..0.48), both 0.28 (0.24..0.33); 5 %: rows 0.73 (0.70..0.76), both 0.62 (0.60..0.67).
    weight = normal(3, 128, 128, seed=4)
    config = settings(stuck_on=share / 2, stuck_off=share / 2, rows=128, cols=128)
    before = squared_error(Crossbar.program(weight, config, generator(9)), weight, config).sum()
    for remap, bound in most.items():
        moved = config.model_copy(update={"remap": remap})
        after = squared_error(Crossbar.program(weight, moved, generator(9)), weight, moved).sum()
        assert float(after / before) < bound


@pytest.mark.parametrize("remap", WAYS)
@pytest.mark.parametrize("way", ["open_loop", "write_verify"])
def test_nothing_changes_without_stuck_cells(remap: str, way: str) -> None:
    weight, x = normal(2, 20, 18), normal(5, 20, seed=1)
    plain = settings(
        stuck_on=0.0, stuck_off=0.0, sigma=0.1, adc_bits=8, read_noise=0.01, programming={"method": way}
    )
    moved = plain.model_copy(update={"remap": remap})
    one, other = (Crossbar.program(weight, config, generator(2)) for config in (plain, moved))
    assert torch.equal(one.matmul(x), other.matmul(x))
    assert torch.equal(one.read_weight(), other.read_weight())
    assert torch.equal(one.wear(), other.wear())


@pytest.mark.parametrize("remap", WAYS)
def test_state_restores_the_order_of_lines(remap: str) -> None:
    config = settings(remap=remap, sigma=0.1, programming={"method": "selective"}, adc_bits=6)
    crossbar = Crossbar.program(normal(3, 20, 18), config, generator())
    restored = Crossbar.from_state(crossbar.state_dict(), config)
    x = normal(4, 20, seed=1)
    assert torch.equal(restored.matmul(x), crossbar.matmul(x))
    stuck, again = crossbar.cells().stuck, restored.cells().stuck
    assert stuck is not None
    assert again is not None
    assert torch.equal(stuck, again)
    for one in (crossbar, restored):
        one.age(100.0)
    assert torch.equal(restored.read_weight(), crossbar.read_weight())
    for one in (crossbar, restored):
        one.rewrite(normal(3, 20, 18, seed=5))
    assert torch.equal(restored.read_weight(), crossbar.read_weight())
    assert torch.equal(restored.wear(), crossbar.wear())


def test_state_of_other_tiles_is_refused() -> None:
    config = settings(remap="rows")
    state = Crossbar.program(normal(20, 40), config, generator()).state_dict()
    with pytest.raises(ConfigError, match="row_places"):
        Crossbar.from_state(state, config.model_copy(update={"cols": 32}))
    with pytest.raises(ConfigError, match="row_places"):
        Crossbar.from_state(state, config.model_copy(update={"remap": "none"}))


def test_devices_come_out_the_same_alone_and_together() -> None:
    weight, config = normal(20, 18), settings(remap="both", sigma=0.1)
    together = Crossbar.program(weight.expand(3, 20, 18), config, [generator(seed) for seed in range(3)])
    for seed in range(3):
        alone = Crossbar.program(weight, config, generator(seed))
        assert torch.equal(together.read_weight()[seed], alone.read_weight())


def test_rewrite_finds_new_lines_on_the_same_chip_and_wear_stays_with_its_cells() -> None:
    config = settings(
        remap="both",
        sigma=0.2,
        sigma_unit="full_range",
        programming={"method": "write_verify", "max_pulses": 9},
    )
    first, second = normal(20, 18), normal(20, 18, seed=1)
    crossbar = Crossbar.program(first, config, generator(3))
    chip, pulses, orders = [], [], []
    for weight in (first, second):
        if weight is second:
            crossbar.rewrite(second)
        places, cells = crossbar._writing().places, crossbar.cells()
        assert places is not None
        assert cells.stuck is not None
        assert cells.pulses is not None
        chip.append(in_array(cells.stuck, places, config))
        pulses.append(in_array(cells.pulses, places, config).int())
        orders.append(places)
        assert torch.equal(seen_by_weights(chip[-1], places, config), cells.stuck)
    assert torch.equal(chip[0], chip[1])
    assert not torch.equal(orders[0].rows, orders[1].rows)
    assert torch.equal(crossbar.wear(), pulses[0] + pulses[1])


def test_works_together_with_selective_write_verify() -> None:
    weight = normal(2, 32, 32)
    selective = {"method": "selective", "share": 0.3}
    plain = settings(sigma=0.1, sigma_unit="full_range", programming=selective)
    moved = plain.model_copy(update={"remap": "both"})
    exact = settings(sigma=0.0)
    before, after = (Crossbar.program(weight, config, generator(1)) for config in (plain, moved))
    assert (squared_error(after, weight, exact) < 0.8 * squared_error(before, weight, exact)).all()
    # Which weights are read back, and what their sound cells take, does not depend on where they lie.
    pulses, own = after.cells().pulses, before.cells().pulses
    assert pulses is not None
    assert own is not None
    faults = [crossbar.cells().stuck for crossbar in (before, after)]
    sound = torch.stack([stuck == 0 for stuck in faults if stuck is not None]).all(dim=0)
    assert torch.equal(pulses[sound], own[sound])
    verified = after._writing().verified
    assert verified is not None
    assert int(verified[0].sum()) == round(0.3 * 32 * 32)
    assert float(pulses.float().masked_select(verified[:, None]).mean()) > 1.2
    assert (pulses.masked_select(~verified[:, None]) == 1).all()


@pytest.mark.parametrize("remap", WAYS)
def test_wires_see_the_cells_where_they_lie(remap: str) -> None:
    wires = Wires(r_word_ohm=20.0, r_bit_ohm=30.0)
    config = settings(
        remap=remap,
        wires=wires,
        g_min_us=1.0,
        g_max_us=100.0,
        weight_bits=3,
        scale_per="column",
        rows=8,
        cols=8,
    )
    assert len(config.mapping().slices) == 1
    weight = normal(8, 8, seed=2)
    crossbar = Crossbar.program(weight, config, generator(4))
    places, cells, span = crossbar._writing().places, crossbar.cells(), 99e-6
    assert places is not None
    siemens = (cells.conductance + background(config.cell())) * span
    rows, columns = places.rows[0, :, 0].long(), places.columns[0, 0].long()
    laid = torch.empty_like(siemens)
    for i in range(8):
        for j in range(8):
            laid[:, :, rows[i], columns[j]] = siemens[:, :, i, j]
    solved = effective_conductance(laid, wires) / span
    seen = solved[:, :, rows][:, :, :, columns]
    expected = (seen[0, 0] - seen[0, 1]) * config.mapping().slices[0].factor * crossbar._writing().scale[0]
    assert close(crossbar.read_weight(), expected, 5e-6)
    bare = Crossbar.program(weight, config.model_copy(update={"wires": None}), generator(4))
    assert float((bare.read_weight() - crossbar.read_weight()).abs().max()) > 0.01


def test_errors_of_an_adc_stay_with_its_bit_line() -> None:
    errors = {"offset_lsb": 1.0, "gain": 0.05, "dnl_lsb": 0.2}
    config = settings(adc_bits=4, adc_errors=errors, remap="columns")
    keys, full_scale = torch.tensor([11, 12]), torch.ones(2, 1, 3, 41)
    columns = torch.stack([torch.randperm(41, generator=generator(seed)) for seed in range(6)]).reshape(
        2, 3, 41
    )
    places = Places(torch.zeros(2, 37, 3, dtype=torch.int32), columns.int())
    chip, moved = make_adc(full_scale, config, keys), make_adc(full_scale, config, keys, places)
    assert chip.shift is not None
    assert moved.shift is not None
    assert chip.thresholds is not None
    assert moved.thresholds is not None
    for device, tile, out in [(0, 0, 3), (1, 2, 40), (1, 1, 17)]:
        line = int(columns[device, tile, out])
        assert moved.gain[device, 0, tile, out] == chip.gain[device, 0, tile, line]
        assert moved.shift[device, 0, tile, out] == chip.shift[device, 0, tile, line]
        assert torch.equal(moved.thresholds[device, 0, tile, out], chip.thresholds[device, 0, tile, line])
    assert not torch.equal(moved.gain, chip.gain)
    # and a crossbar tells its ADCs where they are
    crossbar = Crossbar.program(normal(37, 41), config, generator())
    own = crossbar._writing()
    adc = crossbar._read_plan().adc
    assert adc is not None
    assert adc.shift is not None
    shift = make_adc(torch.ones(1, 1, 3, 41), config, own.keys, own.places).shift
    assert shift is not None
    assert torch.equal(adc.shift, shift)


def test_wires_with_cells_that_are_solved_per_vector_are_refused() -> None:
    wires = Wires(r_word_ohm=1.0, r_bit_ohm=1.0)
    with pytest.raises(ValidationError, match="remap"):
        settings(remap="rows", wires=wires, gated_rows=True)
