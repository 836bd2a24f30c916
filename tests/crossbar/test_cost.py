"""The cost model: hand-computed cases, how costs scale, and what happens where a constant is unknown."""

from pathlib import Path

import pytest
import yaml

from nvcim.crossbar.cost import Geometry, layout, pipelined, product_cost, read_energy
from nvcim.crossbar.cost_constants import BUILT_IN, Constant, CostConstants, load_cost_constants
from nvcim.crossbar.cost_table import CostRow, CostTable, Figure, largest
from nvcim.crossbar.cost_write import CellWrite, refresh_cost, write_cost
from nvcim.errors import ConfigError

CONSTANTS = load_cost_constants()
SMALL = Geometry(in_features=4, out_features=3, rows=4, cols=4, columns_per_adc=1)
ISAAC = Geometry(  # 16-bit weights in 8 cells of 2 bits, 16 bits of input one by one, one ADC per array
    in_features=512, out_features=256, rows=128, cols=128, slices=8, accumulate="digital",
    input_cycles=16, dac_bits=1, adc_bits=8, columns_per_adc=128,
)  # fmt: skip


def cost(geometry: Geometry, batch: int = 1, constants: CostConstants = CONSTANTS) -> CostTable:
    return product_cost(geometry, constants, batch, mean_conductance=1e-5, mean_square_voltage=0.04)


def without(name: str) -> CostConstants:
    unknown = Constant(value=None, unit="J", source="none", note="nobody measured it")
    return CONSTANTS.model_copy(update={name: unknown})


def value(figure: Figure) -> float:
    assert figure.value is not None, figure.missing
    return figure.value


def test_a_weight_that_fills_its_array_uses_every_cell() -> None:
    plan = layout(Geometry(in_features=128, out_features=16, rows=128, cols=128, slices=4, sides=2))
    assert (plan.arrays, plan.outputs_per_array, plan.weight_cells) == (1, 16, 128 * 128)
    assert plan.utilisation == 1.0


def test_partly_filled_tiles_lower_the_utilisation() -> None:
    # 3 bit lines per weight: 42 outputs on 128 bit lines, 100 outputs in 3 arrays across, 130 rows in 2 down
    plan = layout(Geometry(in_features=130, out_features=100, rows=128, cols=128, slices=3))
    assert (plan.row_tiles, plan.col_tiles, plan.outputs_per_array) == (2, 3, 42)
    assert plan.utilisation == pytest.approx(130 * 300 / (6 * 128 * 128))


def test_reference_columns_take_room_and_are_read() -> None:
    plan = layout(Geometry(in_features=4, out_features=3, rows=4, cols=4, reference_columns=2))
    assert (plan.outputs_per_array, plan.col_tiles) == (2, 2)
    assert plan.used_cells - plan.weight_cells == 4 * 2 * 2
    digital = layout(
        Geometry(in_features=4, out_features=3, rows=4, cols=4, reference_columns=2, accumulate="digital")
    )
    assert (plan.conversions, digital.conversions) == (3, 3 + 2 * 2)


def test_more_slices_than_columns_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 slices x 2 sides and an array has 15 cols"):
        layout(Geometry(in_features=1, out_features=1, rows=4, cols=15, slices=8, sides=2))


def test_isaac_makes_one_8_bit_conversion_per_16_bit_multiplication() -> None:
    # Shafiee et al. 2016: 128 rows share one conversion, and 8 slices x 16 input bits make 128 of them.
    assert cost(ISAAC)["adc"].operations == ISAAC.in_features * ISAAC.out_features
    assert layout(ISAAC).adcs == layout(ISAAC).arrays == 4 * 16


def test_energies_of_a_small_product_by_hand() -> None:
    table = cost(SMALL)
    assert value(table["array"].energy) == pytest.approx(12 * 1e-5 * 0.04 * 10e-9)
    # 4 mW over 8 x 128 lines, 100 ns a pulse, 128 cells a line; 4 lines of 4 cells; 32 to 22 nm
    assert value(table["drivers"].energy) == pytest.approx(4e-3 / 1024 * 100e-9 / 128 * 16 * 22 / 32)
    assert value(table["dac"].energy) == pytest.approx(4 * 37.5e-15)
    assert value(table["adc"].energy) == pytest.approx(3 * 3.1e-3 / 1.2e9)
    assert value(table["sample and hold"].energy) == pytest.approx(3 * 10e-6 / 1024 * 100e-9)
    assert value(table["accumulation"].energy) == 0.0  # one row tile, one slice, one pulse: nothing to add
    bits = 4 * 8 * 2 + 3 * 32 * 2
    assert value(table["buffers"].energy) == pytest.approx(bits * 10e-12 / 64 * 22 / 45)
    assert table["buffers"].moved_bytes == bits // 8
    assert value(table.total().energy) == pytest.approx(sum(value(row.energy) for row in table))


