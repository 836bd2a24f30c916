"""What every quantizer must pass; a new one is added to `QUANTIZERS` and gets all of it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import Quantizer, quantizer_named, quantizer_settings_from

QUANTIZERS = ["inq-2", "inq-3", "inq-5", "inq-7", "uniform-2", "uniform-4", "uniform-8"]


def small_net(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(27, 2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return net


def named(name: str) -> Quantizer:
    quantizer = quantizer_named(name)
    assert quantizer is not None
    return quantizer


def distance_to_levels(quantizer: Quantizer, layer: nn.Module) -> Tensor:
    rows = layer.weight.detach().flatten(1)  # [out, n]
    levels = quantizer.levels(layer).view(-1, 1, quantizer.levels(layer).shape[-1])  # [out or 1, 1, levels]
    return (rows[:, :, None] - levels).abs().amin(dim=-1)


def walk(quantizer: Quantizer, net: nn.Module, seed: int = 0) -> None:
    """Attach, then train a few steps in every stage that trains."""
    quantizer.attach(net)
    x = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    for stage in quantizer.stages:
        quantizer.advance(net, stage.fraction)
        if not stage.trains:
            continue
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.05)
        for _ in range(3):
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_weights_are_exactly_on_levels_after_the_last_stage(name: str) -> None:
    quantizer, net = named(name), small_net()
    walk(quantizer, net)
    for layer in (net[0], net[2], net[4]):
        assert float(distance_to_levels(quantizer, layer).max()) == 0.0


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_changes_the_free_weights(name: str) -> None:
    quantizer, trained, untouched = named(name), small_net(), small_net()
    walk(quantizer, trained)
    quantizer.attach(untouched)
    quantizer.advance(untouched, 1.0)
    assert any(not torch.equal(trained[i].weight, untouched[i].weight) for i in (0, 2, 4))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_biases_and_float_layers_are_left_alone(name: str) -> None:
    settings = named(name).settings.model_dump() | {"float_layers": ("first", "last")}
    quantizer = type(named(name))(quantizer_settings_from(settings, "test"))  # type: ignore[call-arg]
    net, before = small_net(), small_net()
    quantizer.attach(net)
    quantizer.advance(net, 1.0)
    for index in (0, 4):
        assert torch.equal(net[index].weight, before[index].weight)
    assert torch.equal(net[2].bias, before[2].bias)
    assert not torch.equal(net[2].weight, before[2].weight)
    with pytest.raises(ModelError, match="not attached"):
        quantizer.levels(net[0])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizing_is_repeatable_and_copies_keep_it(name: str) -> None:
    first, second = small_net(), small_net()
    walk(named(name), first)
    walk(named(name), second)
    assert torch.equal(first[0].weight, second[0].weight)
    assert torch.equal(copy.deepcopy(first)[0].weight, first[0].weight)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_state_restores_bit_exactly(name: str) -> None:
    quantizer, net, restored = named(name), small_net(), small_net(seed=1)
    walk(quantizer, net)
    quantizer.attach(restored)
    restored.load_state_dict(net.state_dict())
    for index in (0, 2, 4):
        assert torch.equal(restored[index].weight, net[index].weight)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_more_bits_never_err_more(name: str) -> None:
    kind, bits = name.split("-")
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))

    def error(bit: int) -> float:
        layer = nn.Linear(64, 64)
        layer.weight.data.copy_(weight)
        quantizer = named(f"{kind}-{bit}")
        quantizer.attach(layer)
        quantizer.advance(layer, 1.0)
        return float((layer.weight.detach() - weight).square().mean())

    assert error(min(int(bits) + 1, 8)) <= error(int(bits))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zero_weights_stay_zero(name: str) -> None:
    quantizer, layer = named(name), nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    quantizer.attach(layer)
    quantizer.advance(layer, 1.0)
    assert torch.equal(layer.weight, torch.zeros(3, 3))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_refuses_what_cannot_be_quantized(name: str) -> None:
    quantizer, net = named(name), small_net()
    quantizer.attach(net)
    with pytest.raises(ModelError, match="quantized already"):
        quantizer.attach(net)
    with pytest.raises(ModelError, match="no Conv2d or Linear"):
        quantizer.attach(nn.ReLU())
    broken = nn.Linear(2, 2)
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        named(name).attach(broken)


@pytest.mark.parametrize("name", ["inq", "inq-x", "ternary-2", "inq-1", "uniform-9", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        quantizer_named(name)


def test_float_means_no_quantizer() -> None:
    assert quantizer_named("float") is None


def test_memory_is_what_the_packed_arrays_hold() -> None:
    layer = nn.Linear(10, 8, bias=True)
    inq, uniform = named("inq-5"), named("uniform-4")
    inq.attach(layer)
    assert inq.memory(layer).quantized_bytes == 320  # nothing is frozen yet: float32
    inq.advance(layer, 1.0)
    assert inq.memory(layer).float32_bytes == 80 * 4
    assert inq.memory(layer).quantized_bytes == 80 * 5 // 8 + 2 * 2  # two exponents of 16 bits
    plain = nn.Linear(10, 8)
    uniform.attach(plain)
    assert uniform.memory(plain).quantized_bytes == 80 * 4 // 8 + 8 * 4  # a float32 step for every output
