"""Calibrated ADC ranges against numpy."""

import numpy as np
import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.crossbar.calibration import CalibrationMethod
from nvcim.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def calibrated(**fields: object) -> CrossbarConfig:
    base = {"rows": 16, "cols": 5, "dac_bits": None, "adc_bits": 5, "adc_scaling": "calibrated"}
    return CrossbarConfig.model_validate({**base, **fields})


def least_error(values: np.ndarray, top: int) -> float:
    best, chosen = np.inf, 0.0
    for candidate in range(1, 65):
        step = np.abs(values).max() * candidate / 64 / top
        error = np.square(np.clip(np.round(values / step), -top, top) * step - values).mean()
        if error < best * (1 - 1e-9):
            best, chosen = error, step * top
    return float(chosen)


@pytest.mark.parametrize("adc_range_per", ["tile", "column"])
@pytest.mark.parametrize(
    ("method", "percentile"), [("percentile", 99.9), ("percentile", 60.0), ("min_error", 99.9)]
)
def test_ranges_are_those_of_numpy(method: CalibrationMethod, percentile: float, adc_range_per: str) -> None:
    config = calibrated(adc_range_per=adc_range_per)
    crossbar = Crossbar.program(normal(2, 40, 13), config, [generator(1), generator(2)])
    x = normal(2, 23, 40, seed=1)
    crossbar.calibrate(x, method, percentile)
    found = crossbar.state_dict()["reach"].numpy()
    assert found.shape == (2, 1, 3, 13)
    held = crossbar.read_weight().numpy()
    loudest = x.abs().amax(dim=-1, keepdim=True).numpy()
    for device in range(2):
        for tile, top in enumerate((0, 16, 32)):
            rows = slice(top, top + 16)
            currents = x[device, :, rows].numpy() @ held[device, rows] / loudest[device]
            for left, right in (
                [(0, 5), (5, 10), (10, 13)] if adc_range_per == "tile" else [(o, o + 1) for o in range(13)]
            ):
                values = np.abs(currents[:, left:right])
                own = np.percentile(values, percentile) if method == "percentile" else least_error(values, 15)
                assert np.allclose(found[device, 0, tile, left:right], own, rtol=1e-4)


def test_every_slice_and_input_cycle_counts() -> None:
    config = calibrated(
        accumulate="digital", input_coding="bit_serial", dac_bits=4, device="Ideal2", sigma=0.0
    )
    crossbar = Crossbar.program(normal(16, 5), config, generator())
    x = normal(7, 16, seed=1)
    crossbar.calibrate(x, percentile=100)
    reach = crossbar.state_dict()["reach"]
    codes = (x / (x.abs().amax(dim=-1, keepdim=True) / 7)).round().to(torch.int32)
    planes = torch.cat([(codes >> bit) & 1 for bit in range(4)]).float()
    held = crossbar.state_dict()["weight"][0]  # [slices, in, out]
    assert torch.allclose(reach[0, :, 0, 0], (planes @ held).abs().amax(dim=(1, 2)))


def test_the_whole_percentile_clips_none_of_its_own_inputs_and_a_lower_one_clips_its_share() -> None:
    x = normal(200, 40, seed=1)
    for percentile, low, high in ((100.0, 0.0, 0.0), (90.0, 0.05, 0.15)):
        crossbar = Crossbar.program(normal(40, 13), calibrated(), generator())
        crossbar.calibrate(x, percentile=percentile)
        crossbar.matmul(x)
        assert low <= crossbar.counts.adc_clipped / crossbar.counts.adc_reads <= high


def test_min_error_reads_closer_than_the_largest_value_at_few_bits() -> None:
    x, weight = normal(200, 64, seed=1), normal(64, 16)
    errors = []
    for method, percentile in (("min_error", 99.9), ("percentile", 100.0)):
        crossbar = Crossbar.program(weight, calibrated(adc_bits=3, rows=64), generator())
        crossbar.calibrate(x, method, percentile)
        errors.append(float((crossbar.matmul(x) - x @ crossbar.read_weight()).square().mean()))
    assert errors[0] < errors[1] * 0.8


def test_a_calibrated_range_holds_for_loud_and_quiet_vectors() -> None:
    crossbar = Crossbar.program(normal(40, 13), calibrated(dac_bits=8), generator())
    x = normal(9, 40, seed=1)
    crossbar.calibrate(x)
    y = crossbar.matmul(x)
    assert torch.allclose(crossbar.matmul(x * 1024), y * 1024)


def test_ranges_survive_ageing_until_calibrated_anew() -> None:
    crossbar = Crossbar.program(normal(40, 13), calibrated(device="PCM_Joshi2020"), generator())
    crossbar.calibrate(normal(9, 40, seed=1))
    reach = crossbar.state_dict()["reach"]
    crossbar.age(1e6)
    assert torch.equal(crossbar.state_dict()["reach"], reach)
    crossbar.calibrate(normal(9, 40, seed=1))
    assert not torch.equal(crossbar.state_dict()["reach"], reach)


