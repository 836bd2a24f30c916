import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nvcim.analog import analogize
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import INQ, quantizer_named
from nvcim.segmentation import FCNSettings, ResidualFCN, load_fcn, save_fcn
from nvcim.segmentation.fcn import normalise_colours

SMALL = FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8)


def some_image(height: int = 24, width: int = 31, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (24, 31), (65, 3)])
def test_logits_have_the_images_size_whatever_it_is(size: tuple[int, int]) -> None:
    logits, descriptor = ResidualFCN(SMALL).eval()(some_image(*size).repeat(2, 1, 1, 1))
    assert logits.shape == (2, 3, *size)
    assert descriptor.shape == (2, 12)


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = ResidualFCN(SMALL, seed=3).state_dict()
    torch.manual_seed(2)
    second, other = ResidualFCN(SMALL, seed=3).state_dict(), ResidualFCN(SMALL, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_descriptor_dim_and_width_are_settings() -> None:
    counts = [sum(p.numel() for p in ResidualFCN(FCNSettings(width=w)).parameters()) for w in (8, 16, 32)]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3
    assert ResidualFCN(FCNSettings(descriptor_dim=96)).eval()(some_image())[1].shape == (1, 96)


def test_colours_are_normalised_per_image() -> None:
    pixels = torch.randint(0, 256, (2, 3, 9, 9), generator=torch.Generator().manual_seed(0)).float()
    stained = pixels * torch.tensor([0.5, 0.8, 0.3]).view(1, 3, 1, 1) + 20
    assert torch.allclose(normalise_colours(pixels), normalise_colours(stained), atol=1e-4)
    assert torch.equal(normalise_colours(torch.full((1, 3, 4, 4), 200.0)), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("name", ["float", "inq-5", "uniform-4"])
def test_saved_models_come_back_bit_exactly(name: str, tmp_path: Path) -> None:
    model = ResidualFCN(SMALL, seed=1)
    model(some_image())  # moves the running statistics of the normalisation
    model.smallest_object = 17
    quantizer = quantizer_named(name)
    if quantizer is not None:
        model.quantize(quantizer)
        quantizer.advance(model, 0.6)  # in the middle of INQ's schedule
    save_fcn(model, tmp_path / "m")
    loaded = load_fcn(tmp_path / "m")
    logits, descriptor = model.eval()(some_image(seed=1))
    again, descriptor_again = loaded(some_image(seed=1))
    assert torch.equal(logits, again)
    assert torch.equal(descriptor, descriptor_again)
    assert loaded.smallest_object == 17
    assert (loaded.quantizer.name if loaded.quantizer else "float") == name
    if isinstance(loaded.quantizer, INQ):
        assert loaded.quantizer.frozen_fraction(loaded) == pytest.approx(0.6, abs=0.01)


def test_damaged_model_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fcn\.json: cannot be read"):
        load_fcn(tmp_path)
    save_fcn(ResidualFCN(SMALL), tmp_path)
    description = json.loads((tmp_path / "fcn.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()

    def write(**changes: object) -> None:
        (tmp_path / "fcn.json").write_text(json.dumps(description | changes))

    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_fcn(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    write(settings=SMALL.model_dump() | {"width": 8})
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_fcn(tmp_path)
    write(settings={"widht": 8})
    with pytest.raises(ConfigError, match="widht"):
        load_fcn(tmp_path)
    write(format=99)
    with pytest.raises(ModelError, match="format 99"):
        load_fcn(tmp_path)
    write(quantizer={"kind": "magic"})
    with pytest.raises(ConfigError, match="magic"):
        load_fcn(tmp_path)
    (tmp_path / "fcn.json").write_text("{")
    with pytest.raises(ModelError, match="not the description"):
        load_fcn(tmp_path)


# RRAM4's cells do not leak; FeFET2's off state does, and loses 1 % of every weight even without variation.


def test_ideal_crossbars_compute_what_the_float_model_does() -> None:
    model = ResidualFCN(SMALL, seed=2).eval()
    config = CrossbarConfig(device="RRAM4", sigma=0.0, dac_bits=None, adc_bits=None, weight_bits=8)
    analog = analogize(model, config, torch.Generator().manual_seed(0))
    assert not any(type(layer) is nn.Conv2d for layer in analog.modules())
    with torch.no_grad():
        logits, _ = model(some_image())
        on_crossbars, _ = analog(some_image())
    # What is left is the rounding of weights to 8 bits.
    assert float((logits - on_crossbars).norm() / logits.norm()) < 0.05


def test_noise_of_the_cells_grows_the_error() -> None:
    model = ResidualFCN(SMALL, seed=2).eval()

    def error(sigma: float) -> float:
        config = CrossbarConfig(sigma=sigma, dac_bits=None, adc_bits=None)
        analog = analogize(copy.deepcopy(model), config, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float((analog(some_image())[0] - model(some_image())[0]).norm())

    assert error(0.0) < error(0.05) < error(0.5)


def test_quantized_models_run_on_crossbars() -> None:
    model = ResidualFCN(SMALL, seed=2).eval()
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
