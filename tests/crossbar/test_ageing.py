"""What time does to a crossbar: drift, relaxation, and what stays as it was."""

import math
import warnings

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.devices.ageing import relaxation_spread
from nvcim.errors import ConfigError
from tests.closeness import close


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def pcm(**fields: object) -> CrossbarConfig:
    base = {"device": "PCM_Joshi2020", "sigma": 0.01, "sigma_unit": "full_range", "scheme": "one_sided"}
    return CrossbarConfig.model_validate(
        {**base, "dac_bits": None, "adc_bits": None, "scale_per": "device", **fields}
    )


@pytest.mark.parametrize("seconds", [20.0, 3600.0, 3.15e7])
def test_statistics_of_drift_give_back_the_published_exponent(seconds: float) -> None:
    # Weights at the top level: the drift law there is N(0.049, 0.008), both at the lower ends of their clamps.
    crossbar = Crossbar.program(torch.ones(200, 200), pcm(sigma=0.0), generator())
    crossbar.age(seconds)
    growth = math.log1p(seconds / 20)
    exponents = -crossbar.read_weight().double().log().flatten() / growth
    count = 40_000
    # 6 standard errors: rarer than 1e-8; float32 leaves 1e-7 of a weight
    assert abs(float(exponents.mean()) - 0.049) < 6 * 0.008 / math.sqrt(count) + 1e-6 / growth
    assert abs(float(exponents.std()) - 0.008) < 6 * 0.008 / math.sqrt(2 * count) + 1e-6 / growth


def test_a_cell_keeps_its_exponent_as_time_goes_on() -> None:
    crossbar = Crossbar.program(torch.ones(30, 30), pcm(sigma=0.0), generator())
    found = []
    for seconds in (100.0, 900.0, 99_000.0):
        crossbar.age(seconds)
        found.append(-crossbar.read_weight().double().log() / math.log1p(crossbar.clock_s / 20))
    assert torch.allclose(found[0], found[2], atol=1e-6)
    assert torch.allclose(found[1], found[2], atol=1e-6)


@pytest.mark.parametrize("device", ["PCM_Joshi2020", "RRAM_Wan2022"])
@pytest.mark.parametrize("accumulate", ["analog", "digital"])
@pytest.mark.parametrize("method", ["open_loop", "write_verify"])
def test_two_steps_of_age_equal_a_long_one(device: str, accumulate: str, method: str) -> None:
    config = CrossbarConfig.model_validate(
        {
            **{"device": device, "accumulate": accumulate, "programming": {"method": method}, "rows": 16},
            **{"stuck_on": 0.05, "array_sigma": 0.02, "read": {}, "read_noise": 0.01, "sigma": 0.01},
        }
    )
    weight, x = normal(2, 40, 13), normal(5, 40, seed=1)
    twice, once = (Crossbar.program(weight, config, generator()) for _ in range(2))
    twice.age(1000.0)
    twice.matmul(x)
    once.matmul(x)
    twice.age(0.0)
    twice.age(49_000.0)
    once.age(50_000.0)
    assert twice.clock_s == once.clock_s == 50_000
    assert torch.equal(twice.read_weight(), once.read_weight())
    assert torch.equal(twice.matmul(x), once.matmul(x))


def test_an_age_of_zero_changes_nothing() -> None:
    config = pcm(adc_bits=8, read_noise=0.05)
    weight = normal(40, 13).abs()
    aged, fresh = (Crossbar.program(weight, config, generator()) for _ in range(2))
    aged.age(0.0)
    # the cell-by-cell pass adds slices up in another order than the compiled one
    assert close(aged.read_weight(), fresh.read_weight())
    own, other = aged.state_dict()["variance"], fresh.state_dict()["variance"]
    assert torch.allclose(own, other, rtol=1e-4, atol=1e-10)


