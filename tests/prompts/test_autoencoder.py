"""The token autoencoder: codes that survive noise, kept exactly on disk."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import DataError, ModelError
from nvcim.prompts.autoencoder import (
    AutoencoderSettings,
    TokenAutoencoder,
    quantised,
    reconstruction_by_device,
    reconstruction_error,
    train_autoencoder,
)
from nvcim.prompts.noise import LevelNoise, level_noise
from nvcim.randomness import named_generator
from tests.closeness import close


def vectors(count: int = 600, width: int = 24) -> Tensor:
    """Correlated vectors off the origin: a few directions carry most of them."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(width, width, generator=generator) * torch.logspace(0, -1.5, width)[:, None]
    return torch.randn(count, width, generator=generator) @ axes + 2


@torch.no_grad()
def noisy_error(model: TokenAutoencoder, tokens: Tensor, noise: float) -> float:
    code = model.encode(tokens)
    eps = torch.randn(code.shape, generator=torch.Generator().manual_seed(9))
    return float((model.decode(code + noise * code.abs().amax() * eps) - tokens).square().mean())


def test_training_lowers_the_error_under_noise() -> None:
    tokens = vectors()
    settings = AutoencoderSettings(code=12, steps=150, learning_rate=5e-3)
    start = train_autoencoder(tokens, settings.model_copy(update={"steps": 0}), seed=1)
    trained = train_autoencoder(tokens, settings, seed=1)
    assert noisy_error(trained, tokens, 0.1) < 0.9 * noisy_error(start, tokens, 0.1)


def test_it_starts_at_the_principal_components() -> None:
    tokens = vectors()
    start = train_autoencoder(tokens, AutoencoderSettings(code=12, steps=0), seed=1)
    centred = tokens - tokens.mean(0)
    rest = torch.linalg.svdvals(centred)[12:].square().sum() / tokens.numel()
    assert noisy_error(start, tokens, 0.0) == pytest.approx(float(rest), rel=1e-3)
    same = train_autoencoder(tokens, AutoencoderSettings(code=64, steps=0), seed=1)
    assert close(same.decode(same.encode(tokens)), tokens, 1e-5)


def test_fewer_vectors_than_code_elements_still_make_an_autoencoder() -> None:
    few = vectors(5)
    model = train_autoencoder(few, AutoencoderSettings(code=12, steps=0), seed=1)
    assert close(model.decode(model.encode(few)), few, 1e-5)


def test_training_is_reproducible() -> None:
    settings = AutoencoderSettings(code=8, steps=5)
    first, again, other = (train_autoencoder(vectors(), settings, seed) for seed in (1, 1, 2))
    assert torch.equal(first.encoder.weight, again.encoder.weight)
    assert not torch.equal(first.encoder.weight, other.encoder.weight)


@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_saved_and_loaded_exactly(tmp_path: Path, depth: Literal[1, 2]) -> None:
    settings = AutoencoderSettings(code=8, steps=3, depth=depth, hidden=10)
    model = train_autoencoder(vectors(), settings, seed=1)
    model.save(tmp_path / "a.safetensors")
    loaded = TokenAutoencoder.load(tmp_path / "a.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert set(loaded.state_dict()) == set(model.state_dict())
    assert not any(weight.requires_grad for weight in loaded.parameters())
    tokens = vectors(5)
    assert torch.equal(loaded.decode(loaded.encode(tokens)), model.decode(model.encode(tokens)))


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "other", "half", "misfit"])
def test_a_wrong_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    model = train_autoencoder(vectors(), AutoencoderSettings(code=8, steps=0), seed=1)
    if kind == "truncated":
        model.save(path)
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "text":
        path.write_text("not tensors")
    elif kind == "other":
        save_file({"x": torch.ones(2)}, path)
    elif kind == "half":
        save_file({"encoder.weight": torch.ones(8, 24)}, path)
    elif kind == "misfit":
        save_file({**model.state_dict(), "decoder.weight": torch.ones(3, 3)}, path)
    with pytest.raises(ModelError, match="not a token autoencoder") as caught:
        TokenAutoencoder.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def token_sets(count: int = 30, n: int = 4, width: int = 24) -> Tensor:
    return vectors(count * n, width).reshape(count, n, width)


