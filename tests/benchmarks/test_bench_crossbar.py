import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.benchmarks.bench_crossbar import main
from tests.benchmarks.timing import Result, Spread, Timing, alternate

# In this process; the cases with processes of their own start torch anew, seconds each.
INSIDE = ["read*", "devices*", "conv", "bit_serial", "program*", "wires", "linear", "peer.crosssim.read"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmark sets torch's threads for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_case_gives_a_figure_or_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--json", "--threads", "1", "--cases", *INSIDE]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["threads"] == [1]
    assert report["machine"]["kernel"]
    assert report["machine"]["torch_isa"] == torch.backends.cpu.get_cpu_capability()
    by_case = {line["case"]: line for line in report["results"]}
    assert len(by_case) == 15
    for line in report["results"]:
        assert line["value"] is not None or line["note"].startswith("skipped: ")
        assert line["met"] == (
            None if line["limit"] is None or line["value"] is None else line["value"] <= line["limit"]
        )
    assert by_case["read"]["limit"] == 1.5
    assert by_case["read"]["timing"]["repeats"] == 1


def test_the_exact_matrix_agrees_with_the_nodal_solve(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke", "--json", "--threads", "1", "--cases", "wires"])
    error = json.loads(capsys.readouterr().out)["results"][1]
    assert error["unit"] == "relative"
    assert error["met"] is True


def test_the_table_has_limits_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    # The second case runs the file as a script, in a process of its own.
    main(["--smoke", "--threads", "1", "--cases", "read", "memory"])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert any(row[:2] == ["read", "1"] and "1.5" in row for row in rows)
    assert any(row[:2] == ["memory", "1"] for row in rows)
    assert not any("its process failed" in line for line in printed.splitlines())
    assert "of 1 limits met" in printed or "of 2 limits met" in printed
    assert "torch_isa " in printed


def test_peak_memory_counts_at_least_what_is_alive(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", "--threads", "1", "--cases", "memory"])
    whole, *rest = json.loads(capsys.readouterr().out)["results"]
    if whole["value"] is None:
        pytest.skip(whole["note"])
    # Weights, inputs and outputs (1 + 1/4 + 1/4 matrices), and the crossbar's own matrix.
    assert whole["value"] >= 2.5 / 1.5
    assert whole["value"] > rest[0]["value"] > 0


def test_an_unknown_case_is_refused_with_those_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--cases", "reed"])
    assert "no case is called reed; allowed: read, " in capsys.readouterr().err


def test_case_and_reference_alternate_after_a_warm_up() -> None:
    calls: list[str] = []
    timing = alternate(lambda: calls.append("case"), lambda: calls.append("reference"), 3)
    assert calls == ["case", "reference"] + ["reference", "case"] * 3
    assert timing.repeats == 3


def test_results_survive_the_way_from_another_process() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.low, spread.high) == (2.0, 1.0, 3.0)
    timing = Timing(spread, spread, 1.0, spread, 3)
    for line in (
        Result("a", "A", 1, "cpu", 1.0, "x", 0.5, timing, "n"),
        Result("a", "A", 1, "cpu", 1.0, "x", 0.5, replace(timing, plain=spread)),
        Result("a", "A", 1, "cpu", None, ""),
    ):
        assert Result.from_json(json.loads(json.dumps(line.as_json()))) == line


def test_a_reference_that_wanders_is_called_unsteady() -> None:
    calm, wild = Spread.of([1.0, 1.0, 1.0, 1.1]), Spread.of([1.0, 1.0, 2.0, 2.0])
    assert Timing(calm, calm, 1.0, calm, 4).steady
    assert not Timing(calm, wild, 1.0, calm, 4).steady
