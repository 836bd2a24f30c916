"""What the crossbar's benchmark measures, each case against torch's product of the same shape."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nvcim.analog import AnalogConv2d, AnalogLinear
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.wires import Wires
from tests.benchmarks.memory import MALLOC, peak_of_first_case
from tests.benchmarks.plain import beside_plain
from tests.benchmarks.timing import Result, Timing, alternate
from tests.crossbar.nodal import nodal_effective


@dataclass(frozen=True)
class Sizes:
    """How large the cases are."""

    features: int = 1024
    tile: int = 128
    batch: int = 256
    devices: int = 100
    channels: int = 64
    image: int = 56
    images: int = 4
    solved_tiles: int = 8


SMOKE = Sizes(
    features=32, tile=16, batch=8, devices=3, channels=4, image=6, images=2, solved_tiles=2
)  # to see that everything runs


@dataclass(frozen=True)
class Setup:
    """What a case is measured with: sizes, torch's threads, repeats, and where the tensors live."""

    sizes: Sizes
    threads: int
    repeats: int
    device: str = "cpu"

    @property
    def place(self) -> str:
        """The device's name for the report."""
        return torch.cuda.get_device_name() if self.device == "cuda" else self.device


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    Attributes:
        name: what `--cases` takes.
        title: for the table.
        measure: takes the measurement.
        environment: None to measure in this process, else variables of a process of its own.
        gpu: whether the case is also run on a GPU, if there is one.
    """

    name: str
    title: str
    measure: Callable[["Case", Setup], list[Result]]
    environment: dict[str, str] | None = None
    gpu: bool = True

    def skipped(self, setup: Setup, reason: str) -> Result:
        """A line that says why there is no figure."""
        return Result(self.name, self.title, setup.threads, setup.place, None, "", note=f"skipped: {reason}")


Run = Callable[[], object]


def compared(
    pair: Callable[[Setup], tuple[Run, Run]],
    unit: str,
    limit: float | None,
    note: str = "",
    timed: Callable[[Run, Run, int], Timing] = alternate,
) -> Callable[[Case, Setup], list[Result]]:
    """A measurement: `pair` makes a case and its reference, the ratio of their times is the value.

    The limits are those of a CPU; a GPU's figures are reported without, and without what `timed` does beyond
    `alternate`.
    """

    def measure(case: Case, setup: Setup) -> list[Result]:
        clock = timed if setup.device == "cpu" else alternate
        timing = clock(*pair(setup), setup.repeats)
        own = limit if setup.device == "cpu" else None
        line = Result(
            case.name, case.title, setup.threads, setup.place, timing.ratio, unit, own, timing, note
        )
        return [line]

    return measure


# Inputs and references ---------------------------------------------------------------------------------------


def generator(seed: int = 0) -> Generator:
    """A generator of its own, so that every case sees the same weights."""
    return Generator().manual_seed(seed)


@lru_cache(maxsize=4)
def operands(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """Weight [features, features] and inputs [batch, features], both Gaussian."""
    weight = torch.randn(sizes.features, sizes.features, generator=generator(1)) / sizes.features**0.5
    x = torch.randn(sizes.batch, sizes.features, generator=generator(2))
    return weight.to(device), x.to(device)


def product(setup: Setup, times: int = 1) -> Run:
    """`torch.matmul` of the operands, `times` times over the same matrix (which stays in the cache)."""
    weight, x = operands(setup.sizes, setup.device)

    def run() -> None:
        for _ in range(times):
            torch.matmul(x, weight)

    return run


def configuration(sizes: Sizes, **settings: Any) -> CrossbarConfig:
    """8-bit DACs and ADCs, one ADC range per tile; 8-bit weights as pairs of four 2-bit cells with variation."""
    base = {"device": "RRAM4", "sigma": 0.1, "rows": sizes.tile, "cols": sizes.tile}
    return CrossbarConfig.model_validate(base | settings)


# Cases -------------------------------------------------------------------------------------------------------


def reading(**settings: Any) -> Callable[[Setup], tuple[Run, Run]]:
    """Reads of a crossbar that is already programmed."""

    def pair(setup: Setup) -> tuple[Run, Run]:
        weight, x = operands(setup.sizes, setup.device)
        crossbar = Crossbar.program(weight, configuration(setup.sizes, **settings), generator())
        return lambda: crossbar.matmul(x), product(setup)

    return pair


def reading_bit_serial(setup: Setup) -> tuple[Run, Run]:
    """8 one-bit cycles, each of 4 slices converted on its own, against as many products."""
    weight, x = operands(setup.sizes, setup.device)
    config = configuration(setup.sizes, input_coding="bit_serial", accumulate="digital")
    crossbar = Crossbar.program(weight, config, generator())
    passes = 8 * len(config.mapping().slices)
    assert passes == 32, f"the case is stated for 32 products, not {passes}"
    return lambda: crossbar.matmul(x), product(setup, passes)


def programming(**settings: Any) -> Callable[[Setup], tuple[Run, Run]]:
    """Writing one matrix, against its product with a batch."""

    def pair(setup: Setup) -> tuple[Run, Run]:
        weight, _ = operands(setup.sizes, setup.device)
        config = configuration(setup.sizes, **settings)
        return lambda: Crossbar.program(weight, config, generator()), product(setup)

    return pair


def reading_devices(setup: Setup) -> tuple[Run, Run]:
    """All devices, written with one matrix, read the same inputs in one call."""
    weight, x = operands(setup.sizes, setup.device)
    many = weight.expand(setup.sizes.devices, *weight.shape)
    crossbar = Crossbar.program(many, configuration(setup.sizes), generator())
    return lambda: crossbar.matmul(x), product(setup, setup.sizes.devices)


def programming_and_reading_devices(**settings: Any) -> Callable[[Setup], tuple[Run, Run]]:
    """All devices are written with one matrix in one call and read in another."""

    def pair(setup: Setup) -> tuple[Run, Run]:
        weight, x = operands(setup.sizes, setup.device)
        many, config = (
            weight.expand(setup.sizes.devices, *weight.shape),
            configuration(setup.sizes, **settings),
        )
        return lambda: Crossbar.program(many, config, generator()).matmul(x), product(
            setup, setup.sizes.devices
        )

    return pair


def convolution(setup: Setup) -> tuple[Run, Run]:
    """A 3 x 3 convolution with padding 1 against torch's own."""
    sizes = setup.sizes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(sizes.channels, sizes.channels, 3, padding=1, bias=False).to(setup.device)
    shape = (sizes.images, sizes.channels, sizes.image, sizes.image)
    x = torch.randn(shape, generator=generator(3)).to(setup.device)
    layer = AnalogConv2d.from_conv(conv, configuration(sizes), generator())
    weight = conv.weight.detach()
    return lambda: layer(x), lambda: torch.conv2d(x, weight, padding=1)