def test_latency_of_a_small_product_by_hand() -> None:
    bus = (4 * 8 + 3 * 32) / 256 / 1.2e9 * 22 / 32
    assert value(cost(SMALL).total().latency) == pytest.approx(10e-9 + 1 / 1.2e9 + bus)
    # nine more vectors wait for the slowest stage, the read; the bus keeps up with it
    assert value(cost(SMALL, batch=10).total().latency) == pytest.approx(10 * 10e-9 + 1 / 1.2e9 + bus)


def test_a_bus_slower_than_the_product_sets_the_pace_of_a_batch() -> None:
    wide = Geometry(in_features=4, out_features=4096, rows=4, cols=4096, columns_per_adc=1)
    bus = (4 * 8 + 4096 * 32) / 256 / 1.2e9 * 22 / 32
    assert bus > 10e-9
    assert value(cost(wide, batch=10).total().latency) == pytest.approx(10 * bus + 10e-9 + 1 / 1.2e9)


def test_areas_of_a_small_product_by_hand() -> None:
    table = cost(SMALL)
    assert value(table["array"].area) == pytest.approx(16 * 48 * (22e-6) ** 2)
    assert value(table["adc"].area) == pytest.approx(4 * 0.0015)
    assert value(table["dac"].area) == pytest.approx(4 * 240e-6)
    assert value(table["drivers"].area) == pytest.approx(4 * 0.00017 / 1024 * (22 / 32) ** 2)
    assert value(table["accumulation"].area) == 0.0


def test_partial_sums_of_row_tiles_slices_and_pulses_are_added() -> None:
    table = cost(ISAAC, batch=2)
    terms = 4 * 8 * 16
    assert table["accumulation"].operations == 2 * 256 * (terms - 1)
    assert value(table["accumulation"].energy) == pytest.approx(2 * 256 * (terms - 1) * 0.1e-12 * 22 / 45)


def test_twice_the_arrays_take_twice_the_array_and_adc_energy_and_area() -> None:
    one = cost(Geometry(in_features=128, out_features=128, rows=128, cols=128))
    two = cost(Geometry(in_features=128, out_features=256, rows=128, cols=128))
    for component in ("array", "drivers", "dac", "sample and hold", "adc"):
        assert value(two[component].energy) == pytest.approx(2 * value(one[component].energy))
        assert value(two[component].area) == pytest.approx(2 * value(one[component].area))
        assert two[component].latency == one[component].latency


def test_an_adc_shared_by_eight_takes_eight_times_the_time_and_an_eighth_of_the_area() -> None:
    alone = Geometry(in_features=128, out_features=128, rows=128, cols=128, columns_per_adc=1)
    shared = alone.model_copy(update={"columns_per_adc": 8})
    first, second = cost(alone)["adc"], cost(shared)["adc"]
    assert value(second.latency) == pytest.approx(8 * value(first.latency))
    assert value(second.area) == pytest.approx(value(first.area) / 8)
    assert second.energy == first.energy


def test_each_bit_of_an_adc_doubles_its_energy_and_area() -> None:
    more = SMALL.model_copy(update={"adc_bits": 9})
    assert value(cost(more)["adc"].energy) == pytest.approx(2 * value(cost(SMALL)["adc"].energy))
    assert value(cost(more)["adc"].area) == pytest.approx(2 * value(cost(SMALL)["adc"].area))
    assert value(cost(more)["adc"].latency) == pytest.approx(9 / 8 * value(cost(SMALL)["adc"].latency))


def test_energy_and_operations_grow_with_the_batch_and_area_does_not() -> None:
    one, five = cost(ISAAC), cost(ISAAC, batch=5)
    for before, after in zip(one, five, strict=True):
        assert value(after.energy) == pytest.approx(5 * value(before.energy))
        assert after.operations == 5 * before.operations
        assert after.area == before.area
    assert value(five.total().latency) < 5 * value(one.total().latency)


def test_digital_accumulation_converts_every_slice_and_side() -> None:
    analog = Geometry(in_features=128, out_features=16, rows=128, cols=128, slices=4, sides=2)
    digital = analog.model_copy(update={"accumulate": "digital"})
    assert cost(digital)["adc"].operations == 8 * cost(analog)["adc"].operations


