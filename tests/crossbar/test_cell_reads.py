"""One Gaussian per output is what reading every cell by itself amounts to, and reads depend on nothing else.

Bounds are 6 standard errors (a false alarm rarer than 1e-8 for each number), or as stated.
"""

import math
from itertools import pairwise

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig, reading
from nvcim.crossbar import written as written_module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


THERMAL = {"voltage_v": 0.2, "bandwidth_hz": 1e9}
READS = 1500


def noisy(**fields: object) -> CrossbarConfig:
    # g_min well above zero, so that no read is cut off at zero siemens
    base = {"device": "RRAM4", "sigma": 0.01, "g_min_us": 20, "g_max_us": 100, "rows": 4, "cols": 3}
    return CrossbarConfig.model_validate({**base, "dac_bits": None, "adc_bits": None, **fields})


NOISES: list[dict[str, object]] = [
    {"read_noise": 0.05},
    {"read_noise_floor": 0.05},
    {"read": THERMAL},
    {"read_noise": 0.03, "read_noise_floor": 0.03, "read": THERMAL},
    {"read_noise": 0.03, "device": "PCM_Joshi2020", "read": {}},
    {"read_noise": 0.05, "array_sigma": 0.5, "rows": 64},  # one factor for all that matters, far from 1
    {"read_noise": 0.05, "scheme": "offset"},
    {"read_noise_floor": 0.05, "accumulate": "digital"},
    {"read_noise": 0.05, "accumulate": "digital", "scheme": "one_sided", "scale_per": "column"},
    {"read_noise": 0.05, "device": "FeFET2", "g_min_us": None, "g_max_us": None, "sigma": 0.1},
]


