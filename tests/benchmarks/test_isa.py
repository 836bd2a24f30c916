"""`--isa` restricts kernels, torch and its libraries together, in a process started anew, or says in a line why not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import bench_crossbar, isa

FILE = str(Path(bench_crossbar.__file__).resolve())
ONE_LINE = ["--smoke", "--json", "--threads", "1", "--cases", "read"]
AVX2 = {"avx2": True, "fma3": True}
AVX512 = {**AVX2, **dict.fromkeys(isa.NEEDED["avx512"], True)}


class Replaced(Exception):
    """`os.execve` does not come back."""


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Commands and environments that this process would have become."""
    made: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        assert path == command[0]
        made.append((command, environment))
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    return made


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Make torch find these capabilities, and use that instruction set."""

    def pretend(capabilities: dict[str, bool], used: str = "AVX512") -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)

    return pretend


def environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in isa.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("avx2", ("avx2", "AVX2", "AVX2")), ("avx512", ("avx512", "AVX512", "AVX512_CORE"))],
)
def test_a_restriction_starts_the_same_command_anew_under_all_three_variables(
    asked: str, expected: tuple[str, ...], replaced, processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(AVX512)
    environment(monkeypatch, {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"})
    with pytest.raises(Replaced):
        bench_crossbar.main(["--isa", asked, *ONE_LINE])
    ((command, variables),) = replaced
    assert command == [sys.executable, FILE, "--isa", asked, *ONE_LINE]
    names = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
    assert tuple(variables[name] for name in names) == expected
    assert variables["PATH"] == os.environ["PATH"]


def test_native_lifts_a_restriction_that_the_environment_has(
    replaced, processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(AVX512)
    environment(monkeypatch, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"})
    with pytest.raises(Replaced):
        isa.restrict("native", [sys.executable])
    assert not set(isa.VARIABLES) & set(replaced[0][1])


@pytest.mark.parametrize(("asked", "used"), [("avx2", "AVX2"), ("avx512", "AVX512"), ("native", "DEFAULT")])
def test_a_process_under_the_restriction_goes_on(
    asked: str, used: str, replaced, processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(AVX512, used)
    environment(monkeypatch, dict(isa.RESTRICTIONS[asked]))
    isa.restrict(asked, [sys.executable])
    assert not replaced


@pytest.mark.parametrize(
    ("capabilities", "asked", "found"),
    [(AVX2, "avx512", "AVX2"), ({"neon": True}, "avx2", "neither"), ({"avx2": True}, "avx2", "neither")],
)
def test_an_instruction_set_that_the_processor_lacks_is_refused_in_one_line(
    capabilities: dict[str, bool],
    asked: str,
    found: str,
    replaced,
    processor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # torch itself would believe the variable and die of an illegal instruction.
    processor(capabilities)
    assert bench_crossbar.main(["--isa", asked, *ONE_LINE]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith(f"error: --isa {asked}: this machine has {found}")
    assert printed.err.count("\n") == 1
    assert not replaced


def test_a_torch_that_does_not_follow_is_refused_in_one_line(
    processor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processor(AVX512, "DEFAULT")
    environment(monkeypatch, dict(isa.RESTRICTIONS["avx2"]))
    assert bench_crossbar.main(["--isa", "avx2", *ONE_LINE]) == 2
    assert capsys.readouterr().err == (
        "error: --isa avx2: torch uses DEFAULT all the same; this machine has AVX512\n"
    )


def test_the_report_says_what_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {})
    assert isa.in_use() == {
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "restricted_by": "nothing",
    }
    environment(monkeypatch, {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"})
    assert isa.in_use()["restricted_by"] == "ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2"


@pytest.mark.skipif(not isa._has("avx2"), reason="this processor has no AVX2")
def test_a_benchmark_restricted_to_avx2_runs_on_it() -> None:
    command = [sys.executable, FILE, "--isa", "avx2", *ONE_LINE]
    variables = {name: value for name, value in os.environ.items() if name not in isa.VARIABLES}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=True)
    machine = json.loads(done.stdout)["machine"]
    assert machine["torch_isa"] == "AVX2"
    assert "MKL_ENABLE_INSTRUCTIONS=AVX2" in machine["restricted_by"]