def test_a_one_bit_dac_is_the_driver() -> None:
    row = cost(ISAAC)["dac"]
    assert (value(row.energy), value(row.area)) == (0.0, 0.0)
    assert "driver" in row.note


def test_stages_overlap_and_the_first_slowest_is_charged_with_the_waiting() -> None:
    assert pipelined((Figure(2.0), Figure(3.0), Figure(3.0)), pulses=5) == (
        Figure(2.0), Figure(15.0), Figure(3.0),
    )  # fmt: skip


def test_an_ideal_adc_has_no_cost_that_is_known() -> None:
    table = cost(SMALL.model_copy(update={"adc_bits": None}))
    total = table.total()
    assert (total.energy.value, total.latency.value, total.area.value) == (None, None, None)
    assert table["adc"].as_record()["missing"] == "adc_bits: an ideal ADC has no cost that is known"
    assert value(table["array"].energy) > 0


def test_an_ideal_dac_leaves_dac_and_buffers_unknown_and_the_rest_known() -> None:
    table = cost(SMALL.model_copy(update={"dac_bits": None}))
    unknown = {row.component for row in table if row.energy.value is None}
    assert unknown == {"dac", "buffers"}


def test_an_unknown_conductance_leaves_the_array_energy_unknown() -> None:
    table = product_cost(SMALL, CONSTANTS, mean_conductance=None, mean_square_voltage=0.04)
    assert table["array"].energy.value is None
    assert table.total().energy.missing == {"mean_conductance: the device's conductances are not known"}
    assert value(table.total().latency) > 0


def test_an_unpublished_constant_reaches_every_total_that_needs_it_with_its_reason() -> None:
    total = cost(SMALL, constants=without("adc_energy")).total()
    assert total.energy.missing == {"adc_energy: nobody measured it"}
    assert value(total.latency) > 0
    assert cost(SMALL, constants=without("read_pulse")).total().latency.value is None


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        cost(SMALL, batch=0)
    with pytest.raises(ConfigError, match="mean_conductance is -1"):
        read_energy(1, CONSTANTS, -1.0, 0.1)
    with pytest.raises(ConfigError, match="mean_square_voltage is nan"):
        read_energy(1, CONSTANTS, 1.0, float("nan"))


def test_every_built_in_constant_has_a_source_and_a_unit() -> None:
    for name in CostConstants.model_fields:
        constant = getattr(CONSTANTS, name)
        if isinstance(constant, Constant):
            assert len(constant.source) > 10, name
            assert constant.unit, name
            assert value(CONSTANTS.figure(name)) > 0


def test_constants_scale_to_the_node_by_the_stated_rule() -> None:
    linear = Constant(value=3.0, unit="J", node_nm=44, scaling="linear", source="test")
    assert linear.at("x", 22) == Figure(1.5)
    assert linear.model_copy(update={"scaling": "quadratic"}).at("x", 22) == Figure(0.75)
    assert linear.model_copy(update={"scaling": "none"}).at("x", 22) == Figure(3.0)


def test_another_node_scales_logic_and_leaves_converters() -> None:
    at_45 = CONSTANTS.model_copy(update={"node_nm": 45.0})
    assert at_45.figure("add_energy").value == 0.1e-12
    assert at_45.figure("adc_energy") == CONSTANTS.figure("adc_energy")