def linear(setup: Setup) -> tuple[Run, Run]:
    """The first case as a layer."""
    weight, x = operands(setup.sizes, setup.device)
    digital = nn.Linear(setup.sizes.features, setup.sizes.features, bias=False).to(setup.device)
    digital.weight.data.copy_(weight.T)
    layer = AnalogLinear.from_linear(digital, configuration(setup.sizes), generator())
    return lambda: layer(x), product(setup)


def effective_matrix(case: Case, setup: Setup) -> list[Result]:
    """Milliseconds per tile, float64, 1 ohm wires and 1..100 microsiemens; and the error against a nodal solve."""
    sizes = setup.sizes
    draw = torch.rand(sizes.solved_tiles, sizes.tile, sizes.tile, generator=generator(4), dtype=torch.float64)
    cells = ((1 + 99 * draw) * 1e-6).to(setup.device)
    wires = Wires(r_word_ohm=1.0, r_bit_ohm=1.0)
    timing = alternate(lambda: effective_conductance(cells, wires), product(setup), setup.repeats)
    each = timing.case.median / sizes.solved_tiles
    limited = setup.device == "cpu" and setup.threads >= 2  # stated for two cores
    line = Result(case.name, case.title, setup.threads, setup.place, each, "ms", 60.0 if limited else None)
    found = effective_conductance(cells[:1], wires)[0].cpu()
    expected = nodal_effective(cells[0].cpu(), wires)
    error = float(((found - expected).abs() / expected.abs()).max())
    note = f"in a batch of {sizes.solved_tiles}; the reference's time is torch.matmul's of the first case"
    wrong = replace(line, title=f"{case.title}: error", value=error, unit="relative", limit=1e-9)
    return [
        replace(line, timing=timing, note=note),
        replace(wrong, note="largest over the matrix, against a sparse LU of Kirchhoff's equations"),
    ]