@pytest.mark.parametrize("scale_per", ["device", "column"])
@pytest.mark.parametrize("adc_range_per", ["tile", "column"])
@pytest.mark.parametrize("scheme", ["differential", "offset"])
def test_ranges_go_with_the_scale_of_what_is_rewritten(
    scale_per: str, adc_range_per: str, scheme: str
) -> None:
    # Powers of two times the weights are the same cells and currents: outputs are those powers times the outputs.
    fields = {"sigma": 0.0, "scale_per": scale_per, "adc_range_per": adc_range_per, "scheme": scheme}
    crossbar = Crossbar.program(normal(2, 40, 13), calibrated(**fields), generator())
    x = normal(50, 40, seed=1)
    crossbar.calibrate(x)
    before = crossbar.matmul(x)
    clipped = crossbar.counts.adc_clipped
    power = torch.full((13,), 1 / 32) if scale_per == "device" else 2.0 ** torch.arange(-6, 7)
    crossbar.rewrite(normal(2, 40, 13) * power)
    assert torch.equal(crossbar.matmul(x), before * power)
    assert crossbar.counts.adc_clipped == 2 * clipped


def test_ranges_come_back_after_zeros_were_written() -> None:
    crossbar = Crossbar.program(normal(40, 13), calibrated(sigma=0.0), generator())
    x = normal(50, 40, seed=1)
    crossbar.calibrate(x)
    before = crossbar.matmul(x)
    crossbar.rewrite(torch.zeros(40, 13))
    assert not crossbar.matmul(x).any()
    crossbar.rewrite(4 * normal(40, 13))
    assert torch.allclose(crossbar.matmul(x), 4 * before)


@pytest.mark.parametrize("scale_per", ["device", "column"])
def test_a_line_that_carried_nothing_in_calibration_can_still_be_read(scale_per: str) -> None:
    weight, x = normal(32, 10), normal(50, 32, seed=1)
    config = calibrated(adc_bits=8, adc_range_per="column", scale_per=scale_per, device="Ideal2", sigma=0)
    quiet, silent = weight.clone(), x.clone()
    quiet[:, 3] = 0  # a column of zeros, and a row tile without inputs
    silent[:, 16:] = 0
    crossbar = Crossbar.program(quiet, config, generator())
    crossbar.calibrate(silent)
    crossbar.rewrite(weight)
    exact = x.numpy() @ crossbar.read_weight().numpy()
    # ADC steps of the widest column, two tiles: an error of some percent, where a range of 0 reads 0
    assert np.linalg.norm(crossbar.matmul(x).numpy() - exact) < 0.15 * np.linalg.norm(exact)


def test_an_array_of_zeros_is_calibrated_to_the_largest_current_that_there_can_be() -> None:
    config = calibrated(adc_bits=10, device="Ideal2", sigma=0)
    crossbar = Crossbar.program(torch.zeros(16, 5), config, generator())
    crossbar.calibrate(normal(9, 16, seed=1))
    crossbar.rewrite(torch.ones(16, 5))
    x = torch.ones(1, 16)
    assert torch.allclose(crossbar.matmul(x), torch.full((1, 5), 16.0), rtol=1e-2)
    assert crossbar.counts.adc_clipped == 0


def test_a_calibration_reads_nothing_and_counts_nothing() -> None:
    config = calibrated(read_noise=0.05)
    one, two = (Crossbar.program(normal(40, 13), config, generator()) for _ in range(2))
    x = normal(9, 40, seed=1)
    for crossbar, times in ((one, 1), (two, 3)):
        for _ in range(times):
            crossbar.calibrate(x)
    assert one.counts.adc_reads == two.counts.adc_reads == 0
    assert torch.equal(one.matmul(x), two.matmul(x))


def test_a_column_that_carries_nothing_reads_zero() -> None:
    weight = normal(40, 13)
    weight[:, 3] = 0
    crossbar = Crossbar.program(
        weight, calibrated(adc_range_per="column", device="Ideal2", sigma=0), generator()
    )
    crossbar.calibrate(normal(9, 40, seed=1))
    y = crossbar.matmul(normal(4, 40, seed=2))
    assert not y[:, 3].any()
    assert bool(torch.isfinite(y).all())


@pytest.mark.parametrize(
    ("x", "percentile", "complaint"),
    [
        (torch.zeros(0, 40), 99.0, "at least one input vector"),
        (torch.full((2, 40), float("nan")), 99.0, "without NaN"),
        (torch.zeros(2, 40), 99.0, "all calibration inputs are zero"),
        (torch.ones(2, 40), 0.0, "percentile must lie above 0"),
        (torch.ones(2, 40), 101.0, "percentile must lie above 0"),
        (torch.ones(2, 39), 99.0, "input has shape"),
        (torch.ones(2, 40, dtype=torch.int32), 99.0, "floating point"),
    ],
)
def test_inputs_that_cannot_serve_are_refused(x: torch.Tensor, percentile: float, complaint: str) -> None:
    crossbar = Crossbar.program(normal(40, 13), calibrated(), generator())
    with pytest.raises(ConfigError, match=complaint):
        crossbar.calibrate(x, percentile=percentile)


@pytest.mark.parametrize("fields", [{"adc_scaling": "norm"}, {"adc_bits": None}])
def test_converters_that_are_not_to_be_calibrated_are_refused(fields: dict[str, object]) -> None:
    crossbar = Crossbar.program(normal(40, 13), calibrated(**fields), generator())
    with pytest.raises(ConfigError, match="calibrate needs adc_bits and adc_scaling: calibrated"):
        crossbar.calibrate(torch.ones(2, 40))
