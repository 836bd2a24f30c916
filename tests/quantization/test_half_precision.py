"""Quantizers on models in half and double precision: levels against numpy, and files bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nvcim.quantization import DoReFa, DoReFaSettings, Quantizer, load_packed, quantizer_named, save_packed

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAMES = ["inq-5", "twn", "ttq", "uniform-4", "uniform-8", "affine-4", "affine-8", "dorefa-1", "dorefa-2"]


def named(name: str) -> Quantizer:
    if name.startswith("dorefa"):
        return DoReFa(DoReFaSettings(bits=int(name[-1]), float_layers=()))
    quantizer = quantizer_named(name)
    assert quantizer is not None
    return quantizer


def network(dtype: torch.dtype, seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn))
    return net.to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_quantized_models_run_train_and_come_back_bit_for_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    quantizer, net, x = named(name), network(dtype), torch.ones(2, 10, dtype=dtype)
    quantizer.attach(net)
    quantizer.advance(net, 0.5)
    loss = net(x).square().sum()
    loss.backward()
    assert loss.dtype == dtype
    quantizer.advance(net, 1.0)
    y = net(x)
    assert y.dtype == net[2].weight.dtype == dtype
    save_packed(net, quantizer, tmp_path / "net.safetensors")
    restored = network(dtype, seed=1)
    quantizer.attach(restored)
    load_packed(restored, quantizer, tmp_path / "net.safetensors")
    for index in (0, 2, 4):
        assert restored[index].weight.dtype == dtype
        assert torch.equal(restored[index].weight, net[index].weight)
    assert torch.equal(restored(x), y)
    save_packed(restored, quantizer, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_levels_are_computed_in_float32_or_better_and_then_rounded(dtype: torch.dtype) -> None:
    exact = np.float64 if dtype == torch.float64 else np.float32
    net = network(dtype)
    w = net[0].weight.detach().to(torch.float64).numpy().astype(exact)
    step = (np.abs(w).max(axis=1, keepdims=True) / exact(7)).astype(exact)
    uniform = torch.from_numpy(np.clip(np.round(w / step), -7, 7) * step).to(dtype)
    quantizer = named("uniform-4")
    quantizer.attach(net)
    assert torch.equal(net[0].weight, uniform)
    net = network(dtype)
    named("inq-5").attach(net)
    named("inq-5").advance(net, 1.0)
    mantissa, _ = np.frexp(net[0].weight.detach().double().numpy())
    assert set(np.abs(mantissa).ravel()) <= {0.0, 0.5}  # zeros and powers of two


def test_the_largest_power_stays_within_the_type() -> None:
    layer = nn.Linear(2, 1, bias=False).half()
    layer.weight.data = torch.tensor([[60000.0, 1.0]], dtype=torch.float16)
    quantizer = named("inq-5")
    quantizer.attach(layer)
    quantizer.advance(layer, 1.0)
    assert layer.weight.tolist()[0][0] == 2.0**15


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_can_still_be_made_half(name: str, tmp_path: Path) -> None:
    quantizer, net = named(name), network(torch.float32)
    quantizer.attach(net)
    quantizer.advance(net, 1.0)
    path = tmp_path / "net.safetensors"
    save_packed(net, quantizer, path)
    load_packed(net, quantizer, path)
    weight = net[0].weight.clone()
    net.bfloat16()
    assert torch.equal(net[0].weight, weight.bfloat16())
    save_packed(net, quantizer, path)
    other = network(torch.bfloat16)
    quantizer.attach(other)
    load_packed(other, quantizer, path)
    assert torch.equal(other[0].weight, net[0].weight)


def test_weights_below_the_smallest_normal_number_keep_dorefas_levels() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1e-40, -3e-41, 2e-45]])
    named("dorefa-2").attach(layer)
    # tanh(w) / (2 max) + 1/2 = 1, 0.35, 0.5: codes 3, 1, 2 (1.5 to even) of 3
    assert torch.allclose(layer.weight, torch.tensor([[1.0, -1 / 3, 1 / 3]]))
