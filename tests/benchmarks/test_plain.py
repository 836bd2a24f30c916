"""A compiled line is measured beside itself in plain torch, and fails where compiling costs time."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from nvcim.crossbar import conversion, kernel, programming
from nvcim.prompts import frozen_decoder, frozen_kernel, tuning
from nvcim.prompts.frozen_rows import PlainRows
from tests.benchmarks import bench_main, cases, plain, prompt_memory_cases, prompt_tuning_cases, timing
from tests.benchmarks.bench_main import Benchmark
from tests.benchmarks.cases import SMOKE, Case, Setup
from tests.benchmarks.plain import beside_plain, plain_torch
from tests.benchmarks.timing import Result, Spread, Timing, alternate

needs_kernels = pytest.mark.skipif(
    kernel.kernel_for() is None or frozen_kernel.frozen_kernel() is None,
    reason=f"crossbars: {kernel.kernel_status()}; tuning: {frozen_kernel.frozen_kernel_status()}",
)


@needs_kernels
def test_inside_plain_torch_nothing_finds_a_kernel_and_afterwards_all_do() -> None:
    lm = prompt_tuning_cases.model("cpu")
    engine = tuning.frozen_rows(lm, "float32", 100)
    assert not isinstance(engine, PlainRows)

    def inside() -> None:
        assert conversion.kernel_for(torch.ones(1)) is None
        assert programming.kernel_for() is None
        assert kernel.kernel_for() is None
        assert frozen_kernel.frozen_kernel() is None
        assert isinstance(tuning.frozen_rows(lm, "float32", 100), PlainRows)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), plain_torch():
        inside()
    assert conversion.kernel_for(torch.ones(1)) is not None
    assert programming.kernel_for is kernel.kernel_for
    assert frozen_decoder.frozen_kernel() is frozen_kernel.frozen_kernel() is not None
    assert tuning.frozen_rows(lm, "float32", 100) is engine


@needs_kernels
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in (*cases.CASES, *prompt_memory_cases.CASES, *prompt_tuning_cases.CASES)
        if case.environment is None and case.name != "wires" and not case.name.startswith("ladder.")
    ],
    ids=lambda case: case.name,
)
def test_compiled_lines_have_a_plain_time_without_kernels(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[object] = []
    for place in plain.LOOKUPS:
        monkeypatch.setitem(plain.LOOKUPS, place, lambda *tensors, name=place[1]: refused.append(name))
    line, *_ = case.measure(case, Setup(SMOKE, torch.get_num_threads(), 1))
    if line.value is not None:  # bfloat16 needs products that some processors lack
        assert line.timing is not None
        assert line.timing.plain is not None
        assert refused, "it asks for no kernel: nothing to compare"


@needs_kernels
def test_rungs_with_the_kernel_are_compared_with_the_last_without() -> None:
    compared = {
        case.name: case.measure(case, Setup(SMOKE, torch.get_num_threads(), 1))[0].slower_than_plain
        is not None
        for case in prompt_tuning_cases.CASES
        if case.name in ("ladder.3_passes", "ladder.4_compiled", "ladder.6_first")
    }
    assert compared == {"ladder.3_passes": False, "ladder.4_compiled": True, "ladder.6_first": True}


def test_without_a_kernel_there_is_no_plain_counterpart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "kernel_for", lambda *tensors: None)
    monkeypatch.setattr(frozen_kernel, "frozen_kernel", lambda: None)
    timing = beside_plain(lambda: None, lambda: None, 1)
    assert timing.plain is None
    assert timing.slower_than_plain is None


def test_the_plain_run_follows_the_case_in_a_context_of_its_own() -> None:
    calls: list[str] = []

    class Inside:
        def __enter__(self) -> None:
            calls.append("(")

        def __exit__(self, *raised: object) -> None:
            calls.append(")")

    timing = alternate(lambda: calls.append("case"), lambda: calls.append("reference"), 2, Inside)
    warm_up = ["case", "reference", "(", "case", ")"]
    assert calls == warm_up + ["reference", "case", "(", "case", ")"] * 2
    assert timing.plain is not None


def test_plain_runs_that_take_long_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[str] = []

    def plain_runs(seconds: float) -> int:
        """Of 4 repeats, after the one that is not counted, where each takes so long."""
        inside.clear()
        clock = iter(range(1000))
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) * seconds)
        found = alternate(lambda: None, lambda: None, 4, lambda: nullcontext(inside.append("run")))
        assert found.plain is not None
        assert found.plain.median == pytest.approx(1000 * seconds)
        return len(inside)

    assert plain_runs(1.0) == 1 + 4
    assert plain_runs(6.0) == 1 + 2
    assert plain_runs(14.0) == 1 + 1
    assert plain_runs(16.0) == 1  # the first is counted after all


def spread(milliseconds: float) -> Spread:
    return Spread.of([milliseconds])


def line(name: str, value: float, limit: float | None, own: float, plain_torch: float | None) -> Result:
    plainly = None if plain_torch is None else spread(plain_torch)
    timing = Timing(spread(own), spread(1.0), own, spread(own), 1, plainly)
    return Result(name, name.upper(), 1, "cpu", value, "x", limit, timing)


def test_a_line_fails_beyond_its_limit_or_slower_than_plain() -> None:
    assert not line("good", 2.0, 2.0, 2.0, 3.0).failed
    assert not line("unlimited", 2.0, None, 2.0, None).failed
    assert line("beyond", 2.1, 2.0, 2.1, 3.0).failed
    assert line("slower", 1.0, 2.0, 3.1, 3.0).failed
    assert line("slower, no limit", 1.0, None, 3.1, 3.0).failed
    assert not Result("skipped", "S", 1, "cpu", None, "", limit=1.0).failed


LINES = {
    "good": line("good", 2.0, 2.0, 2.0, 3.0),
    "beyond": line("beyond", 2.1, 2.0, 2.1, None),
    "slower": line("slower", 1.0, 2.0, 3.1, 3.0),
}
BENCHMARK = Benchmark(
    {name: Case(name, name, lambda case, setup: [LINES[case.name]], gpu=False) for name in LINES},
    Path(__file__),
    "Three lines.",
)


@pytest.fixture
def threads():
    """The benchmark sets torch's threads for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_failures_show_in_the_table_in_json_and_in_the_exit_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        return bench_main.main(BENCHMARK, ["--threads", "1", *arguments]), capsys.readouterr().out

    status, table = run()
    assert status == 1
    rows = {row.split()[0]: row.split() for row in table.splitlines() if row.split()}
    assert not {"MISSED", "SLOWER"} & set(rows["good"])
    assert "MISSED" in rows["beyond"]
    assert {"met", "SLOWER"} <= set(rows["slower"])
    assert "2 of 3 limits met; missed: beyond (1)" in table
    assert "1 of 2 compiled lines at least as fast as plain torch; slower: slower (1)" in table

    status, document = run("--json")
    assert status == 1
    results = {one["case"]: one for one in json.loads(document)["results"]}
    assert {name: one["failed"] for name, one in results.items()} == {
        "good": False,
        "beyond": True,
        "slower": True,
    }
    assert {name: one["slower_than_plain"] for name, one in results.items()} == {
        "good": False,
        "beyond": None,
        "slower": True,
    }
    assert results["slower"]["timing"]["plain"]["median"] == 3.0

    assert run("--cases", "good")[0] == 0
    assert run("--cases", "slower")[0] == 1
    assert run("--cases", "slower", "--smoke")[0] == 0  # tiny shapes: figures mean nothing


def test_the_limits_of_many_chips_and_of_tuning_are_those_that_were_set() -> None:
    limits = {
        case.name: case.measure(case, Setup(SMOKE, torch.get_num_threads(), 1))[0].limit
        for case in cases.CASES
        if case.name in ("devices_read", "devices_both", "devices_both_pair")
    }
    assert limits == {"devices_read": 1.5, "devices_both": 3.5, "devices_both_pair": 2.5}
    assert prompt_tuning_cases.AT_MOST == {1: 1 / 2.5, 2: 1 / 4}
