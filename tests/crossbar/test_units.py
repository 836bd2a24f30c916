"""Inputs and weights of any magnitude that float32 holds are read alike: squares neither overflow nor fade."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nvcim.compiled import Kernel
from nvcim.crossbar import Crossbar, CrossbarConfig, kernel
from nvcim.crossbar.patches import drive_patches
from nvcim.crossbar.units import own_units


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test on both paths."""
    if request.param == "plain":
        monkeypatch.setattr(kernel, "_load", lambda: Kernel(None, "plain torch (test)"))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"dac_bits": None, "adc_scaling": "full"},
    {"dac_bits": None, "adc_bits": None, "read_noise": 0.05},
    {"scheme": "offset", "read_noise": 0.05, "storage": "bfloat16"},
    {"read_noise_floor": 0.02, "adc_range_per": "column"},
    {"read_noise": 0.05, "read_noise_floor": 0.02, "accumulate": "digital", "scale_per": "column"},
    {"input_coding": "bit_serial", "read_noise": 0.05},
    {"adc_scaling": "calibrated", "read_noise": 0.05},
    {"adc_errors": {"offset_lsb": 0.5, "dnl_lsb": 0.1}, "read_noise": 0.05},
    {"g_min_us": 1.0, "g_max_us": 100.0, "wires": {"r_word_ohm": 1.0, "r_bit_ohm": 1.0}, "read_noise": 0.05},
    {"read_noise": 0.05, "read_mode": "cell"},
]
EXPONENTS = (-100, -30, 20, 60, 100)


def product(settings: dict[str, Any], weight: Tensor, x: Tensor) -> Tensor:
    """Two reads of fresh chips, [2, ...]."""
    config = CrossbarConfig.model_validate({"rows": 16, "cols": 8, **settings})
    chips = Crossbar.program(weight, config, generator(3))
    if config.adc_scaling == "calibrated":
        chips.calibrate(x, "min_error")
    return torch.stack([chips.matmul(x), chips.matmul(x)])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
def test_a_power_of_two_in_the_inputs_comes_out_again(settings: dict[str, Any]) -> None:
    weight, x = normal(2, 37, 21), normal(5, 37, seed=1)
    expected = product(settings, weight, x)
    for exponent in EXPONENTS:
        found = product(settings, weight, x * 2.0**exponent)
        assert torch.equal(found * 2.0**-exponent, expected), exponent


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
def test_a_power_of_two_in_the_weights_comes_out_again(settings: dict[str, Any]) -> None:
    weight, x = normal(2, 37, 21), normal(5, 37, seed=1)
    expected = product(settings, weight, x)
    for exponent in EXPONENTS:
        found = product(settings, weight * 2.0**exponent, x)
        assert torch.equal(found * 2.0**-exponent, expected), exponent


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dac_bits", [None, 6])
def test_a_fixed_full_scale_goes_with_its_inputs(dac_bits: int | None) -> None:
    weight, x = normal(2, 37, 21), normal(5, 37, seed=1)
    settings = {"dac_bits": dac_bits, "read_noise": 0.05}
    expected = product({**settings, "dac_full_scale": 1.0}, weight, x)
    for exponent in EXPONENTS:
        found = product({**settings, "dac_full_scale": 2.0**exponent}, weight, x * 2.0**exponent)
        assert torch.equal(found * 2.0**-exponent, expected), exponent


@pytest.mark.usefixtures("path")
def test_vectors_of_all_magnitudes_are_read_side_by_side() -> None:
    weight, x = normal(2, 37, 21), normal(6, 37, seed=1)
    factors = torch.tensor([1.0, 2.0**-90, 0.0, 2.0**70, 1.0, 2.0**-10])[:, None]
    for settings in ({}, {"read_noise": 0.05, "scheme": "offset"}, {"adc_bits": None, "read_noise": 0.1}):
        assert torch.equal(product(settings, weight, x * factors), product(settings, weight, x) * factors)


