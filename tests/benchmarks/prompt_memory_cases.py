"""What a prompt memory of many token sets takes: resident memory, and a search against the product of the plain matrix.

    python tests/benchmarks/bench_prompts.py --cases "memory_*"

Sets have the shape that the limit is stated for: 20 tokens, codes 64 wide, int8, differential pairs of FeFET2 cells.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nvcim.crossbar import CrossbarConfig
from nvcim.prompts.memory import PromptMemory
from nvcim.prompts.search import SCALED_SEARCH, prepared_query
from tests.benchmarks.cases import SMOKE, Case, Run, Setup, compiled, generator
from tests.benchmarks.memory import MALLOC, _new_peak, _status
from tests.benchmarks.timing import Result

TOKENS, CODE = 20, 64
SETS, SMOKE_SETS = 10_000, 40
LIMIT_MB = 200.0


def stored_sets(setup: Setup) -> int:
    """How many sets are stored: few in a smoke run."""
    return SMOKE_SETS if setup.sizes == SMOKE else SETS


def filled_memory(count: int) -> PromptMemory:
    """A memory of `count` Gaussian codes, made some at a time so that the codes themselves stay small."""
    memory = PromptMemory(CrossbarConfig(device="FeFET2", weight_bits=8), TOKENS, CODE, count)
    for start in range(0, count, 500):
        some = min(500, count - start)
        codes = torch.randn(some, TOKENS, CODE, generator=generator(start))
        labels = [f"domain {start + i}" for i in range(some)]
        memory.write_all(codes, labels, [generator(start + i) for i in range(some)])
    return memory


def queries(batch: int) -> Tensor:
    """Encoded queries [batch, TOKENS, CODE], Gaussian."""
    return torch.randn(batch, TOKENS, CODE, generator=generator(1))


def resident(case: Case, setup: Setup) -> list[Result]:
    """Resident memory of a full memory, and its peak while it is written and searched, in 10^6 bytes."""
    count = stored_sets(setup)
    small = filled_memory(8)  # libraries, threads and buffers are there before
    small.search(queries(32), SCALED_SEARCH)
    line = Result(case.name, case.title, setup.threads, setup.place, None, "MB")
    if not _new_peak():
        return [replace(line, note="skipped: needs Linux's /proc/self/clear_refs to start a new peak")]
    before = _status("VmRSS")
    memory = filled_memory(count)
    held = _status("VmRSS") - before
    memory.search(queries(32), SCALED_SEARCH)
    peak = _status("VmHWM") - before
    cells = sum(value.numel() * value.element_size() for value in memory.state_dict().values())
    note = f"{count} sets of {TOKENS} tokens, codes {CODE} wide; VmRSS less that before; saved {cells / 1e6:.1f} MB"
    return [
        replace(line, value=held / 1e6, limit=LIMIT_MB, note=note),
        replace(
            line,
            title=f"{case.title}: peak, writing and a search of 32",
            value=peak / 1e6,
            limit=LIMIT_MB,
            note=note,
        ),
    ]


def searching(batch: int) -> Callable[[Setup], tuple[Run, Run]]:
    """A scaled search, preparation of the queries included, against queries @ matrix."""

    def pair(setup: Setup) -> tuple[Run, Run]:
        memory, asked = filled_memory(stored_sets(setup)), queries(batch)
        matrix = torch.cat([slot.column.read_weight()[0] for slot in memory.slots], dim=1)
        prepared = prepared_query(asked, SCALED_SEARCH)
        return lambda: memory.search(asked, SCALED_SEARCH), lambda: torch.matmul(prepared, matrix)

    return pair


CASES = (
    Case("memory_resident", "10,000 stored sets, resident", resident, MALLOC, gpu=False),
    Case(
        "memory_search",
        "search of 10,000 sets, 1 query",
        compiled(searching(1), "x torch.matmul", None),
        gpu=False,
    ),
    Case(
        "memory_search_32",
        "search of 10,000 sets, 32 queries",
        compiled(searching(32), "x torch.matmul", None),
        gpu=False,
    ),
)
