"""What prompts cost, as ratios to the tools of today in the same process, with the limits the project set itself.

    python tests/benchmarks/bench_prompts.py                     # a table; many minutes
    python tests/benchmarks/bench_prompts.py --json > bench.json
    python tests/benchmarks/bench_prompts.py --cases "ladder*" --threads 1 --repeats 5
    python tests/benchmarks/bench_prompts.py --isa avx2          # ours and torch's, as on a machine without AVX-512

Case, reference and, for what is compiled, the case in plain torch run in turn in one process; the value is the ratio of
the first two medians. The exit status is 1 where a limit is missed or a compiled case is slower than in plain torch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, Python would look for `tests` beside this file.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from nvcim.prompts.frozen_kernel import frozen_kernel_status  # noqa: E402
from tests.benchmarks import bench_main, prompt_memory_cases, prompt_serving_cases, prompt_tuning_cases  # noqa: E402

BENCHMARK = bench_main.Benchmark(
    {
        case.name: case
        for case in (*prompt_tuning_cases.CASES, *prompt_serving_cases.CASES, *prompt_memory_cases.CASES)
    },
    Path(__file__),
    __doc__,
    lambda: {"tuning": frozen_kernel_status()},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it."""
    return bench_main.main(BENCHMARK, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
