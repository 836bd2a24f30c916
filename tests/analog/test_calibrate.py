"""ADC ranges of whole models from data."""

import pytest
import torch
from torch import nn

from nvcim.analog import analogize, analogize_for_training, calibrate
from nvcim.analog.calibrate import _Recorder
from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError

CALIBRATED = CrossbarConfig(sigma=0.0, weight_bits=12, adc_bits=6, adc_scaling="calibrated")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    )
    stream = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=stream))
    return model.eval()


@torch.no_grad()
def error(model: nn.Module, x: torch.Tensor) -> float:
    expected = network()(x)
    return float((model(x) - expected).norm() / expected.norm())


def test_calibrated_ranges_beat_ranges_that_nothing_can_exceed() -> None:
    x, batches = normal(40, 3, 6, 6), [normal(8, 3, 6, 6, seed=seed) for seed in range(1, 4)]
    model = analogize(network(), CALIBRATED, generator())
    calibrate(model, batches)
    full = analogize(network(), CALIBRATED.model_copy(update={"adc_scaling": "full"}), generator())
    assert error(model, x) < 0.5 * error(full, x)


def test_batches_may_be_tensors_tuples_or_named_arguments() -> None:
    models = [analogize(network(), CALIBRATED, generator()) for _ in range(3)]
    x = normal(8, 3, 6, 6)
    for model, batch in zip(models, (x, (x,), {"input": x}), strict=True):
        calibrate(model, [batch], method="min_error")
    assert torch.equal(models[0](x), models[1](x))
    assert torch.equal(models[0](x), models[2](x))


def test_calibration_leaves_modes_statistics_and_read_counters_as_they_were() -> None:
    config = CALIBRATED.model_copy(update={"read_noise": 0.02})
    model, twin = (analogize(network(), config, generator()).train() for _ in range(2))
    for one, batches in ((model, [normal(4, 3, 6, 6)] * 3), (twin, [normal(4, 3, 6, 6)])):
        calibrate(one, batches, percentile=100)
    assert all(module.training for module in model.modules())
    assert torch.equal(model[1].running_mean, network()[1].running_mean)
    x = normal(2, 3, 6, 6, seed=5)
    # 3 times the same data have the same largest currents, and reads start at the same number
    assert torch.allclose(model.eval()(x), twin.eval()(x), atol=1e-5)


def test_layers_in_training_are_calibrated_too() -> None:
    model = analogize_for_training(network(), CALIBRATED, generator())
    calibrate(model, [normal(8, 3, 6, 6)])
    assert error(model.eval(), normal(8, 3, 6, 6, seed=2)) < 0.2


@pytest.mark.parametrize("size", [1, 7, 64])
def test_memory_is_bounded_and_what_is_kept_is_spread_evenly(size: int) -> None:
    recorder = _Recorder(Crossbar.program(normal(1, 2), CALIBRATED, generator()), 100)
    for start in range(0, 64 * 7 * 5, size):
        recorder(None, torch.arange(start, start + size, dtype=torch.float32)[:, None])
    kept = torch.cat(recorder.kept)[:, 0]
    assert 50 <= len(kept) <= 100
    assert set((kept[1:] - kept[:-1]).tolist()) == {32.0}


def test_a_layer_that_no_batch_reaches_is_named() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = analogize(Partial(), CALIBRATED, generator())
    with pytest.raises(ConfigError, match="'idle'"):
        calibrate(model, [normal(8, 4)])


def test_a_model_without_calibrated_arrays_is_refused() -> None:
    with pytest.raises(ConfigError, match="no array to calibrate"):
        calibrate(analogize(network(), CrossbarConfig(), generator()), [normal(8, 3, 6, 6)])
