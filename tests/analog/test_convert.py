"""Whole models on crossbars."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from nvcim.analog import AnalogConv2d, AnalogLinear, analogize, analogize_for_training, deploy
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, DeviceError
from nvcim.quantization import DoReFa, DoReFaSettings, inference_copy

FINE = CrossbarConfig.ideal(16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Ternary(nn.Module):
    """A quantizer: every weight becomes -1, 0 or 1 times 0.1."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight * 20).round().clamp(-1, 1) * 0.1


class SmallCNN(nn.Module):
    """Convolutions, a layer used twice, a transposed convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.body(x)).relu())
        return self.head(self.up(x).mean(dim=(2, 3)))


@pytest.fixture
def model() -> SmallCNN:
    model = SmallCNN().eval()
    stream = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=stream))
    parametrize.register_parametrization(model.body[0], "weight", Ternary())
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 10, 10, generator=generator(4))


def test_an_ideal_conversion_computes_what_the_model_does(model: SmallCNN, images: torch.Tensor) -> None:
    converted = analogize(model, FINE, generator())
    assert torch.allclose(converted(images), model(images), atol=1e-4)


def test_layers_are_replaced_in_a_copy(model: SmallCNN) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = analogize(model, CrossbarConfig(), generator())
    kinds = {name: type(module) for name, module in converted.named_modules()}
    assert kinds["body.0"] is kinds["twice"] is AnalogConv2d
    assert kinds["head"] is AnalogLinear
    assert kinds["up"] is nn.ConvTranspose2d
    assert isinstance(model.twice, nn.Conv2d)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_quantized_weights_are_written_in_quantized_form(model: SmallCNN) -> None:
    converted = analogize(model, CrossbarConfig.ideal(), generator())
    read = converted.get_submodule("body.0").crossbar.read_weight()
    assert torch.allclose(read.abs(), 0.1 * (read.abs() > 0.05), atol=1e-6)
    assert int((read.abs() > 0.05).sum()) > 0


def test_skipped_layers_stay_digital(model: SmallCNN) -> None:
    converted = analogize(model, CrossbarConfig(), generator(), skip=("head", "body"))
    assert isinstance(converted.head, nn.Linear)
    assert isinstance(converted.body[0], nn.Conv2d)
    assert isinstance(converted.twice, AnalogConv2d)


def test_skipping_one_layer_does_not_redraw_another(model: SmallCNN) -> None:
    whole = analogize(model, CrossbarConfig(), generator())
    part = analogize(model, CrossbarConfig(), generator(), skip=["body"])
    assert torch.equal(whole.twice.crossbar.read_weight(), part.twice.crossbar.read_weight())


def test_an_unknown_layer_to_skip_is_refused_with_the_known_ones(model: SmallCNN) -> None:
    with pytest.raises(ConfigError, match=r"'neck'.*body\.0.*head"):
        analogize(model, CrossbarConfig(), generator(), skip=["neck"])


def test_an_unknown_device_is_refused(model: SmallCNN) -> None:
    with pytest.raises(DeviceError, match="allowed"):
        analogize(model, CrossbarConfig(device="none"), generator())


def test_one_seed_gives_one_chip(model: SmallCNN, images: torch.Tensor) -> None:
    chips = [analogize(model, CrossbarConfig(), generator(seed))(images) for seed in (1, 1, 2)]
    assert torch.equal(chips[0], chips[1])
    assert not torch.equal(chips[0], chips[2])


def test_equal_layers_are_different_crossbars() -> None:
    linear = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.load_state_dict(linear.state_dict())
    converted = analogize(nn.Sequential(linear, twin), CrossbarConfig(), generator())
    assert not torch.equal(converted[0].crossbar.read_weight(), converted[1].crossbar.read_weight())


def test_a_layer_used_twice_is_one_crossbar() -> None:
    shared = nn.Linear(4, 4)
    converted = analogize(nn.Sequential(shared, nn.ReLU(), shared), CrossbarConfig(), generator())
    assert converted[0] is converted[2]


def test_a_single_layer_converts_too() -> None:
    assert isinstance(analogize(nn.Linear(3, 2), CrossbarConfig(), generator()), AnalogLinear)


def test_layers_take_configs_of_their_own_by_pattern(model: SmallCNN) -> None:
    few, many = CrossbarConfig(rows=16), CrossbarConfig(rows=32)
    converted = analogize(model, CrossbarConfig(), generator(), layers={"body.*": few, "*": many})
    assert converted.get_submodule("body.0").crossbar.config == few
    assert converted.twice.crossbar.config == many


def test_a_pattern_that_fits_no_layer_is_refused(model: SmallCNN) -> None:
    with pytest.raises(ConfigError, match=r"'neck\*'.*body\.0"):
        analogize(model, CrossbarConfig(), generator(), layers={"neck*": FINE})


def test_a_chip_is_restored_into_one_of_another_seed(
    model: SmallCNN, images: torch.Tensor, tmp_path: Path
) -> None:
    chip = analogize(model, CrossbarConfig(read_noise=0.02), generator(1))
    chip(images)
    save_file(chip.state_dict(), tmp_path / "chip.safetensors")
    other = analogize(model, CrossbarConfig(sigma=0.3), generator(2))
    other.load_state_dict(load_file(tmp_path / "chip.safetensors"))
    assert torch.equal(other(images), chip(images))


def test_inputs_that_dorefa_quantizes_stay_quantized_on_crossbars(
    model: SmallCNN, images: torch.Tensor
) -> None:
    plain = SmallCNN().eval()
    plain.load_state_dict(
        {
            name.replace(".parametrizations.weight.original", ".weight"): t
            for name, t in model.state_dict().items()
        }
    )
    DoReFa(DoReFaSettings(bits=4, float_layers=("last",), activation_bits=1)).attach(plain)
    digital = plain(images).detach()
    training = analogize_for_training(plain, FINE, generator())
    for converted in (
        analogize(plain, FINE, generator()),
        analogize(inference_copy(plain), FINE, generator()),
        training,
        deploy(training),
        analogize(plain, FINE, generator(), skip=["twice"]),
    ):
        assert float((converted(images).detach() - digital).abs().max()) < 0.01 * float(digital.abs().max())
    for layer in (plain.body[0], plain.twice):
        layer._forward_pre_hooks.clear()
    # The bound above tells quantized inputs from others.
    assert float((plain(images).detach() - digital).abs().max()) > 0.1 * float(digital.abs().max())
