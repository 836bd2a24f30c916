"""Quantizers, inference copies, and weights that something else computes or shares."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from nvcim.errors import ModelError
from nvcim.quantization import inference_copy, load_packed, quantizer_named, save_packed


def hooked(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        match kind:
            case "prune":
                return prune.l1_unstructured(layer, "weight", 0.5)
            case "weight_norm":
                return weight_norm(layer)
            case "spectral_norm":
                return spectral_norm(layer)
    return parametrizations.weight_norm(layer)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("prune", r"computed by L1Unstructured before each forward.*prune\.remove"),
        ("weight_norm", "computed by WeightNorm before each forward.*remove_weight_norm"),
        ("spectral_norm", "computed by SpectralNorm before each forward.*remove_spectral_norm"),
        ("parametrized", "parametrized by WeightNorm.*remove_parametrizations"),
    ],
)
def test_weights_that_something_else_computes_are_refused_by_name(kind: str, reason: str) -> None:
    quantizer = quantizer_named("uniform-4")
    with pytest.raises(ModelError, match=f"uniform-4: layer '0' has its weight {reason}"):
        quantizer.attach(nn.Sequential(hooked(kind)))


def test_weights_without_entries_or_values_are_refused_by_name() -> None:
    quantizer = quantizer_named("inq-5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        empty = nn.Linear(0, 4)
    with pytest.raises(ModelError, match=r"layer '0' has no weights: its shape is \(4, 0\)"):
        quantizer.attach(nn.Sequential(empty))
    with pytest.raises(ModelError, match="layer '0' cannot be quantized: its weight has no values yet"):
        quantizer.attach(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("kind", ["prune", "weight_norm", "spectral_norm", "parametrized"])
def test_inference_copies_hold_what_hooks_compute(kind: str) -> None:
    net = nn.Sequential(hooked(kind))
    copied = inference_copy(net)  # as made: nothing has run yet
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(copied(x), net.eval()(x))
    assert set(copied.state_dict()) == {"0.weight", "0.bias"}
    quantizer_named("uniform-4").attach(copied)


@pytest.mark.parametrize("name", ["inq-5", "ttq", "uniform-4"])
def test_layers_that_share_a_weight_share_its_levels(name: str) -> None:
    layers = [nn.Linear(6, 6) for _ in range(4)]
    layers[2].weight = layers[1].weight
    net = nn.Sequential(*layers)
    quantizer = quantizer_named(name)
    quantizer.attach(net)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for fraction in (0.5, 1.0):
        quantizer.advance(net, fraction)
        optimiser.zero_grad()
        net(torch.ones(2, 6)).square().sum().backward()
        optimiser.step()
    assert torch.equal(net[1].weight, net[2].weight)


def test_an_embedding_keeps_its_values_when_its_tied_head_is_loaded(tmp_path: Path) -> None:
    def model(seed: int) -> nn.ModuleDict:
        torch.manual_seed(seed)
        tied = nn.ModuleDict({"embedding": nn.Embedding(7, 5), "head": nn.Linear(5, 7)})
        tied["head"].weight = tied["embedding"].weight
        return tied

    quantizer, saved, loaded = quantizer_named("uniform-4"), model(0), model(1)
    quantizer.attach(saved)
    save_packed(saved, quantizer, tmp_path / "tied.safetensors")
    quantizer.attach(loaded)
    load_packed(loaded, quantizer, tmp_path / "tied.safetensors")
    assert torch.equal(loaded["embedding"].weight, saved["embedding"].weight)
    assert torch.equal(loaded["head"].weight, saved["head"].weight)
    assert loaded["embedding"].weight.requires_grad
