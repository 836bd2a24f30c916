"""The token autoencoder: codes that survive noise, kept exactly on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nvcim.errors import ModelError
from nvcim.prompts.autoencoder import AutoencoderSettings, TokenAutoencoder, train_autoencoder


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
    torch.testing.assert_close(same.decode(same.encode(tokens)), tokens, atol=1e-4, rtol=0)


def test_fewer_vectors_than_code_elements_still_make_an_autoencoder() -> None:
    few = vectors(5)
    model = train_autoencoder(few, AutoencoderSettings(code=12, steps=0), seed=1)
    torch.testing.assert_close(model.decode(model.encode(few)), few, atol=1e-4, rtol=0)


def test_training_is_reproducible() -> None:
    settings = AutoencoderSettings(code=8, steps=5)
    first, again, other = (train_autoencoder(vectors(), settings, seed) for seed in (1, 1, 2))
    assert torch.equal(first.encoder.weight, again.encoder.weight)
    assert not torch.equal(first.encoder.weight, other.encoder.weight)


def test_it_is_saved_and_loaded_exactly(tmp_path: Path) -> None:
    model = train_autoencoder(vectors(), AutoencoderSettings(code=8, steps=3), seed=1)
    model.save(tmp_path / "a.safetensors")
    loaded = TokenAutoencoder.load(tmp_path / "a.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert not any(weight.requires_grad for weight in loaded.parameters())


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
