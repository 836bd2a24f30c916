"""What segmentation costs, as ratios to the obvious way in the same process, with the limits the project set itself.

    python tests/benchmarks/bench_segmentation.py                     # a table; many minutes
    python tests/benchmarks/bench_segmentation.py --json > bench.json
    python tests/benchmarks/bench_segmentation.py --cases "metrics*" --threads 1 --repeats 5

Case and reference run alternately in one process unless a note says otherwise; the value is the ratio of their medians.
The exit status is 0 also where a limit is missed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, Python would look for `tests` beside this file.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.benchmarks import bench_main, segmentation_metric_cases, segmentation_quantized_cases  # noqa: E402

BENCHMARK = bench_main.Benchmark(
    {
        case.name: case
        for case in (
            *segmentation_metric_cases.CASES,
            *segmentation_quantized_cases.CASES,
        )
    },
    Path(__file__),
    __doc__,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it."""
    return bench_main.main(BENCHMARK, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
