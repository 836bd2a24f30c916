"""Analog layers against torch's, and what the crossbar adds."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from nvcim.analog import AnalogConv2d, AnalogLinear
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError
from tests.closeness import close

FINE = CrossbarConfig.ideal(16)  # weights to 16 bits: the rest is float32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def randomised(layer: nn.Module, seed: int = 7) -> nn.Module:
    stream = generator(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(13,), (5, 13), (2, 3, 13), (0, 13)])
def test_an_ideal_linear_layer_equals_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    linear = randomised(nn.Linear(13, 7, bias=bias))
    x = normal(*shape)
    y = AnalogLinear.from_linear(linear, FINE, generator())(x)
    assert y.shape == linear(x).shape
    assert torch.allclose(y, linear(x), atol=5e-3)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": 3, "dilation": (1, 2), "padding": 2},
        {"kernel_size": 3, "groups": 2, "padding": 1},
        {"kernel_size": 3, "groups": 6, "stride": 2},
        {"kernel_size": (3, 4), "padding": "same", "padding_mode": "reflect"},
        {"kernel_size": (3, 5), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_an_ideal_convolution_equals_torchs(kwargs: dict) -> None:
    conv = randomised(nn.Conv2d(6, 12, **kwargs))
    x = normal(2, 6, 17, 11)
    y = AnalogConv2d.from_conv(conv, FINE, generator())(x)
    assert y.shape == conv(x).shape
    assert torch.allclose(y, conv(x), atol=2e-2)


def test_a_convolution_in_bands_equals_one_in_one_piece() -> None:
    conv = randomised(nn.Conv2d(8, 4, 3, padding=1, stride=2))
    x = normal(1, 8, 150, 150)  # 75 * 75 * 72 patch elements: several bands
    y = AnalogConv2d.from_conv(conv, FINE, generator())(x)
    assert torch.allclose(y, conv(x), atol=2e-2)


def test_a_band_of_small_images_equals_image_by_image() -> None:
    conv = randomised(nn.Conv2d(6, 4, 3, padding=1))
    x = normal(9, 6, 50, 45)  # 50 * 45 * 54 patch elements each: several images a band, and a last short one
    y = AnalogConv2d.from_conv(conv, FINE, generator())(x)
    assert torch.allclose(y, conv(x), atol=2e-2)


def _images(kind: str) -> torch.Tensor:
    """[2, 4, 6, 5] in memory as crops and slices of larger images lie, which are contiguous in no format."""
    last = normal(2, 8, 12, 10).to(memory_format=torch.channels_last)
    return {
        "contiguous": normal(2, 4, 6, 5),
        "channels last": normal(2, 4, 6, 5).to(memory_format=torch.channels_last),
        "crop": normal(2, 4, 12, 10)[:, :, 2:8, 3:8],
        "crop of channels last": last[:, :4, 2:8, 3:8],
        "every second pixel of channels last": last[:, :4, ::2, ::2],
        "transposed": normal(2, 4, 5, 6).mT,
        "one image for many": normal(1, 4, 6, 5).expand(2, -1, -1, -1),
        "three dimensions": normal(6, 5, 4).permute(2, 0, 1),
    }[kind]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "kind",
    [
        *("contiguous", "channels last", "crop", "crop of channels last", "transposed", "three dimensions"),
        *("every second pixel of channels last", "one image for many"),
    ],
)
def test_outputs_lie_in_memory_as_those_of_torchs_convolution(
    kind: str, weight_format: torch.memory_format, groups: int
) -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups).to(memory_format=weight_format)
    layer, x = AnalogConv2d.from_conv(conv, FINE, generator()), _images(kind)
    with torch.no_grad():
        assert layer(x).stride() == conv(x).stride()
    traced = x.detach().requires_grad_()
    assert layer(traced).stride() == conv(traced).stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_lies_in_memory_as_its_input_does(layout: torch.memory_format) -> None:
    conv = randomised(nn.Conv2d(3, 4, 3))
    x = normal(2, 3, 9, 9).contiguous(memory_format=layout)
    y = AnalogConv2d.from_conv(conv, FINE, generator())(x)
    assert y.is_contiguous(memory_format=layout)
    assert torch.allclose(y, conv(x), atol=1e-2)


def test_no_images_give_no_outputs() -> None:
    layer = AnalogConv2d.from_conv(nn.Conv2d(3, 4, 3, padding=1), FINE, generator())
    assert layer(torch.zeros(0, 3, 9, 8)).shape == (0, 4, 9, 8)


def test_patches_of_depthwise_convolutions_stay_in_their_groups() -> None:
    conv = randomised(nn.Conv2d(5, 10, 3, groups=5, padding=1))
    x = normal(2, 5, 7, 6)
    layer = AnalogConv2d.from_conv(conv, FINE, generator())
    assert layer.crossbar.shape == (5, 9, 2)
    assert torch.allclose(layer(x), conv(x), atol=1e-2)


def test_an_image_without_batch_dimension_is_taken_as_torch_takes_it() -> None:
    conv = randomised(nn.Conv2d(3, 4, 3))
    assert torch.allclose(
        AnalogConv2d.from_conv(conv, FINE, generator())(normal(3, 9, 9)), conv(normal(3, 9, 9)), atol=1e-2
    )


@pytest.mark.parametrize("read_noise", [0.0, 0.02])
def test_an_image_gives_the_same_in_any_batch(read_noise: float) -> None:
    conv = randomised(nn.Conv2d(3, 4, 3))
    config = CrossbarConfig(read_noise=read_noise)
    x = normal(3, 3, 12, 12)
    x[1] *= 100
    whole = AnalogConv2d.from_conv(conv, config, generator())(x)
    layer = AnalogConv2d.from_conv(conv, config, generator())
    parts = torch.cat([layer(x[:1]), layer(x[1:])])
    assert all(
        close(own, part, 1e-5) for own, part in zip(whole, parts, strict=True)
    )  # one is 100 times larger


@pytest.mark.parametrize("shape", [(1, 5, 9, 9), (1, 3, 2, 9), (3, 3)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    layer = AnalogConv2d.from_conv(nn.Conv2d(3, 4, 3), FINE, generator())
    with pytest.raises(ConfigError, match="input has shape"):
        layer(torch.zeros(shape))


def test_integer_images_are_refused() -> None:
    layer = AnalogConv2d.from_conv(nn.Conv2d(3, 4, 3), FINE, generator())
    with pytest.raises(ConfigError, match="floating point"):
        layer(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_convolution_returns_its_inputs_type(dtype: torch.dtype) -> None:
    conv = randomised(nn.Conv2d(3, 4, 3))
    y = AnalogConv2d.from_conv(conv, FINE, generator())(normal(2, 3, 9, 9).to(dtype))
    assert y.dtype == dtype
    assert torch.allclose(y.float(), conv(normal(2, 3, 9, 9)), atol=0.2)


def test_reads_per_cell_reach_a_convolution() -> None:
    config = CrossbarConfig(sigma=0.0, read_noise=0.05, read_mode="cell", weight_bits=12)
    conv = randomised(nn.Conv2d(2, 3, 3))
    y, expected = (
        AnalogConv2d.from_conv(conv, config, generator())(normal(1, 2, 6, 6)),
        conv(normal(1, 2, 6, 6)),
    )
    error = float((y - expected).detach().norm() / expected.detach().norm())
    assert 0.005 < error < 0.5


def test_default_hardware_disturbs_but_does_not_destroy() -> None:
    conv = nn.Conv2d(8, 8, 3)
    conv.requires_grad_(False).weight.copy_(normal(8, 8, 3, 3))
    x = normal(1, 8, 20, 20)
    y = AnalogConv2d.from_conv(conv, CrossbarConfig(sigma=0.02), generator())(x)
    error = float((y - conv(x)).norm() / conv(x).norm())
    assert 0.005 < error < 0.5


def test_parametrized_weights_are_programmed_as_the_layer_uses_them() -> None:
    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    linear = randomised(nn.Linear(5, 4))
    plain = AnalogLinear.from_linear(linear, FINE, generator()).crossbar.read_weight()
    parametrize.register_parametrization(linear, "weight", Halved())
    halved = AnalogLinear.from_linear(linear, FINE, generator()).crossbar.read_weight()
    assert torch.allclose(halved, plain / 2)


def test_state_dict_carries_the_device_through_a_file() -> None:
    config = CrossbarConfig(read_noise=0.05)
    saved = AnalogLinear.from_linear(randomised(nn.Linear(5, 4)), config, generator(1))
    other = AnalogLinear.from_linear(randomised(nn.Linear(5, 4), seed=9), CrossbarConfig(), generator(2))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.crossbar.config == config
    assert torch.equal(other(normal(3, 5)), saved(normal(3, 5)))


def test_state_dict_holds_tensors_alone_and_passes_through_safetensors(tmp_path: Path) -> None:
    config = CrossbarConfig(read_noise=0.05, adc_scaling="calibrated")
    saved = AnalogConv2d.from_conv(nn.Conv2d(3, 4, 3), config, generator(1))
    saved.crossbar.calibrate(normal(1, 50, 27))
    saved(normal(1, 3, 9, 9))  # reads so far belong to the state
    other = AnalogConv2d.from_conv(nn.Conv2d(3, 4, 3), CrossbarConfig(sigma=0.3), generator(2))
    save_file(saved.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(other(normal(1, 3, 9, 9)), saved(normal(1, 3, 9, 9)))


def test_state_without_a_crossbar_is_missing_it() -> None:
    layer = AnalogLinear.from_linear(nn.Linear(5, 4), FINE, generator())
    with pytest.raises(RuntimeError, match=r"Missing key.*crossbar\.config"):
        layer.load_state_dict({"bias": torch.zeros(4)})


def test_a_layers_weight_shows_its_shape_and_holds_nothing() -> None:
    conv = nn.Conv2d(4, 6, (3, 2), groups=2)
    layer = AnalogConv2d.from_conv(conv, FINE, generator())
    assert layer.weight.shape == conv.weight.shape
    assert layer.weight.is_meta


def test_state_of_another_shape_is_refused() -> None:
    small = AnalogLinear.from_linear(nn.Linear(5, 4, bias=False), CrossbarConfig(), generator())
    large = AnalogLinear.from_linear(nn.Linear(6, 4, bias=False), CrossbarConfig(), generator())
    with pytest.raises(ConfigError, match="saved crossbar has shape"):
        small.load_state_dict(large.state_dict())


def test_moving_and_printing_a_layer_keeps_its_device() -> None:
    layer = AnalogLinear.from_linear(randomised(nn.Linear(5, 4)), CrossbarConfig(), generator())
    before = layer.crossbar.read_weight()
    layer.to("cpu").double()
    assert torch.equal(layer.crossbar.read_weight(), before)
    assert "FeFET2" in repr(layer)