def test_a_hidden_layer_starts_at_the_principal_components_and_learns_what_a_line_cannot() -> None:
    """Tokens on a curved sheet in a plane's place: two numbers say all, but not linearly."""
    angle = torch.rand(800, 1, generator=named_generator(0)) * 3
    radius = 1 + torch.rand(800, 1, generator=named_generator(1))
    tokens = torch.cat([radius * angle.cos(), radius * angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)
    errors = {}
    for depth in (1, 2):
        for steps in (0, 400):
            settings = AutoencoderSettings.model_validate(
                {"code": 2, "depth": depth, "hidden": 32, "steps": steps, "noise": 0.0, "learning_rate": 5e-3}
            )
            errors[depth, steps] = noisy_error(train_autoencoder(tokens, settings, seed=1), tokens, 0.0)
    assert errors[2, 0] == pytest.approx(errors[1, 0])
    assert errors[2, 400] < 0.5 * errors[1, 400]


def test_quantised_codes_are_those_that_a_crossbar_holds() -> None:
    codes = torch.randn(5, 4, 16, generator=named_generator(0))
    codes[2] = 0
    for bits in (8, 4, 2):
        array = Crossbar.program(codes.flatten(1)[..., None], CrossbarConfig.ideal(bits), named_generator(1))
        torch.testing.assert_close(quantised(codes, bits).flatten(1), array.read_weight()[..., 0])
    codes.requires_grad_()
    quantised(codes, 4).sum().backward()
    assert torch.equal(codes.grad, torch.ones_like(codes))  # type: ignore[arg-type]


def test_training_for_few_bits_lowers_the_error_at_few_bits() -> None:
    tokens = vectors()
    errors = []
    for bits in (8, 2):
        settings = AutoencoderSettings.model_validate(
            {"code": 12, "bits": bits, "noise": 0.0, "steps": 200, "learning_rate": 5e-3}
        )
        model = train_autoencoder(tokens, settings, seed=1)
        rebuilt = model.decode(quantised(model.encode(tokens)[None], 2)[0])
        errors.append(float((rebuilt - tokens).square().mean()))
    assert errors[1] < 0.97 * errors[0]


def test_training_with_a_devices_noise_lowers_its_error() -> None:
    config = CrossbarConfig(device="RRAM1", sigma=0.2)
    sets = token_sets()
    settings = AutoencoderSettings(code=12, steps=200, learning_rate=5e-3, noise=0.0)
    blind = train_autoencoder(sets.flatten(0, 1), settings, seed=1)
    aware = train_autoencoder(sets.flatten(0, 1), settings, seed=1, noise=level_noise(config), sets=sets)
    errors = [reconstruction_error(one, sets, config, named_generator(2)).written for one in (aware, blind)]
    assert errors[0] < 0.9 * errors[1]


def test_the_ablation_without_noise_does_not_depend_on_the_device() -> None:
    settings = AutoencoderSettings(code=8, steps=5, noise=0.0)
    still = train_autoencoder(vectors(), settings, seed=1)
    same = train_autoencoder(vectors(), settings, seed=1, noise=LevelNoise(0.0, 0.0))
    other = train_autoencoder(vectors(), settings, seed=1, noise=LevelNoise(0.1, 0.1))
    assert torch.equal(still.encoder.weight, same.encoder.weight)
    assert not torch.equal(still.encoder.weight, other.encoder.weight)


def test_a_cosine_term_turns_rebuilt_tokens_nearer() -> None:
    # Short tokens count little in the squared error, and as much as long ones in the cosine.
    kinds = torch.randn(600, 24, generator=named_generator(0))
    long, short = kinds * torch.linspace(2, 0.2, 24), kinds * torch.linspace(0.02, 0.2, 24)
    tokens = torch.where(torch.arange(600)[:, None] < 300, long, short)
    turned = []
    for cosine in (0.0, 10.0):
        settings = AutoencoderSettings(code=4, steps=200, learning_rate=5e-3, noise=0.0, cosine=cosine)
        model = train_autoencoder(tokens, settings, seed=1)
        rebuilt = model.decode(model.encode(tokens))
        turned.append(float(torch.cosine_similarity(rebuilt, tokens).mean()))
    assert turned[1] > turned[0] + 0.005


def test_reconstruction_errors_are_of_code_integers_and_cells() -> None:
    """A code as wide as the tokens loses nothing, integers half a step at most, cells more."""
    sets = token_sets()
    model = train_autoencoder(sets.flatten(0, 1), AutoencoderSettings(code=24, steps=0), seed=1)
    config = CrossbarConfig(device="FeFET2", sigma=0.1, adc_bits=None, dac_bits=None)
    found = reconstruction_error(model, sets, config, named_generator(0), draws=8)
    assert found.code < 1e-5
    codes = model.encode(sets)
    rms = sets.square().mean().sqrt()
    # The map is a rotation, so errors of the code are errors of the tokens.
    off = (quantised(codes, 8) - codes).square().mean().sqrt() / rms
    assert found.quantised == pytest.approx(float(off), rel=1e-3)
    draws = []
    for seed in range(8):
        columns = codes.flatten(1)[..., None]
        back = Crossbar.program(columns, config, named_generator(seed, "own")).read_weight()
        draws.append(float((back - columns).square().mean().sqrt() / rms))
    mean = torch.tensor(draws).mean()
    assert found.written == pytest.approx(float(mean), rel=0.03)
    assert 0 < found.spread < 0.1 * found.written
    assert found.draws == 8


def test_every_device_gets_its_line_whatever_stands_beside_it() -> None:
    sets = token_sets(6)
    model = train_autoencoder(sets.flatten(0, 1), AutoencoderSettings(code=8, steps=0), seed=1)
    configs = {name: CrossbarConfig(device=name) for name in ("RRAM1", "FeFET6")}
    table = reconstruction_by_device(model, sets, configs, seed=3, draws=3)
    assert list(table) == ["RRAM1", "FeFET6"]
    assert table["RRAM1"].written > table["FeFET6"].written
    alone = reconstruction_by_device(model, sets, {"FeFET6": configs["FeFET6"]}, seed=3, draws=3)
    assert alone["FeFET6"] == table["FeFET6"]


def test_what_cannot_be_trained_on_or_measured_is_refused() -> None:
    settings = AutoencoderSettings(code=8, steps=0)
    model = train_autoencoder(vectors(), settings, seed=1)
    with pytest.raises(DataError, match=r"vectors have shape \(0, 24\)"):
        train_autoencoder(torch.zeros(0, 24), settings, seed=1)
    with pytest.raises(DataError, match=r"sets have shape \(2, 3, 23\).*\(sets, tokens, 24\)"):
        train_autoencoder(vectors(), settings, seed=1, sets=torch.zeros(2, 3, 23))
    with pytest.raises(DataError, match="1 draws of sets"):
        reconstruction_error(model, token_sets(2), CrossbarConfig(), named_generator(0), draws=1)


def test_making_one_draws_nothing_from_the_global_stream() -> None:
    before = torch.get_rng_state()
    train_autoencoder(vectors(), AutoencoderSettings(code=8, steps=2, depth=2), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
