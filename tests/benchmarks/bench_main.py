"""The command line and the report of a benchmark: which cases on how many threads, as a table or as JSON."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from tests.benchmarks import isa, timing
from tests.benchmarks.cases import SMOKE, Case, Setup, Sizes
from tests.benchmarks.timing import Result

CHILD_SECONDS = 1800


@dataclass(frozen=True)
class Benchmark:
    """A file of cases.

    Attributes:
        cases: by name.
        file: the script, run again for a case with a process of its own.
        about: its docstring, for `--help`.
        facts: what else its figures depend on, for the report.
    """

    cases: Mapping[str, Case]
    file: Path
    about: str
    facts: Callable[[], Mapping[str, object]] = dict


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it.

    Returns:
        The exit status: 1 if a line failed (`Result.failed`), unless it is a smoke run, whose figures mean nothing;
        2 if the instruction set asked for cannot be had.
    """
    options = _options(benchmark, arguments)
    if options.isa:
        given = sys.argv[1:] if arguments is None else arguments
        try:
            isa.restrict(options.isa, [sys.executable, str(benchmark.file.resolve()), *given])
        except isa.WrongInstructionSet as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    sizes = SMOKE if options.smoke else Sizes()
    if options.child:
        torch.set_num_threads(options.threads[0])
        case = benchmark.cases[options.child]
        lines = case.measure(case, Setup(sizes, options.threads[0], options.repeats))
        print(json.dumps([line.as_json() for line in lines]))
        return 0
    chosen = _chosen(benchmark, options.cases)
    warnings, machine = timing.load_warnings(), timing.machine()
    machine |= dict(benchmark.facts())
    machine |= {"threads": options.threads, "repeats": options.repeats, "smoke": options.smoke}
    results = [
        line
        for setup in _setups(sizes, options)
        for case in chosen
        if setup.device == "cpu" or case.gpu
        for line in _measure(benchmark, case, setup, options.smoke, not options.json)
    ]
    warnings += timing.steadiness_warnings(results)
    if options.smoke:
        warnings.append("a smoke run: shapes too small for the figures to mean anything")
    if options.json:
        report = {"machine": machine, "warnings": warnings, "results": [line.as_json() for line in results]}
        print(json.dumps(report, indent=1))
    else:
        print(_table(machine, warnings, results))
    return int(not options.smoke and any(line.failed for line in results))


