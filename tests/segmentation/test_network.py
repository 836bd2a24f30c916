"""What holds for every architecture."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from nvcim.analog import analogize
from nvcim.config import Settings, parse_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import quantizer_named
from nvcim.segmentation.architectures import NetworkSettings, make_network, network_settings_from
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.model_files import load_fcn, save_fcn
from nvcim.segmentation.network import CLASSES, OutputSettings, baked, normalise_colours
from nvcim.segmentation.unet import UNet, UNetSettings
from tests.closeness import close

FCN = FCNSettings(width=4, depth=2, descriptor_dim=24, fused_width=8)
UNET = UNetSettings(width=4, depth=2)
every_network = pytest.mark.parametrize("settings", [FCN, UNET], ids=["fcn", "unet"])


def some_image(height: int = 24, width: int = 31, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@every_network
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (24, 31), (65, 3)])
def test_outputs_fit_the_images_size_whatever_it_is(
    settings: OutputSettings, classes: int, size: tuple[int, int]
) -> None:
    model = make_network(settings.model_copy(update={"classes": classes}), seed=0).eval()
    logits, descriptor = model(some_image(*size, batch=2))
    assert logits.shape == (2, classes, *size)
    assert descriptor.shape == (2, model.descriptor_dim)
    assert bool(torch.isfinite(logits).all())
    assert bool(torch.isfinite(descriptor).all())


@pytest.mark.parametrize(("settings", "depth"), [(FCN, 2), (UNET, 3)], ids=["fcn", "unet"])
def test_missing_rows_and_columns_repeat_the_images_edge(settings: OutputSettings, depth: int) -> None:
    model = make_network(settings.model_copy(update={"depth": depth}), seed=1).eval()
    assert model.stride == 8
    image = some_image(5, 3)
    rows = torch.arange(8).clamp(max=4)
    columns = torch.arange(8).clamp(max=2)
    by_hand = image[:, :, rows][:, :, :, columns]
    logits, descriptor = model(image)
    whole, descriptor_of_whole = model(by_hand)
    assert torch.equal(logits, whole[..., :5, :3])
    assert torch.equal(descriptor, descriptor_of_whole)


@every_network
def test_initial_weights_depend_on_the_seed_only(settings: OutputSettings) -> None:
    torch.manual_seed(1)
    first = make_network(settings, seed=3).state_dict()
    torch.manual_seed(2)
    second, other = make_network(settings, seed=3).state_dict(), make_network(settings, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@every_network
def test_an_image_gets_the_same_map_alone_and_in_a_batch(settings: OutputSettings) -> None:
    model = make_network(settings, seed=1).eval()
    images = some_image(batch=5)
    with torch.no_grad():
        logits, descriptors = model(images)
        for index in range(5):
            alone, descriptor = model(images[index : index + 1])
            assert close(alone[0], logits[index], 5e-6)
            assert close(descriptor[0], descriptors[index])


@every_network
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_close_to_float(settings: OutputSettings, kind: torch.dtype) -> None:
    model = make_network(settings, seed=1).eval()
    with torch.no_grad():
        logits, descriptor = model(some_image())
        with torch.autocast("cpu", kind):
            mixed, mixed_descriptor = model(some_image())
    assert mixed_descriptor.dtype == torch.float32
    # bfloat16 keeps 8 bits: 2^-8 per rounding, over about twenty layers.
    assert float((mixed.float() - logits).norm() / logits.norm()) < 0.05
    assert float((mixed_descriptor - descriptor).norm() / descriptor.norm()) < 0.05


@every_network
def test_every_weight_gets_a_gradient_in_mixed_precision(settings: OutputSettings) -> None:
    model = make_network(settings, seed=1).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(some_image(batch=2))
    F.cross_entropy(logits.float(), torch.zeros(2, 24, 31, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []


@every_network
def test_every_convolution_goes_to_crossbars_and_ideal_ones_compute_the_same(
    settings: OutputSettings,
) -> None:
    # RRAM4's cells do not leak; FeFET2's off state does, and loses 1 % of every weight without variation.
    model = make_network(settings, seed=2).eval()
    config = CrossbarConfig(device="RRAM4", sigma=0.0, dac_bits=None, adc_bits=None, weight_bits=8)
    analog = analogize(model, config, torch.Generator().manual_seed(0))
    kinds = {type(layer) for layer in analog.modules()}
    assert not kinds & {nn.Conv2d, nn.ConvTranspose2d, nn.Linear}
    with torch.no_grad():
        logits, _ = model(some_image())
        on_crossbars, _ = analog(some_image())
    # What is left is the rounding of weights to 8 bits.
    assert float((logits - on_crossbars).norm() / logits.norm()) < 0.05


def test_noise_of_the_cells_grows_the_error() -> None:
    model = make_network(FCN, seed=2).eval()

    def error(sigma: float) -> float:
        config = CrossbarConfig(sigma=sigma, dac_bits=None, adc_bits=None)
        analog = analogize(copy.deepcopy(model), config, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float((analog(some_image())[0] - model(some_image())[0]).norm())

    assert error(0.0) < error(0.05) < error(0.5)


def test_quantized_models_run_on_crossbars() -> None:
    model = make_network(FCN, seed=2).eval()
    quantizer = quantizer_named("inq-4")
    assert quantizer is not None
    model.quantize(quantizer)
    quantizer.advance(model, 1.0)
    config = CrossbarConfig(device="RRAM4", sigma=0.0, dac_bits=None, adc_bits=None, weight_bits=8)
    with torch.no_grad():
        logits, _ = model(some_image())
        on_crossbars, _ = analogize(model, config, torch.Generator().manual_seed(0))(some_image())
    # Crossbars hold multiples of 1/127 of the largest weight, which powers of two are not.
    assert float((logits - on_crossbars).norm() / logits.norm()) < 0.1


def test_a_baked_copy_predicts_the_same_and_is_saved_as_a_float_network(tmp_path: Path) -> None:
    model = make_network(FCN, seed=2).eval()
    quantizer = quantizer_named("uniform-8")
    assert quantizer is not None
    model.quantize(quantizer)
    quantizer.advance(model, 1.0)
    copied = baked(model)
    with torch.no_grad():
        assert torch.equal(copied(some_image())[0], model(some_image())[0])
    assert copied.quantizer is None
    assert model.quantizer is quantizer
    save_fcn(copied, tmp_path)
    loaded = load_fcn(tmp_path)
    assert loaded.quantizer is None
    assert torch.equal(loaded.get_submodule("head").weight, model.get_submodule("head").weight)


def test_a_model_is_quantized_once() -> None:
    model = make_network(UNET, seed=0)
    first, second = quantizer_named("inq-5"), quantizer_named("uniform-4")
    assert first is not None
    assert second is not None
    model.quantize(first)
    with pytest.raises(ModelError, match="quantized already"):
        model.quantize(second)
    assert model.quantizer is first


def test_classes_are_two_or_three() -> None:
    assert CLASSES == ("background", "object", "contour")
    with pytest.raises(ConfigError, match="classes"):
        network_settings_from({"classes": 4}, "test")


def test_networks_are_made_from_their_settings() -> None:
    assert isinstance(make_network(FCN, 0), ResidualFCN)
    assert isinstance(make_network(UNET, 0), UNet)
    assert network_settings_from({"width": 8}, "test") == FCNSettings(width=8)
    assert network_settings_from({"kind": "unet", "width": 8}, "test") == UNetSettings(width=8)
    with pytest.raises(ConfigError, match=r"test: network 'vnet' is not known; allowed: fcn, unet"):
        network_settings_from({"kind": "vnet"}, "test")
    with pytest.raises(ConfigError, match=r"unknown field 'wdth' \(did you mean 'width'\?\)"):
        network_settings_from({"kind": "unet", "wdth": 8}, "test")
    with pytest.raises(ConfigError, match="OutputSettings"):
        make_network(OutputSettings(), 0)


def test_settings_of_any_network_can_be_a_field() -> None:
    class Job(Settings):
        network: NetworkSettings = FCNSettings()

    assert parse_settings({}, Job, "test").network == FCNSettings()
    assert parse_settings({"network": {"width": 8}}, Job, "test").network == FCNSettings(width=8)
    assert parse_settings({"network": {"kind": "unet"}}, Job, "test").network == UNetSettings()
    assert Job(network=UNET).network is UNET
    assert Job.model_validate(Job(network=UNET).model_dump()) == Job(network=UNET)
    with pytest.raises(ConfigError, match="network"):
        parse_settings({"network": {"kind": "vnet"}}, Job, "test")
    with pytest.raises(ConfigError, match="widht"):
        parse_settings({"network": {"widht": 8}}, Job, "test")
    with pytest.raises(ValidationError):
        Job.model_validate({"network": 3})


def test_colours_are_normalised_per_image() -> None:
    pixels = torch.randint(0, 256, (2, 3, 9, 9), generator=torch.Generator().manual_seed(0)).float()
    stained = pixels * torch.tensor([0.5, 0.8, 0.3]).view(1, 3, 1, 1) + 20
    assert torch.allclose(normalise_colours(pixels), normalise_colours(stained), atol=1e-4)
    assert torch.equal(normalise_colours(torch.full((1, 3, 4, 4), 200.0)), torch.zeros(1, 3, 4, 4))
    # Half the pixels 0, half 100: mean 50, deviation 50.
    halves = np.repeat(np.array([0.0, 100.0], dtype=np.float32), 3 * 8).reshape(2, 3, 8)
    two = torch.from_numpy(halves.transpose(1, 0, 2).copy())[None]
    assert torch.equal(normalise_colours(two), torch.where(two > 0, 1.0, -1.0))
