"""What a search costs: by hand for small ones, labels, and how it grows with the number of stored sets."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.crossbar.cost import product_cost
from nvcim.crossbar.cost_constants import load_cost_constants
from nvcim.crossbar.geometry import geometry_of
from nvcim.errors import ConfigError, DeviceError
from nvcim.prompts import retrieval_cost
from nvcim.prompts.retrieval_cost import (
    NOT_A_REPRODUCTION,
    SearchHardware,
    SearchTime,
    devices_told_apart,
    retrieval_cost_rows,
    search_cost,
    time_search,
)
from nvcim.randomness import named_generator

PAPER = ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6")
SMALL = CrossbarConfig(device="Ideal1", weight_bits=2)
"""One cell per side of a pair: two arrays hold a tile of 128 x 128 elements."""
ADD_TIME = 1 / 1.2e9 * 22 / 32
ADD_ENERGY = 0.1e-12 * 22 / 45


def given_times(ovts: Sequence[int], seconds: float = 1e-3) -> list[SearchTime]:
    return [SearchTime(n, p, seconds, "measured", "given") for n in ovts for p in ("float32", "int8")]


def value(figure: float | None) -> float:
    assert figure is not None
    return figure


def latency(ovts: int, hardware: SearchHardware | None = None) -> float:
    return value(search_cost(SMALL, 128, ovts, hardware).table.total().latency.value)


def energy(ovts: int, hardware: SearchHardware | None = None) -> float:
    return value(search_cost(SMALL, 128, ovts, hardware).table.total().energy.value)


def test_the_time_of_a_small_search_is_that_by_hand() -> None:
    read = 10e-9
    convert = 3 * 8 / (8 * 1.2e9)  # three outputs in turn, 8 bits at 1.2 GS/s of 8 bits
    bus = (4 * 8 + 3 * 32) / (256 * 1.2e9) * 22 / 32  # four inputs of 8 bits, three outputs of 32
    tree = 2 * ADD_TIME  # three scores: two levels
    cost = search_cost(SMALL, 4, 3)
    assert (cost.arrays, cost.rounds) == (2, 1)
    assert cost.table.total().latency.value == pytest.approx(read + convert + bus + tree, rel=1e-9)


def test_the_energy_is_that_of_the_product_and_of_one_comparison_fewer_than_scores() -> None:
    conductance = (1 / 100e3 + 1 / 1.7e6) / 2
    square = 0.5**2 / 3
    product = product_cost(
        geometry_of(SMALL, 4, 3),
        load_cost_constants(),
        mean_conductance=conductance,
        mean_square_voltage=square,
    ).total()
    total = search_cost(SMALL, 4, 3).table.total()
    assert total.energy.value == pytest.approx(value(product.energy.value) + 2 * ADD_ENERGY, rel=1e-12)
    cells = 4 * 3 * 2
    assert search_cost(SMALL, 4, 3).table["array"].energy.value == pytest.approx(
        cells * conductance * square * 10e-9
    )


@pytest.mark.parametrize(("scores", "levels"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8)])
def test_the_winners_tree_halves_the_scores_at_each_level(scores: int, levels: int) -> None:
    winner = search_cost(SMALL, 4, scores).table["winner"]
    assert winner.latency.value == pytest.approx(levels * ADD_TIME)
    assert winner.energy.value == pytest.approx((scores - 1) * ADD_ENERGY)


def test_a_device_with_published_conductances_uses_them() -> None:
    config = CrossbarConfig(
        device="RRAM_Wan2022", weight_bits=8
    )  # 0 to 40 uS, 7 bits and a sign: one cell a side
    array = search_cost(config, 4, 3).table["array"].energy.value
    assert array == pytest.approx(4 * 3 * 2 * 20e-6 * 0.25 / 3 * 10e-9)
    row = retrieval_cost_rows(config, 2, 2, [3], times=given_times([3]))[0]
    assert "conductances of RRAM_Wan2022, cells" in str(row["assumption"])


def test_half_of_a_bit_serial_inputs_pulses_are_on() -> None:
    serial = CrossbarConfig(device="Ideal1", weight_bits=2, input_coding="bit_serial")
    array = value(search_cost(serial, 4, 3).table["array"].energy.value)
    analog = value(search_cost(SMALL, 4, 3).table["array"].energy.value)
    assert array / analog == pytest.approx(8 * (1 / 2) / (1 / 3))  # 8 pulses


@pytest.mark.parametrize(("chip_arrays", "rounds"), [(2, 3), (3, 3), (4, 2), (6, 1), (None, 1)])
def test_a_chip_of_few_arrays_reads_them_in_rounds(chip_arrays: int | None, rounds: int) -> None:
    cost = search_cost(
        SMALL, 128, 300, SearchHardware(chip_arrays=chip_arrays)
    )  # tiles of 128, 128, 44 columns
    assert (cost.arrays, cost.rounds) == (6, rounds)


def test_rounds_add_up_and_each_but_the_first_compares_with_the_best_before() -> None:
    hardware = SearchHardware(chip_arrays=2)
    assert latency(300, hardware) == pytest.approx(2 * latency(128) + latency(44) + 2 * ADD_TIME, rel=1e-12)
    assert energy(300, hardware) == pytest.approx(2 * energy(128) + energy(44) + 2 * ADD_ENERGY, rel=1e-12)


def test_a_chip_too_small_for_one_stored_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="field 'chip_arrays' is 1; a stored set of 200 elements lies in 4"):
        search_cost(SMALL, 200, 10, SearchHardware(chip_arrays=1))


def test_once_a_bus_is_full_only_the_tree_adds_to_the_time_of_a_chip() -> None:
    all_at_once = SearchHardware(chip_arrays=None)
    columns = 128 * 48  # of a bus: 96 arrays, two per tile
    few, many = latency(columns * 10, all_at_once), latency(columns * 100, all_at_once)
    assert many - few == pytest.approx(
        4 * ADD_TIME, rel=1e-6
    )  # 61,440 scores take 16 levels, 614,400 take 20


def test_beyond_a_chip_time_is_in_proportion() -> None:
    hardware = SearchHardware(chip_arrays=192)
    times = [latency(96 * 128 * n, hardware) for n in (10, 100)]
    assert times[1] / times[0] == pytest.approx(10, rel=0.01)


def test_energy_and_arrays_grow_with_every_decade() -> None:
    costs = [search_cost(CrossbarConfig(), 512, 10**n) for n in range(1, 7)]
    energies = [value(cost.table.total().energy.value) for cost in costs]
    assert all(more > less for less, more in pairwise(energies))
    assert [cost.rounds for cost in costs] == [1, 1, 1, 1, 2, 16]
    # 4 tiles of rows, 8 arrays for 4 slices of 2 sides, 7813 tiles of 128 columns
    assert costs[-1].arrays == 4 * 8 * 7813


def test_rows_are_labelled_and_ratios_refer_to_the_crossbar_of_the_same_size() -> None:
    ovts = [10, 10_000]
    table = retrieval_cost_rows(CrossbarConfig(), 8, 64, ovts, times=given_times(ovts))
    assert [(row["ovts"], row["what"], row["basis"]) for row in table] == [
        (n, what, basis)
        for n in ovts
        for what, basis in (
            ("crossbar", "modelled"),
            ("this CPU", "measured"),
            ("this CPU", "measured"),
            ("edge CPU", "modelled"),
            ("edge CPU", "modelled"),
        )
    ]
    for row in table:
        assert row["device"] == "FeFET2"
        own = next(r for r in table if r["ovts"] == row["ovts"] and r["what"] == "crossbar")
        if row["what"] == "crossbar":
            assert row["time_ratio"] is None
            assert row["energy_ratio"] is None
            continue
        assert row["time_ratio"] == pytest.approx(row["latency_s"] / own["latency_s"])  # type: ignore[operator]
        if row["energy_j"] is None:
            assert row["energy_ratio"] is None
        else:
            assert row["energy_ratio"] == pytest.approx(row["energy_j"] / own["energy_j"])  # type: ignore[operator]
    assert {row["energy_j"] for row in table if row["what"] == "this CPU"} == {None}


def test_an_edge_cpu_reads_from_its_cache_what_fits_there() -> None:
    ovts = [10, 10_000]
    table = retrieval_cost_rows(CrossbarConfig(), 8, 64, ovts, times=given_times(ovts))
    small, large = (row for row in table if row["processor"] == "cortex-a72")
    operations = 2 * 512 * 10 + 9
    assert small["latency_s"] == pytest.approx(operations / 48e9)
    assert small["energy_j"] == pytest.approx(operations * (6.4 - 2.7) / 48e9)
    assert "stay in its 1 MiB of cache" in str(small["assumption"])
    assert large["latency_s"] == pytest.approx(512 * 10_000 / 5.5619e9)
    assert "from DRAM for every query" in str(large["assumption"])


def test_codes_of_four_bits_are_half_the_bytes_for_the_edge_cpu() -> None:
    config = CrossbarConfig(weight_bits=4)
    table = retrieval_cost_rows(config, 8, 64, [100_000], times=given_times([100_000]))
    row = next(row for row in table if row["processor"] == "cortex-a72")
    assert row["latency_s"] == pytest.approx(512 * 100_000 / 2 / 5.5619e9)


def test_codes_wider_than_int8_are_compared_with_float32_only() -> None:
    table = retrieval_cost_rows(CrossbarConfig(weight_bits=12), 8, 64, [10], times=given_times([10]))
    mine = [str(row["processor"]) for row in table if row["what"] == "this CPU"]
    assert len(mine) == 1
    assert mine[0].endswith("float32")


def test_assumptions_name_what_the_figures_hang_on() -> None:
    crossbar, *_, jetson = retrieval_cost_rows(CrossbarConfig(), 8, 64, [1000], times=given_times([1000]))
    text = str(crossbar["assumption"])
    for part in (
        "22 nm",
        "256 arrays of 128 x 128",
        "at most 16128 read at once",
        "1 round(s)",
        "8 columns per ADC of 8 bits",
        "FeFET2 not published: 100 to 1700 kOhm assumed",
        "W while it searches",
    ):
        assert part in text
    assert "unknown: dram_energy" in str(jetson["assumption"])
    assert "not a reproduction" in NOT_A_REPRODUCTION


def test_what_an_ideal_converter_costs_is_unknown_not_zero() -> None:
    table = retrieval_cost_rows(CrossbarConfig(adc_bits=None), 8, 64, [10], times=given_times([10]))
    assert (table[0]["latency_s"], table[0]["energy_j"]) == (None, None)
    assert "unknown: adc_bits" in str(table[0]["assumption"])
    assert {row["time_ratio"] for row in table} == {None}


def test_the_papers_devices_fall_into_two_that_the_cost_model_tells_apart() -> None:
    assert devices_told_apart(CrossbarConfig(), PAPER) == [
        ("RRAM1",),
        ("FeFET2", "FeFET3", "RRAM4", "FeFET6"),
    ]
    one, four = (
        value(search_cost(CrossbarConfig(device=name), 512, 1000).table.total().energy.value)
        for name in ("RRAM1", "FeFET2")
    )
    assert one > four
    with pytest.raises(DeviceError, match="'FeFET9' is not in the catalogue"):
        devices_told_apart(CrossbarConfig(), ["FeFET9"])


def test_both_precisions_find_the_same_winner_and_it_is_the_largest_inner_product() -> None:
    generator = named_generator(0, "codes to time")
    run = torch.randint(-63, 64, (40 + 23 - 1,), dtype=torch.int8, generator=generator).tolist()
    query = torch.randint(-127, 128, (1, 40), dtype=torch.int8, generator=generator)[0].tolist()
    scores = [sum(a * b for a, b in zip(query, run[j : j + 40], strict=True)) for j in range(23)]
    winner = scores.index(max(scores))
    assert int(retrieval_cost._search("int8", 40, 23)()) == winner
    assert int(retrieval_cost._search("float32", 40, 23)()) == winner


def test_what_exceeds_the_memory_limit_is_labelled_modelled_and_scales_by_bandwidth() -> None:
    threads = torch.get_num_threads()
    times = time_search(64, [10, 1000, 2000], repeats=3, memory_limit=64 * 4 * 100)
    found = {(time.precision, time.ovts): time for time in times}
    assert len(times) == 6
    for precision in ("float32", "int8"):
        assert found[precision, 10].basis == "measured"
        assert "median of 3 repeats" in found[precision, 10].how
        for n in (1000, 2000):
            assert found[precision, n].basis == "modelled"
            assert "extrapolated, not measured" in found[precision, n].how
        assert found[precision, 2000].seconds == pytest.approx(2 * found[precision, 1000].seconds)
    assert "measured at 100 stored sets" in found["float32", 1000].how
    assert "measured at 400 stored sets" in found["int8", 1000].how
    assert all(time.seconds > 0 for time in times)
    assert torch.get_num_threads() == threads


def test_an_extrapolated_time_stays_modelled_in_the_table() -> None:
    times = time_search(16, [100_000], repeats=1, memory_limit=100_000)
    table = retrieval_cost_rows(CrossbarConfig(), 4, 4, [100_000], times=times)
    mine = [row for row in table if row["what"] == "this CPU"]
    assert [row["basis"] for row in mine] == ["modelled", "modelled"]
    assert all("extrapolated, not measured" in str(row["assumption"]) for row in mine)


@pytest.mark.parametrize(
    ("rows", "ovts", "repeats", "limit"),
    [(0, [1], 1, 100), (8, [0], 1, 100), (8, [1], 0, 100), (8, [1], 1, 31)],
)
def test_timing_nothing_is_refused(rows: int, ovts: list[int], repeats: int, limit: int) -> None:
    with pytest.raises(ConfigError, match=r"allowed: 1 or more|one stored set takes 32 bytes"):
        time_search(rows, ovts, repeats, limit)


def test_a_size_without_a_time_is_named() -> None:
    with pytest.raises(ConfigError, match="no time of this CPU for 20 stored sets"):
        retrieval_cost_rows(CrossbarConfig(), 4, 4, [10, 20], times=given_times([10]))


def test_times_are_measured_where_none_are_given() -> None:
    table = retrieval_cost_rows(CrossbarConfig(), 4, 4, [10], repeats=1)
    mine = [row for row in table if row["what"] == "this CPU"]
    assert [str(row["processor"]).rsplit(", ", 1)[1] for row in mine] == ["float32", "int8"]
    assert all(row["basis"] == "measured" and row["latency_s"] for row in mine)