@pytest.mark.usefixtures("path")
def test_a_stack_reads_arrays_of_all_magnitudes_as_they_read_themselves() -> None:
    config, x = CrossbarConfig(read_noise=0.05, rows=16), normal(5, 37, seed=1)

    def members() -> list[Crossbar]:
        return [
            Crossbar.program(normal(37, 21, seed=seed) * factor, config, generator(seed))
            for seed, factor in enumerate((1.0, 2.0**-80, 2.0**60))
        ]

    stacked = Crossbar.stack(members()).matmul(x)
    for own, together in zip(members(), stacked, strict=True):
        assert torch.equal(own.matmul(x), together)


@pytest.mark.filterwarnings("ignore:device .* its drift")
def test_a_state_keeps_its_magnitude() -> None:
    config, x = CrossbarConfig(read_noise=0.05, rows=16), normal(5, 37, seed=1)
    crossbar = Crossbar.program(normal(37, 21) * 2.0**-80, config, generator())
    again = Crossbar.from_state(crossbar.state_dict(), config)
    assert torch.equal(again.read_weight(), crossbar.read_weight())
    assert torch.equal(again.matmul(x), crossbar.matmul(x))
    crossbar.rewrite(normal(37, 21))
    crossbar.age(1.0)
    assert float(crossbar.matmul(x).abs().max()) > 1


@pytest.mark.parametrize(("inputs", "weights"), [(1e19, 1.0), (1e-25, 1.0), (1.0, 1e19), (1.0, 1e-25)])
def test_the_default_array_reads_them_with_its_usual_error(inputs: float, weights: float) -> None:
    weight, x = normal(40, 13, seed=1).double(), normal(6, 40, seed=2).double()
    crossbar = Crossbar.program((weight * weights).float(), CrossbarConfig(), generator())
    y = crossbar.matmul((x * inputs).float()).double() / (inputs * weights)
    assert float((y - x @ weight).norm() / (x @ weight).norm()) < 0.2  # 8-bit converters, sigma 0.1 of a step


@pytest.mark.parametrize(("inputs", "weights"), [(1.0, 1.0), (1e-25, 1.0), (1.0, 1e-22), (1e-10, 1e-24)])
def test_read_noise_keeps_its_share(inputs: float, weights: float) -> None:
    # One weight of 1 on one-bit cells: a single cell of the pair conducts, so an output scatters by 10 % of itself.
    settings = {"device": "RRAM1", "weight_bits": 2, "sigma": 0.0, "read_noise": 0.1, "dac_bits": None}
    config = CrossbarConfig.model_validate({**settings, "adc_bits": None})
    chips = Crossbar.program(torch.full((1, 1), weights), config, generator())
    y = chips.matmul(torch.full((20_000, 1), inputs)).double() / (inputs * weights)
    assert float(y.std()) == pytest.approx(0.1, rel=6 / math.sqrt(2 * 20_000))
    assert float(y.mean()) == pytest.approx(1.0, abs=6 * 0.1 / math.sqrt(20_000))


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**70])
def test_patches_are_driven_in_units_too(factor: float) -> None:
    images = normal(2, 4, 4, 1, 3, 3, 5)
    config = CrossbarConfig(rows=16)
    found, expected = drive_patches(images * factor, config), drive_patches(images, config)
    assert found.unit is not None
    assert torch.equal(found.whole().x, expected.x * factor)
    # the unit of a vector is its own: between 2^-90 and its largest value
    assert torch.equal(found.norms * (found.unit / factor), expected.norms)


def test_zeros_infinity_and_nan_have_no_unit_of_their_own() -> None:
    found = own_units(torch.tensor([0.0, math.inf, math.nan, 1.0, 3e-38, 3e38]))
    assert found is not None
    assert found[:4].tolist() == [1.0] * 4
    assert float(found[4]) == 2.0**-124
    assert float(found[5]) == 2.0**126
    assert own_units(torch.tensor([0.0, math.inf, math.nan, 1.0])) is None
