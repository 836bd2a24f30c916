"""The compiled kernel and plain torch do the same arithmetic; random numbers are those of the published generator."""

import pytest
import torch

from nvcim.compiled import Kernel, instruction_set
from nvcim.crossbar import Crossbar, CrossbarConfig, counter_rng, kernel
from nvcim.crossbar.mapping import quantize_symmetric


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch):
    """Switch to plain torch for what is called with it."""

    def run(function, *arguments, **keywords):
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "_load", lambda: Kernel(None, "plain torch (test)"))
            return function(*arguments, **keywords)

    if kernel.kernel_for() is None:
        pytest.skip(f"nothing to compare: {kernel.kernel_status()}")
    return run


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: int, expected: tuple[int, ...]
) -> None:
    # Known-answer tests of the authors' library: Random123, kat_vectors, philox4x32 10.
    words = counter_rng.philox(tuple(torch.tensor([word]) for word in counter), torch.tensor([key]))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize(("count", "indices"), [(1, 1), (63, 3), (64, 2), (1000, 7)])
def test_compiled_normals_equal_plain_ones_to_the_bit(plain, count: int, indices: int) -> None:
    keys, first = torch.tensor([5, 2**62 + 12345, 0]), torch.tensor([0, 2**40, 2**33 - 1])
    compiled = counter_rng.normals(keys, 3, first, count, indices)
    assert compiled.shape == (3, indices, count)
    assert torch.equal(compiled, plain(counter_rng.normals, keys, 3, first, count, indices))


@pytest.mark.parametrize("count", [1, 64, 1000])
def test_compiled_uniforms_equal_plain_ones_to_the_bit(plain, count: int) -> None:
    keys, index = torch.tensor([5, 2**62 + 12345, 0]), torch.tensor([0, 2**40, 2**33 - 1])
    compiled = counter_rng.uniforms(keys, 3, index, count)
    assert torch.equal(compiled, plain(counter_rng.uniforms, keys, 3, index, count))
    assert bool((compiled >= 0).all())
    assert bool((compiled < 1).all())


def test_a_number_depends_on_its_place_only() -> None:
    keys = torch.tensor([9, 11])
    whole = counter_rng.normals(keys, 1, torch.tensor([4, 4]), 200, 6)
    alone = counter_rng.normals(keys[1:], 1, torch.tensor([7]), 130, 1)
    assert torch.equal(whole[1, 3, :130], alone[0, 0])


def test_thread_count_does_not_change_the_numbers() -> None:
    keys, threads, found = torch.arange(5), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(counter_rng.normals(keys, 1, keys, 500, 3))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("per_column", [False, True])
def test_compiled_quantisation_equals_plain_to_the_bit(plain, per_column: bool) -> None:
    weight = normal(3, 37, 21)
    weight[1, :, 4] = 0
    compiled = quantize_symmetric(weight, 8, per_column)
    for one, other in zip(compiled, plain(quantize_symmetric, weight, 8, per_column), strict=True):
        assert torch.equal(one, other)


SETTINGS = [
    {},
    {"device": "RRAM1", "weight_bits": 5},
    {"device": "Ideal8", "weight_bits": 9, "sigma": 0.05},
    {"scale_per": "column", "read_noise": 0.05},
    {"scheme": "offset", "read_noise_floor": 0.01},
    {"accumulate": "digital", "read_noise": 0.05},
    {"accumulate": "digital", "input_coding": "bit_serial", "read_noise_floor": 0.02},
    {"adc_bits": None, "read_noise": 0.05},
    {"dac_bits": None, "adc_scaling": "full"},
    {"dac_full_scale": 1.0},
    {"storage": "bfloat16", "read_noise": 0.05},
    {"adc_range": 0.2, "adc_range_per": "column", "adc_errors": {"offset_lsb": 0.5, "gain": 0.01}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
def test_compiled_crossbars_equal_plain_ones(plain, settings: dict[str, object]) -> None:
    config = CrossbarConfig.model_validate({"rows": 16, "cols": 8, **settings})
    weight, x = normal(2, 37, 21), normal(2, 7, 37, seed=1)

    def both() -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        crossbar = Crossbar.program(weight, config, generator(3))
        y = crossbar.matmul(x)
        counts = crossbar.counts
        return crossbar.read_weight(), y, (counts.adc_reads, counts.adc_clipped, counts.dac_clipped)

    written, y, counts = both()
    plain_written, plain_y, plain_counts = plain(both)
    assert torch.equal(written, plain_written)
    # The sum of squares of an input adds up in another order, which moves a step by its last bit.
    assert torch.allclose(y, plain_y, rtol=1e-5, atol=1e-5 * float(plain_y.abs().max()))
    assert counts == plain_counts


def test_bfloat16_takes_half_the_memory_and_rounds_by_at_most_half_a_percent() -> None:
    config = CrossbarConfig(storage="bfloat16", dac_bits=None, adc_bits=None)
    weight = normal(60, 40)
    half = Crossbar.program(weight, config, generator())
    full = Crossbar.program(weight, config.model_copy(update={"storage": "float32"}), generator())
    assert half.state_dict()["weight"].element_size() == 2
    difference = (half.read_weight() - full.read_weight()).abs()
    assert bool((difference <= full.read_weight().abs() * 2**-8).all())
    assert bool(difference.any())


def test_plain_reads_in_inference_mode_leave_nothing_that_later_ones_trip_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "_load", lambda: Kernel(None, "plain torch (test)"))
    crossbar = Crossbar.program(normal(300, 700), CrossbarConfig(read_noise=0.05), generator())
    x = normal(65, 300)  # more than any read before it, so that its memory is taken anew
    with torch.inference_mode():
        first = crossbar.matmul(x)
    assert crossbar.matmul(x).shape == first.shape


def test_status_says_how_reads_run(plain) -> None:
    assert kernel.kernel_status() == f"compiled for {str(instruction_set()).upper()}"
    assert plain(kernel.kernel_status) == "plain torch (test)"


def test_without_a_library_crossbars_run_in_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NVCIM_KERNEL", raising=False)
    monkeypatch.setattr("nvcim.compiled.instruction_set", lambda: "mips")
    library, status = kernel._load.__wrapped__()
    assert library is None
    assert status.startswith("plain torch, slower (no compiled kernel: kernel.mips.so was not built")
    assert f"crossbars run in {status}" in caplog.text


def test_plain_torch_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCIM_KERNEL", "plain")
    assert kernel._load.__wrapped__() == (None, "plain torch (NVCIM_KERNEL=plain)")