def test_adc_ranges_stay_where_they_were_so_that_drift_shows() -> None:
    config = pcm(adc_bits=8)
    crossbar = Crossbar.program(normal(40, 13).abs(), config, generator())
    reach = crossbar.state_dict()["reach"]
    crossbar.age(3.15e7)
    assert torch.equal(crossbar.state_dict()["reach"], reach)
    x = normal(5, 40, seed=1).abs()
    exact = x @ crossbar.read_weight()
    y = crossbar.matmul(x)
    assert float((y - exact).norm() / exact.norm()) < 0.05
    fresh = Crossbar.program(normal(40, 13).abs(), config, generator()).matmul(x)
    assert float(y.sum() / fresh.sum()) < 0.7  # (1 + 3.15e7 / 20)^-0.049 is 0.50


def test_a_rewrite_resets_the_clock_and_draws_other_exponents() -> None:
    weight = torch.ones(30, 30)
    crossbar = Crossbar.program(weight, pcm(sigma=0.0), generator())
    crossbar.age(1e5)
    first = crossbar.read_weight()
    crossbar.rewrite(weight)
    assert crossbar.clock_s == 0
    assert close(crossbar.read_weight(), weight, 5e-6)
    crossbar.age(1e5)
    assert not torch.allclose(crossbar.read_weight(), first, atol=1e-3)


def test_devices_drift_apart() -> None:
    crossbar = Crossbar.program(torch.ones(3, 60, 60), pcm(sigma=0.0), generator())
    crossbar.age(1e5)
    correlation = torch.corrcoef(crossbar.read_weight().flatten(1)) - torch.eye(3)
    assert float(correlation.abs().max()) < 6 / 60  # 6 / sqrt(3600)


@pytest.mark.parametrize("seconds", [43_200.0, 86_399.0, 172_799.0, 1e7])
def test_statistics_of_relaxation_add_the_spread_that_was_measured(seconds: float) -> None:
    # Level 128 of 255, written exactly: the whole spread is that of relaxation.
    config = pcm(device="RRAM_Wan2022", sigma=0.0, weight_bits=9)
    weight = torch.full((200, 200), 128.0)
    weight[0, 0] = 255.0
    crossbar = Crossbar.program(weight, config, generator())
    crossbar.age(seconds)
    moved = (crossbar.read_weight().double() - weight).flatten()[1:] / 255
    expected = float(relaxation_spread(torch.tensor([128 / 255]), seconds, config.cell())[0])
    assert expected > 0.01
    assert abs(float(moved.std()) - expected) < 6 * expected / math.sqrt(2 * len(moved)) + 1e-5
    assert abs(float(moved.mean())) < 6 * expected / math.sqrt(len(moved)) + 1e-5


def test_statistics_of_relaxation_reach_the_published_two_day_spread() -> None:
    # sigma 0.01 of the full range is the published write at 1 s; two days on, the third polynomial. x = 128 / 255.
    config = pcm(device="RRAM_Wan2022", weight_bits=9)
    weight = torch.full((200, 200), 128.0)
    weight[0, 0] = 255.0
    crossbar = Crossbar.program(weight, config, generator())
    crossbar.age(172_799.0)
    x = 128 / 255
    two_days = (0.782 + 20.274 * x - 43.507 * x**2 + 37.062 * x**3 - 11.934 * x**4) / 40
    found = float((crossbar.read_weight().double() - weight).flatten()[1:].std()) / 255
    assert abs(found - two_days) < 6 * two_days / math.sqrt(2 * 40_000) + 1e-5


def test_read_noise_of_pcm_grows_with_age_only_where_it_is_asked_for() -> None:
    for read, grows in ((None, False), ({}, True)):
        crossbar = Crossbar.program(torch.ones(4, 4), pcm(sigma=0.0, read=read, read_noise=0.01), generator())
        fresh = crossbar.state_dict()["variance"] / crossbar.read_weight().square()
        crossbar.age(1e6)
        aged = crossbar.state_dict()["variance"] / crossbar.read_weight().square()
        assert bool((aged > 1.01 * fresh).all()) == grows
        if not grows:
            assert torch.allclose(aged, torch.tensor(0.01**2), rtol=1e-3)