def reads(config: CrossbarConfig, weight: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Many reads of one vector and their exact mean: [reads, out] and [out]."""
    crossbar = Crossbar.program(weight, config, generator(5))
    return crossbar.matmul(x.expand(READS, -1)).double(), (x @ crossbar.read_weight())[0].double()


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_statistics_of_noise_per_output_are_those_of_noise_per_cell(noise: dict[str, object]) -> None:
    weight, x = normal(6, 3).abs(), normal(1, 6, seed=1)
    output, mean = reads(noisy(**noise), weight, x)
    cell, _ = reads(noisy(**noise, read_mode="cell"), weight, x)
    for found in (output, cell):
        assert bool(((found.mean(dim=0) - mean).abs() < 6 * found.std(dim=0) / math.sqrt(READS)).all())
    ratio = output.std(dim=0) / cell.std(dim=0)
    assert bool(((ratio - 1).abs() < 6 * math.sqrt(2 / (2 * READS))).all())


@pytest.mark.parametrize(
    "noise", [{"read_noise": 0.05}, {"read_noise_floor": 0.05}, {"read": THERMAL}], ids=str
)
def test_statistics_of_noise_are_the_sum_over_cells_by_hand(noise: dict[str, object]) -> None:
    weight, x = normal(6, 3), normal(1, 6, seed=1)
    config = noisy(**noise)
    found, mean = reads(config, weight, x)
    cells = Crossbar.program(weight, config, generator(5)).cells().conductance[0].double()
    siemens = (20 + 80 * cells) * 1e-6
    if "read_noise" in noise:
        variance = (0.05 * siemens) ** 2
    elif "read_noise_floor" in noise:
        variance = torch.full_like(siemens, (0.05 * 80e-6) ** 2)
    else:
        # Nyquist and Schottky, in conductance: 4 k T G df / V^2 + 2 q G df / V
        variance = siemens * 1e9 * (4 * 1.380649e-23 * 300 / 0.2**2 + 2 * 1.602176634e-19 / 0.2)
    factors = [piece.factor for piece in config.mapping().slices] * 2
    each = sum(v * f**2 for v, f in zip(variance, factors, strict=True)) / 80e-6**2
    scale = float(weight.abs().max()) / 127
    sigma = (x[0].double().square() @ each).sqrt() * scale
    assert bool(((found.std(dim=0) / sigma - 1).abs() < 6 / math.sqrt(2 * READS)).all())
    assert bool(((found.mean(dim=0) - mean).abs() < 6 * sigma / math.sqrt(READS)).all())


def test_statistics_of_floor_noise_grow_as_the_square_root_of_the_rows() -> None:
    config = noisy(read_noise_floor=0.02, rows=64)
    sigmas = []
    for rows in (16, 64, 256, 1024):
        weight = torch.ones(rows, 3)
        x = torch.ones(1, rows)
        found, mean = reads(config, weight, x)
        sigmas.append(float((found - mean).square().mean().sqrt()))
    for small, large in pairwise(sigmas):
        # 4500 draws each; a ratio scatters by sqrt(2 / (2 * 4500)) = 1.5 %
        assert abs(large / small / 2 - 1) < 6 * math.sqrt(1 / 4500)


@pytest.mark.parametrize("noise", [{"read_noise": 0.05}, {"read_noise_floor": 0.05}], ids=str)
@pytest.mark.parametrize("coding", ["analog", "bit_serial"])
def test_statistics_of_noise_are_independent_over_outputs_reads_tiles_and_devices(
    noise: dict[str, object], coding: str
) -> None:
    config = noisy(**noise, accumulate="digital", input_coding=coding, dac_bits=4)
    crossbar = Crossbar.program(torch.ones(2, 6, 4), config, generator())
    x = torch.ones(1, 6).expand(2000, 6)
    y = crossbar.matmul(x)  # [devices, reads, out]
    series = torch.cat([y.transpose(1, 2).reshape(8, -1), crossbar.matmul(x).transpose(1, 2).reshape(8, -1)])
    shifted = torch.cat([series[:, :-1], series[:, 1:]])
    correlation = torch.corrcoef(shifted) - torch.eye(32)
    assert float(correlation.abs().max()) < 6 / math.sqrt(1999)


def test_statistics_of_noise_differ_from_tile_to_tile_and_slice_to_slice() -> None:
    # If tiles or slices shared a draw, 16 equal tiles would add up to 16 sigma, not to 4.
    config = noisy(read_noise_floor=0.05, sigma=0.0, rows=1, scheme="one_sided", accumulate="digital")
    found, mean = reads(config, torch.ones(16, 3), torch.ones(1, 16))
    squares = sum(piece.factor**2 for piece in config.mapping().slices)
    sigma = 0.05 * math.sqrt(16 * squares) / 127
    measured = float((found - mean).square().mean().sqrt())
    assert abs(measured / sigma - 1) < 6 / math.sqrt(2 * 3 * READS)


def test_reads_of_every_cell_do_not_fall_below_zero_siemens() -> None:
    config = noisy(
        device="Ideal2", read_noise_floor=2.0, g_min_us=1e-6, scheme="one_sided", read_mode="cell", rows=64
    )
    found, _ = reads(config.model_copy(update={"weight_bits": 3}), torch.ones(1, 3), torch.ones(1, 1))
    assert float(found.min()) > -1e-5
    assert float((found < 1e-5).double().mean()) > 0.2


def test_reads_of_every_cell_go_on_after_ageing_and_saving() -> None:
    config = noisy(device="PCM_Joshi2020", read_noise=0.05, read={}, read_mode="cell", adc_bits=8, dac_bits=8)
    crossbar = Crossbar.program(normal(2, 9, 4), config, generator())
    crossbar.age(1000.0)
    x = normal(3, 9, seed=1)
    crossbar.matmul(x)
    again = Crossbar.from_state(crossbar.state_dict(), config)
    y = crossbar.matmul(x)
    assert torch.equal(again.matmul(x), y)
    assert not torch.equal(crossbar.matmul(x), y)
    assert crossbar.counts.adc_reads == 3 * 2 * 3 * 4 * 3  # calls, devices, vectors, outputs, row tiles


MODES: list[dict[str, object]] = [
    {"read_noise": 0.05},
    {"read_noise_floor": 0.05},
    {"read_noise": 0.05, "read_mode": "cell"},
    {"read_noise_floor": 0.05, "input_coding": "bit_serial", "accumulate": "digital"},
    {"read_noise": 0.05, "scheme": "offset", "adc_scaling": "full"},
    {"adc_errors": {"offset_lsb": 0.5, "gain": 0.02, "dnl_lsb": 0.2}, "read_noise": 0.05},
]


def written(mode: dict[str, object], seeds: range = range(3)) -> Crossbar:
    config = noisy(dac_bits=6, adc_bits=6, rows=16, cols=8, **mode)
    return Crossbar.program(normal(len(seeds), 40, 13), config, [generator(seed) for seed in seeds])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_threads_change_no_bit(mode: dict[str, object]) -> None:
    # 40 x 13 is below what a matrix product splits over threads
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            crossbar = written(mode)
            found.append((crossbar.read_weight(), crossbar.matmul(normal(3, 7, 40, seed=1)), crossbar.counts))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])
        assert found[0][2] == other[2]


def within_a_step(one: torch.Tensor, other: torch.Tensor, step: float) -> bool:
    """A sum of another width may round the other way at an ADC's step: few outputs, and by one step."""
    off = (one - other).abs()
    return float(off.max()) <= 1.01 * step and float((off > 1e-4 * step).double().mean()) < 0.01


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_batches_and_packing_do_not_show(mode: dict[str, object]) -> None:
    x = normal(3, 11, 40, seed=1)
    y = written(mode).matmul(x)
    # the widest step there is: a conversion of the largest slice for the loudest vector
    held = written(mode)
    factors = max(held.config.mapping().slices, key=lambda piece: piece.factor).factor
    coarse = (
        float(held.state_dict()["reach"].max()) * max(float(x.norm(dim=-1).max()), 1) * max(factors, 1) / 31
    )
    parts = torch.cat([held.matmul(part) for part in x.split([1, 2, 8], dim=1)], dim=1)
    assert within_a_step(parts, y, coarse)
    alone = []
    for device in range(3):
        own = Crossbar.program(normal(3, 40, 13)[device], held.config, generator(device))
        alone.append(own.matmul(x[device]))
    assert within_a_step(torch.stack(alone), y, coarse)
    if held.config.read_mode == "output":
        members = [
            Crossbar.program(normal(3, 40, 13)[device], held.config, generator(device)) for device in range(3)
        ]
        members[1].matmul(x[1])  # a stack goes on where its members stood
        later = Crossbar.stack(members).matmul(x)
        assert within_a_step(later[[0, 2]], y[[0, 2]], coarse)
        assert not within_a_step(later[1], y[1], coarse / 1e6)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_held_in_memory_at_once_does_not_show(
    mode: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(3, 11, 40, seed=1)
    whole = written(mode)
    y = whole.matmul(x)
    monkeypatch.setattr(reading, "_PART_ELEMENTS", 3 * 13 * 2)  # two vectors of one device
    monkeypatch.setattr(reading, "_LEAST_VECTORS", 2)
    monkeypatch.setattr(written_module, "_CELLS_AT_ONCE", 1)
    parts = written(mode)
    assert torch.equal(parts.read_weight(), whole.read_weight())
    found = parts.matmul(x)
    step = float(y.abs().max()) / 31
    # sums of other widths round differently now and then; a draw of another read would move every output
    assert float(((found - y).abs() > 1e-4 * step).double().mean()) < 0.01