def _options(benchmark: Benchmark, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=benchmark.about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="cases: " + ", ".join(benchmark.cases),
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument(
        "--threads", type=_positive, nargs="+", default=[1, 2], help="torch's threads, in turn"
    )
    parser.add_argument("--repeats", type=_positive, help="runs of each case (default: 9)")
    parser.add_argument(
        "--cases", nargs="+", default=["*"], metavar="NAME", help="names or patterns such as 'read*'"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny shapes and 1 run: only to see that it works"
    )
    parser.add_argument(
        "--isa",
        choices=sorted(isa.RESTRICTIONS),
        help="restrict our kernels, torch, MKL and oneDNN to it, or let all use what the processor has "
        "(default: as the environment says)",
    )
    parser.add_argument("--child", choices=sorted(benchmark.cases), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (1 if options.smoke else 9)
    unknown = [name for name in options.cases if not any(fnmatch(case, name) for case in benchmark.cases)]
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; allowed: {', '.join(benchmark.cases)}")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return int(text)


def _chosen(benchmark: Benchmark, patterns: Sequence[str]) -> list[Case]:
    return [
        case for name, case in benchmark.cases.items() if any(fnmatch(name, pattern) for pattern in patterns)
    ]


def _setups(sizes: Sizes, options: argparse.Namespace) -> list[Setup]:
    """Every number of threads on the CPU, then the GPU if there is one."""
    setups = [Setup(sizes, threads, options.repeats) for threads in options.threads]
    if torch.cuda.is_available():
        setups.append(Setup(sizes, options.threads[-1], options.repeats, "cuda"))
    return setups


def _measure(benchmark: Benchmark, case: Case, setup: Setup, smoke: bool, progress: bool) -> list[Result]:
    if progress:
        print(f"... {case.name}, {setup.threads} thread(s), {setup.place}", file=sys.stderr)
    if case.environment is not None:
        return _in_own_process(benchmark, case, setup, smoke)
    torch.set_num_threads(setup.threads)
    try:
        return case.measure(case, setup)
    except torch.OutOfMemoryError as error:
        return [case.skipped(setup, str(error).splitlines()[0])]


def _in_own_process(benchmark: Benchmark, case: Case, setup: Setup, smoke: bool) -> list[Result]:
    """Run the benchmark's file for one case, with the case's environment."""
    own = ["--child", case.name, "--threads", str(setup.threads), "--repeats", str(setup.repeats)]
    command = [sys.executable, str(benchmark.file.resolve()), *own, *(["--smoke"] if smoke else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(setup.threads), **(case.environment or {})}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        return [case.skipped(setup, f"took more than {CHILD_SECONDS} s")]
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        return [case.skipped(setup, f"its process failed: {last[0]}")]
    # The last line: a peer may print as it is imported.
    return [Result.from_json(line) for line in json.loads(done.stdout.splitlines()[-1])]


def _table(machine: dict[str, object], warnings: Sequence[str], results: Sequence[Result]) -> str:
    """The report as text: machine, one line per result, notes, warnings."""
    head = (
        *("case", "thr", "value", "", "limit", "", "ms", "reference ms", "plain ms"),
        *("quartiles of the ratio", "what"),
    )
    rows = [head, *(_row(line) for line in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    facts = [", ".join(f"{name} {value}" for name, value in machine.items())]
    notes = [f"{name}: {note}" for name, note in dict.fromkeys((r.case, r.note) for r in results if r.note)]
    verdicts = (
        _verdict("limits met", "missed", [(line, line.met) for line in results]),
        _verdict(
            "compiled lines at least as fast as plain torch",
            "slower",
            [
                (line, None if line.slower_than_plain is None else not line.slower_than_plain)
                for line in results
            ],
        ),
    )
    return "\n".join(
        [*facts, "", *text, "", *notes, *verdicts, *(f"WARNING: {warning}" for warning in warnings)]
    )


def _verdict(held: str, broken: str, lines: Sequence[tuple[Result, bool | None]]) -> str:
    """How many of the lines that were judged (not None) hold, and which do not."""
    judged = [(line, holds) for line, holds in lines if holds is not None]
    failed = [f"{line.case} ({line.threads})" for line, holds in judged if not holds]
    return f"{len(judged) - len(failed)} of {len(judged)} {held}" + (
        f"; {broken}: {', '.join(failed)}" if failed else ""
    )


def _row(line: Result) -> tuple[str, ...]:
    device = "" if line.device == "cpu" else f" on {line.device}"
    name, threads, title = line.case, str(line.threads), line.title + device
    if line.value is None:
        return name, threads, "-", "", "", "skipped", "", "", "", "", title
    said = [{True: "met", False: "MISSED", None: ""}[line.met], "SLOWER" if line.slower_than_plain else ""]
    met = " ".join(filter(None, said))
    limit = "" if line.limit is None else f"{line.limit:g}"
    value = f"{line.value:.2e}" if line.value < 1e-3 else f"{line.value:.2f}"
    if line.timing is None:
        return name, threads, value, line.unit, limit, met, "", "", "", "", title
    spreads = (line.timing.case, line.timing.reference, line.timing.plain)
    times = ["" if spread is None else f"{spread.median:.2f}" for spread in spreads]
    ratios = line.timing.ratios
    quartiles = f"{ratios.quarter:.2f} .. {ratios.three_quarters:.2f}"
    return name, threads, value, line.unit, limit, met, *times, quartiles, title