def test_settings_alone_make_the_noise_however_an_array_is_put_together() -> None:
    # One-pass and cell-by-cell writes, of a device that has 1/f noise of its own.
    weight = normal(40, 13).abs()
    analog, digital = (
        Crossbar.program(weight, pcm(sigma=0.0, accumulate=how, read_noise=0.02), generator())
        for how in ("analog", "digital")
    )
    own = analog.state_dict()["variance"][:, 0]
    slices = digital.state_dict()["variance"]
    alphas = torch.tensor([piece.factor for piece in pcm().mapping().slices])
    assert torch.allclose(
        (slices * alphas.square()[None, :, None, None]).sum(dim=1), own, rtol=1e-4, atol=1e-12
    )


def test_devices_without_known_ageing_do_not_age_and_say_so() -> None:
    crossbar = Crossbar.program(normal(40, 13), CrossbarConfig(), generator())
    before = crossbar.read_weight()
    with pytest.warns(UserWarning, match="device FeFET2: its drift, retention and relaxation are unknown"):
        crossbar.age(1e9)
    assert close(crossbar.read_weight(), before, 5e-6)


def test_devices_with_known_ageing_age_without_a_warning() -> None:
    for config in (pcm(), CrossbarConfig(device="RRAM_Wan2022")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            crossbar = Crossbar.program(torch.ones(3, 3), config, generator())
            crossbar.age(1.0)
        assert crossbar.clock_s == 1.0


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_time_runs_forward_only(seconds: float) -> None:
    crossbar = Crossbar.program(normal(4, 3), CrossbarConfig(), generator())
    with pytest.raises(ConfigError, match="age by 0 seconds or more"):
        crossbar.age(seconds)


# ln((1e8 + 20 + 2.5e-7) / 5e-7) / ln((20 + 2.5e-7) / 5e-7) = 32.9294 / 17.5044, Joshi et al.'s law at t_0 = 20 s
GROWTH_BY_1E8_S = 1.88121


def test_reads_that_begin_late_have_the_noise_of_their_age() -> None:
    weight = torch.ones(3, 3)
    early, late = (
        Crossbar.program(weight, pcm(sigma=0.0, read=read), generator()).state_dict()["variance"]
        for read in ({}, {"elapsed_s": 1e8})
    )
    assert (late / early).flatten().tolist() == pytest.approx([GROWTH_BY_1E8_S] * 9, rel=1e-5)


@pytest.mark.parametrize("mode", ["output", "cell"])
def test_reads_that_begin_late_scatter_by_as_much_more(mode: str) -> None:
    spread = []
    for read in ({}, {"elapsed_s": 1e8}):
        config = pcm(sigma=0.0, read=read, read_mode=mode)
        crossbar = Crossbar.program(torch.ones(4, 500), config, generator())
        y = crossbar.matmul(torch.ones(20, 4))
        spread.append(float(y.double().var()))
    # 10,000 numbers each: the ratio scatters by 2 %, six of which are rarer than 1e-8
    assert spread[1] / spread[0] == pytest.approx(GROWTH_BY_1E8_S, rel=0.12)


def test_age_adds_to_the_age_of_the_noise() -> None:
    crossbar = Crossbar.program(torch.ones(3, 3), pcm(sigma=0.0, read={"elapsed_s": 6e7}), generator())
    crossbar.age(4e7)
    share = crossbar.state_dict()["variance"][0, 0] / crossbar.read_weight().square()
    fresh = Crossbar.program(torch.ones(3, 3), pcm(sigma=0.0, read={}), generator())
    start = fresh.state_dict()["variance"][0, 0] / fresh.read_weight().square()
    assert (share / start).flatten().tolist() == pytest.approx([GROWTH_BY_1E8_S] * 9, rel=1e-4)


def test_an_age_of_the_noise_is_refused_where_no_source_says_that_it_grows() -> None:
    config = CrossbarConfig.model_validate({"device": "RRAM_Wan2022", "read": {"elapsed_s": 1e8}})
    with pytest.raises(ConfigError, match=r"read.elapsed_s: device RRAM_Wan2022 has no read_noise"):
        Crossbar.program(torch.ones(3, 3), config, generator())