def rewritten(tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load(BUILT_IN.read_text(encoding="utf-8"))
    content["crossbar"].update(changes)
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_file_of_the_users_own_replaces_the_constants(tmp_path: Path) -> None:
    assert load_cost_constants(rewritten(tmp_path, node_nm=45)).node_nm == 45.0


def test_constants_refuse_an_unknown_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'adc_enrgy' \(did you mean 'adc_energy'\?\)"):
        load_cost_constants(rewritten(tmp_path, adc_enrgy={"value": 1.0}))


@pytest.mark.parametrize(
    ("constant", "complaint"),
    [
        ({"value": None, "unit": "J", "source": "none"}, "needs a note"),
        ({"value": 1.0, "unit": "J", "source": "a", "scaling": "linear"}, "needs node_nm"),
        ({"value": 1.0, "unit": "J", "source": ""}, "source"),
        ({"value": -1.0, "unit": "J", "source": "a"}, "value"),
        ({"value": float("inf"), "unit": "J", "source": "a"}, "value"),
    ],
)
def test_constants_that_make_no_sense_are_refused(
    tmp_path: Path, constant: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_cost_constants(rewritten(tmp_path, adc_energy=constant))


def test_figures_keep_reasons_through_sums_products_and_quotients() -> None:
    gone, other = Figure.unknown("a"), Figure.unknown("b")
    assert (gone + other).missing == {"a", "b"}
    assert (gone * 0.0).value is None
    assert (Figure(1.0) / gone).missing == {"a"}
    assert (Figure(1.0) / Figure(0.0)).missing == {"divided by a cost of zero"}
    assert largest((Figure(1.0), gone)).missing == {"a"}
    assert largest((Figure(1.0), Figure(4.0))) == Figure(4.0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_figure_is_finite(wrong: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        Figure(wrong)
    with pytest.raises(ConfigError, match="reasons"):
        Figure(None)


def test_a_table_is_flat_rows_labelled_modelled() -> None:
    records = cost(SMALL).as_records()
    assert {record["basis"] for record in records} == {"modelled"}
    assert len({tuple(record) for record in records}) == 1


def test_a_table_names_each_component_once_and_says_which_it_has() -> None:
    row = CostRow("adc", Figure(1.0), Figure(1.0), Figure(1.0), 1)
    with pytest.raises(ConfigError, match="twice"):
        CostTable((row, row))
    with pytest.raises(ConfigError, match="allowed: adc"):
        CostTable((row,))["dac"]


def test_writing_goes_line_by_line_with_all_arrays_at_once() -> None:
    geometry = Geometry(in_features=256, out_features=32, rows=128, cols=128, slices=4)
    table = write_cost(geometry, CONSTANTS, CellWrite(energy=2e-12, pulse_time=1e-7, pulses=5))
    assert value(table["write"].energy) == pytest.approx(256 * 128 * 2e-12)
    assert value(table["write"].latency) == pytest.approx(128 * 5 * 1e-7)
    assert table["write"].operations == 256 * 128


def test_each_check_of_a_write_is_a_read_and_a_conversion() -> None:
    table = write_cost(
        SMALL,
        CONSTANTS,
        CellWrite(energy=0.0, pulse_time=0.0, pulses=1),
        verify_reads=3,
        mean_conductance=1e-5,
        mean_square_voltage=0.25,
    )
    assert value(table["verify array"].energy) == pytest.approx(12 * 3 * 1e-5 * 0.25 * 10e-9)
    assert value(table["verify adc"].energy) == pytest.approx(12 * 3 * 3.1e-3 / 1.2e9)
    assert value(table.total().latency) == pytest.approx(4 * 3 * (10e-9 + 1 / 1.2e9))


def test_an_unpublished_write_energy_is_unknown_and_the_time_is_not() -> None:
    total = write_cost(SMALL, CONSTANTS, CellWrite(energy=None, pulse_time=1e-6, pulses=1)).total()
    assert total.energy.missing == {"write energy: the device's is not published"}
    assert value(total.latency) == pytest.approx(4e-6)


def test_an_unpublished_number_of_pulses_leaves_the_time_of_a_write_unknown() -> None:
    total = write_cost(SMALL, CONSTANTS, CellWrite(energy=1e-12, pulse_time=1e-6, pulses=None)).total()
    assert total.latency.value is None
    assert value(total.energy) == pytest.approx(12e-12)


def test_refreshing_takes_power_time_and_life() -> None:
    write = CellWrite(energy=1e-12, pulse_time=1e-6, pulses=2, endurance=1e6)
    refresh = refresh_cost(write_cost(SMALL, CONSTANTS, write), write, period=100.0)
    assert value(refresh.power) == pytest.approx(12 * 1e-12 / 100)
    assert value(refresh.busy) == pytest.approx(4 * 2e-6 / 100)
    assert value(refresh.lifetime) == pytest.approx(1e6 * 100)


def test_a_lifetime_needs_a_published_endurance() -> None:
    write = CellWrite(energy=1e-12, pulse_time=1e-6, pulses=1)
    assert refresh_cost(write_cost(SMALL, CONSTANTS, write), write, 1.0).lifetime.value is None


@pytest.mark.parametrize("period", [0.0, -1.0, float("nan"), 1e-6])
def test_a_refresh_period_must_leave_time_to_write(period: float) -> None:
    write = CellWrite(energy=1e-12, pulse_time=1e-6, pulses=1)
    with pytest.raises(ConfigError, match="refresh period"):
        refresh_cost(write_cost(SMALL, CONSTANTS, write), write, period)