def memory(case: Case, setup: Setup) -> list[Result]:
    """Peak of inputs, programming and reading together; see memory.py."""
    sizes = setup.sizes
    found = peak_of_first_case(sizes.features, sizes.batch, configuration(sizes))
    line = Result(case.name, case.title, setup.threads, setup.place, None, "x weights + activations")
    if found is None:
        return [replace(line, note="skipped: needs Linux's /proc/self/clear_refs to start a new peak")]
    how = "VmHWM, started anew after a warm-up, less VmRSS then; counts the caller's own tensors"
    whole = replace(line, value=found.whole / found.operands, limit=3.0, note=f"{found}; {how}")
    read = replace(line, title=f"{case.title}: of it added by the read", value=found.read / found.operands)
    return [whole, read]


IR_DROP = {"g_min_us": 1.0, "g_max_us": 100.0, "wires": {"r_word_ohm": 1.0, "r_bit_ohm": 1.0}}
# One cell a side holds all bits of a weight, with the spread measured on chips.
ONE_CELL = {"device": "PCM_Joshi2020", "sigma": 0.01, "sigma_unit": "full_range"}
VERIFY = {"programming": {"method": "write_verify", "tolerance": 0.1, "max_pulses": 20}}
GEMM = "x torch.matmul"


compiled = partial(compared, timed=beside_plain)
"""A case that compiled kernels serve: also compared with itself in plain torch."""

CASES = (
    Case("read", "read, no noise", compiled(reading(), GEMM, 1.5)),
    Case("read_noise", "read, one read sigma", compiled(reading(read_noise_floor=0.01), GEMM, 2.0)),
    Case("read_levels", "read, read sigma per level", compiled(reading(read_noise=0.02), GEMM, 3.0)),
    Case("read_wires", "read, IR drop of 1 ohm", compiled(reading(**IR_DROP), GEMM, 1.5)),
    Case("devices_read", "many devices, read, each", compiled(reading_devices, GEMM, 1.5)),
    Case(
        "devices_both",
        "many devices, program four slices a side and read, each",
        compiled(programming_and_reading_devices(), GEMM, 3.5),
    ),
    Case(
        "devices_both_pair",
        "many devices, program one cell a side and read, each",
        compiled(programming_and_reading_devices(**ONE_CELL), GEMM, 2.5),
    ),
    Case("conv", "conv 3x3 as AnalogConv2d", compiled(convolution, "x torch.conv2d", 3.0)),
    Case("bit_serial", "bit-serial, 8 cycles x 4 slices", compiled(reading_bit_serial, f"{GEMM} x 32", 1.2)),
    Case("program", "program, one cell a side", compiled(programming(**ONE_CELL), GEMM, 1.5)),
    Case("wires", "exact effective matrix, per tile", effective_matrix),
    Case("memory", "peak memory of read", memory, MALLOC, gpu=False),
    Case("linear", "read as AnalogLinear", compiled(linear, GEMM, None)),
    Case("program_slices", "program, four slices a side", compiled(programming(), GEMM, None)),
    Case("program_verify", "program, write-verify", compiled(programming(**VERIFY), GEMM, None)),
)
