"""What the crossbar costs, as ratios to torch's product of the same shape, with the limits the project set itself.

    python tests/benchmarks/bench_crossbar.py                     # a table; some minutes
    python tests/benchmarks/bench_crossbar.py --json > bench.json
    python tests/benchmarks/bench_crossbar.py --cases "read*" conv --threads 1 --repeats 21
    python tests/benchmarks/bench_crossbar.py --isa avx2          # ours and torch's, as on a machine without AVX-512

Case, reference and the case in plain torch run in turn in one process; the value is the ratio of the first two medians.
Other simulators are measured too where they can be imported (peers.py). The exit status is 1 where a limit is missed or
a compiled case is slower than in plain torch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, Python would look for `tests` beside this file.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.benchmarks import bench_main, cases, peers  # noqa: E402

BENCHMARK = bench_main.Benchmark(
    {case.name: case for case in (*cases.CASES, *peers.CASES)}, Path(__file__), __doc__
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it."""
    return bench_main.main(BENCHMARK, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
