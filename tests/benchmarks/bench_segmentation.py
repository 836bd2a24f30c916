"""What segmentation costs, as ratios to the obvious way in the same process, with the limits the project set itself.

    python tests/benchmarks/bench_segmentation.py                     # a table; many minutes
    python tests/benchmarks/bench_segmentation.py --json > bench.json
    python tests/benchmarks/bench_segmentation.py --cases "metrics*" --threads 1 --repeats 5

Case and reference run alternately in one process unless a note says otherwise; the value is the ratio of their medians.
The exit status is 1 where a limit is missed.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# Run as a script, Python would look for `tests` beside this file.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.benchmarks import bench_main  # noqa: E402

# Every file of segmentation cases beside this one, in the order of their names.
FILES = sorted(path.stem for path in Path(__file__).resolve().parent.glob("segmentation_*_cases.py"))
BENCHMARK = bench_main.Benchmark(
    {case.name: case for name in FILES for case in import_module(f"tests.benchmarks.{name}").CASES},
    Path(__file__),
    __doc__,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it."""
    return bench_main.main(BENCHMARK, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
