"""How settings become the cost model's geometry: arrays of their own for sides and slices, conversions, pulses."""

import pytest

from nvcim.crossbar import CrossbarConfig
from nvcim.crossbar.cost import Geometry, layout, product_cost
from nvcim.crossbar.cost_constants import load_cost_constants
from nvcim.crossbar.geometry import geometry_of
from nvcim.errors import ConfigError

# 8-bit weights, sign apart, on 2-bit cells: 4 slices on each of 2 sides; 3 x 2 tiles of 128 x 128.
CONFIG = CrossbarConfig(device="RRAM4")


def test_every_side_and_slice_has_an_array_of_its_own() -> None:
    plan = layout(geometry_of(CONFIG, 300, 200))
    assert (plan.row_tiles, plan.col_tiles, plan.planes, plan.arrays) == (3, 2, 8, 48)
    assert plan.outputs_per_array == 128
    assert plan.weight_cells == plan.used_cells == 300 * 200 * 8
    assert plan.physical_cells == 48 * 128 * 128
    assert plan.utilisation == pytest.approx(300 * 200 / (6 * 128 * 128))


def test_analog_accumulation_shares_the_adcs_of_a_tile_among_its_arrays() -> None:
    plan = layout(geometry_of(CONFIG, 300, 200))
    assert plan.conversions == 3 * 200
    assert plan.adcs == 6 * 128 // 8
    assert plan.turns == 8


def test_digital_accumulation_converts_each_slice_after_its_sides_are_subtracted() -> None:
    plan = layout(geometry_of(CONFIG.model_copy(update={"accumulate": "digital"}), 300, 200))
    assert plan.conversions == 3 * 200 * 4
    assert plan.adcs == 6 * 4 * 128 // 8
    assert plan.turns == 8


@pytest.mark.parametrize(("scheme", "sides"), [("differential", 2), ("offset", 1), ("one_sided", 1)])
def test_a_scheme_says_how_many_sides_there_are(scheme: str, sides: int) -> None:
    geometry = geometry_of(CONFIG.model_copy(update={"scheme": scheme}), 10, 10)
    assert (geometry.sides, geometry.slices) == (sides, 4)


def test_bit_serial_inputs_are_as_many_pulses_of_one_bit() -> None:
    geometry = geometry_of(CrossbarConfig(dac_bits=6, input_coding="bit_serial"), 10, 10)
    assert (geometry.dac_bits, geometry.input_cycles) == (1, 6)
    analog = geometry_of(CrossbarConfig(dac_bits=6), 10, 10)
    assert (analog.dac_bits, analog.input_cycles) == (6, 1)


def test_arrays_of_their_own_have_drivers_and_dacs_of_their_own() -> None:
    constants = load_cost_constants()
    alone = geometry_of(CONFIG, 128, 128)
    table = product_cost(alone, constants, mean_conductance=1e-5, mean_square_voltage=0.04)
    assert table["drivers"].operations == table["dac"].operations == 8 * 128
    assert table["sample and hold"].operations == 8 * 128
    assert table["adc"].operations == 128
    # The same cells side by side in 8 arrays of 16 outputs: as many lines, as many cells, as many conversions.
    beside = Geometry(in_features=128, out_features=128, rows=128, cols=128, slices=4, sides=2)
    other = product_cost(beside, constants, mean_conductance=1e-5, mean_square_voltage=0.04)
    for component in ("array", "drivers", "dac", "sample and hold", "adc"):
        assert table[component].energy.value == pytest.approx(other[component].energy.value)
    assert table["array"].area.value == pytest.approx(other["array"].area.value)


def test_a_reference_column_takes_room_in_every_array() -> None:
    geometry = geometry_of(CONFIG, 4, 128).model_copy(
        update={"reference_columns": 1, "accumulate": "digital"}
    )
    plan = layout(geometry)
    assert (plan.col_tiles, plan.outputs_per_array, plan.arrays) == (2, 127, 16)
    assert plan.used_cells - plan.weight_cells == 4 * 16
    assert plan.conversions == 8 * 128 + 16


def test_slices_that_a_cell_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="slice_bits asks for 3 bits"):
        geometry_of(CrossbarConfig(device="RRAM4", slice_bits=(3, 3, 1)), 10, 10)
