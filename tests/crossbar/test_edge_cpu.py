"""The edge processor: a roofline by hand, its sources, and the comparison with a crossbar."""

from pathlib import Path

import pytest
import yaml

from nvcim.crossbar.cost import Geometry, product_cost
from nvcim.crossbar.cost_constants import BUILT_IN, Constant, load_cost_constants
from nvcim.crossbar.cost_table import CostTable
from nvcim.crossbar.edge_cpu import EdgeCpu, compare, edge_cost, load_edge_cpu
from nvcim.errors import ConfigError

PI = load_edge_cpu("cortex-a72")
ORIN = load_edge_cpu("jetson-agx-orin-cpu")


def retrieval(candidates: int) -> CostTable:
    """One query of 960 codes against stored candidates, 8-bit weights on 2-bit cells in pairs."""
    geometry = Geometry(in_features=960, out_features=candidates, rows=128, cols=128, slices=4, sides=2)
    return product_cost(geometry, load_cost_constants(), mean_conductance=1e-5, mean_square_voltage=0.25 / 3)


def test_little_arithmetic_on_much_data_waits_for_the_dram() -> None:
    table = edge_cost(PI, moved_bytes=5_561_900, operations=1000)
    assert table["dram"].latency.value == pytest.approx(1e-3)
    assert table["cpu"].latency.value == 0.0
    assert table["dram"].energy.value == pytest.approx(5_561_900 * 8 * 8e-12)
    assert table.total().latency.value == pytest.approx(1e-3)


def test_much_arithmetic_on_little_data_waits_for_the_cores() -> None:
    table = edge_cost(PI, moved_bytes=8, operations=48_000_000)
    assert table["cpu"].latency.value == pytest.approx(1e-3)
    assert table["dram"].latency.value == 0.0
    assert table["cpu"].energy.value == pytest.approx(48_000_000 * (6.4 - 2.7) / 48e9)


def test_energy_is_a_sum_and_time_a_maximum() -> None:
    both = edge_cost(PI, moved_bytes=10**6, operations=10**9).total()
    data = edge_cost(PI, moved_bytes=10**6, operations=0).total()
    work = edge_cost(PI, moved_bytes=0, operations=10**9).total()
    assert both.energy.value == pytest.approx((data.energy + work.energy).value)
    assert data.latency.value is not None
    assert work.latency.value is not None
    assert both.latency.value == max(data.latency.value, work.latency.value)


def test_an_unpublished_energy_stays_unknown_while_the_time_is_known() -> None:
    total = edge_cost(ORIN, moved_bytes=204_800_000, operations=1).total()
    assert total.latency.value == pytest.approx(1e-3)
    assert total.energy.value is None
    assert any(reason.startswith("dram_energy") for reason in total.energy.missing)


def test_every_constant_of_an_edge_cpu_has_a_source_or_says_why_not() -> None:
    for cpu in (PI, ORIN):
        for name in EdgeCpu.model_fields:
            constant = getattr(cpu, name)
            if isinstance(constant, Constant):
                assert len(constant.source) > 10 if constant.value is not None else constant.note, name


def test_a_crossbar_beats_the_edge_cpu_at_reading_a_bank_from_dram() -> None:
    candidates = 10_000  # 9.6 MB of 8-bit codes, beyond the 1 MB of cache that four Cortex-A72 share
    edge = edge_cost(PI, moved_bytes=960 * candidates, operations=2 * 960 * candidates)
    against = compare(retrieval(candidates), edge)
    assert against.time_ratio.value is not None
    assert against.energy_ratio.value is not None
    assert against.time_ratio.value > 1
    assert against.energy_ratio.value > 1


def test_an_unknown_energy_gives_no_ratio_but_its_reason() -> None:
    against = compare(retrieval(100), edge_cost(ORIN, 96_000, 192_000))
    assert against.time_ratio.value is not None
    assert against.energy_ratio.value is None
    assert len(against.energy_ratio.missing) == 2


def test_an_unknown_name_lists_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match="allowed: cortex-a72, jetson-agx-orin-cpu"):
        load_edge_cpu("pentium")


def test_negative_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1 bytes"):
        edge_cost(PI, -1, 0)


def test_a_users_file_adds_processors_and_refuses_unknown_fields(tmp_path: Path) -> None:
    content = yaml.safe_load(BUILT_IN.read_text(encoding="utf-8"))
    mine = dict(content["edge_cpus"]["cortex-a72"], title="mine")
    content["edge_cpus"]["mine"] = mine
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_edge_cpu("mine", path).title == "mine"
    mine["cores"] = 4
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown field 'cores'"):
        load_edge_cpu("mine", path)
