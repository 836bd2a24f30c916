"""What every quantizer must pass; a new one is added to `QUANTIZERS` and gets all of it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nvcim.config import Settings
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization import (
    AnyQuantizerSettings,
    Quantizer,
    inference_copy,
    load_packed,
    make_quantizer,
    pack_model,
    quantizer_named,
    quantizer_settings_from,
    read_packed,
    save_packed,
)
from nvcim.quantization.packed_files import unpacked

FINER_WITH_BITS = [
    "inq-2",
    "inq-3",
    "inq-5",
    "inq-7",
    "inq-8",
    "uniform-2",
    "uniform-4",
    "uniform-8",
    "affine-4",
]
QUANTIZERS = [
    *FINER_WITH_BITS,
    "inq-3-3",
    "inq-5-15",
    "affine-2",
    "affine-8",
    "twn",
    "ttq",
    "dorefa-1",
    "dorefa-2",
    "dorefa-5",
    "dorefa-8",
]


class Holder(Settings):
    """Settings that hold a quantizer's, as a job's do."""

    quantizer: AnyQuantizerSettings


def small_net(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(27, 2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return net


def named(name: str, **settings: object) -> Quantizer:
    """The quantizer of a name, over all layers unless said otherwise."""
    quantizer = quantizer_named(name)
    assert quantizer is not None
    return make_quantizer(quantizer.settings.model_copy(update={"float_layers": (), **settings}))


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
    quantizer = named(name, float_layers=("first", "last"))
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


@pytest.mark.parametrize("name", FINER_WITH_BITS)
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


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name[:6] != "dorefa" or name == "dorefa-1"])
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


@pytest.mark.parametrize(
    "name",
    [
        "inq",
        "inq-x",
        "ternary-2",
        "inq-1",
        "uniform-9",
        "twn-2",
        "ttq-2",
        "dorefa",
        "dorefa-0",
        "affine-1",
        "inq-05",
        "inq-5-8",  # inq-5
        "inq-3-03",
        "inq-4-3",  # 7 levels take 3 bits: inq-3-3
        "inq-4-2",  # inq-3
        "inq-4-8",  # 17 levels
        "inq-4-0",
        "inq-" + 5000 * "9",
        "inq-3-3-1",
        "inq--5",
        "uniform-4-3",
        "uniform-\N{ARABIC-INDIC DIGIT FOUR}",
        "",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        quantizer_named(name)


def test_float_means_no_quantizer() -> None:
    assert quantizer_named("float") is None


@pytest.mark.parametrize("name", QUANTIZERS)
def test_levels_fit_the_bits(name: str) -> None:
    quantizer, net = named(name), small_net()
    walk(quantizer, net)
    for layer in (net[0], net[2], net[4]):
        levels = quantizer.levels(layer)
        assert levels.shape[-1] <= 2**quantizer.settings.bits
        assert bool((levels.diff(dim=-1) > 0).all())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_lowers_the_loss(name: str) -> None:
    quantizer, net = named(name), small_net()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 2, 5, 5, generator=generator)
    target = x.flatten(1)[:, :2]
    quantizer.attach(net)
    quantizer.advance(net, 0.5)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = (net(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_inference_copies_are_bit_equal_and_leave_their_model_alone(name: str) -> None:
    quantizer, net = named(name), small_net()
    walk(quantizer, net)
    copied = inference_copy(net)
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(copied(x), net.eval()(x))
    assert [type(layer) for layer in copied.children()] == [type(layer) for layer in small_net().children()]
    assert set(copied.state_dict()) == set(small_net().state_dict())
    before = net[0].weight.clone()
    copied[0].weight.data.zero_()
    assert torch.equal(net[0].weight, before)
    assert net[0].weight.grad_fn is not None  # still quantized anew at every read
    quantizer.levels(net[0])
    with pytest.raises(ModelError, match="not attached"):
        quantizer.levels(copied[0])
    quantizer.attach(copied)  # a plain model takes a quantizer again


def test_inference_copies_refuse_what_they_cannot_hold() -> None:
    net = small_net()
    nn.utils.parametrizations.weight_norm(net[0], "bias")
    with pytest.raises(ModelError, match="layer '0' has parametrized tensors beside its weight: bias"):
        inference_copy(net)


@pytest.mark.parametrize("entropy_coded", [False, True])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_packed_files_give_the_same_bits_back(name: str, entropy_coded: bool, tmp_path: Path) -> None:
    quantizer, net, restored = named(name), small_net(), small_net(seed=1)
    walk(quantizer, net)
    path = tmp_path / "net.safetensors"
    save_packed(net, quantizer, path, entropy_coded=entropy_coded)
    quantizer.attach(restored)
    load_packed(restored, quantizer, path)
    for index in (0, 2, 4):
        weight, original = restored[index].weight, net[index].weight
        # As integers, so that zeros of both signs count as different.
        assert torch.equal(weight.detach().view(torch.int32), original.detach().view(torch.int32))
        assert torch.equal(quantizer.levels(restored[index]), quantizer.levels(net[index]))
        assert torch.equal(restored[index].bias, net[index].bias)
    quantizer.advance(restored, 1.0)
    again = tmp_path / "again.safetensors"
    save_packed(restored, quantizer, again, entropy_coded=entropy_coded)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_packed_memory_holds_the_weights(name: str, tmp_path: Path) -> None:
    quantizer, net = named(name), small_net()
    walk(quantizer, net)
    packed = pack_model(net, quantizer)
    for index in (0, 2, 4):
        assert torch.equal(unpacked(packed.weights[str(index)], quantizer), net[index].weight.detach())
    save_packed(net, quantizer, tmp_path / "net.safetensors")
    assert read_packed(tmp_path / "net.safetensors").nbytes == packed.nbytes
    assert quantizer.memory(net).quantized_bytes == sum(weight.nbytes for weight in packed.weights.values())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_names_and_settings_lead_back_to_the_quantizer(name: str) -> None:
    quantizer = quantizer_named(name)
    assert quantizer is not None
    assert quantizer.name == name
    content = quantizer.settings.model_dump(mode="json")
    assert quantizer_settings_from(content, "test") == quantizer.settings
    assert Holder.model_validate({"quantizer": content}).quantizer == quantizer.settings


@pytest.mark.parametrize("name", QUANTIZERS)
def test_levels_are_those_of_the_quantizer_that_is_attached(name: str) -> None:
    net = small_net()
    named("twn" if name != "twn" else "ttq").attach(net)
    with pytest.raises(ModelError, match="not attached"):
        named(name).levels(net[0])


def test_float_layers_are_the_papers_own_by_default() -> None:
    expected = {
        "inq-5": (),
        "twn": (),
        "uniform-4": (),
        "ttq": ("first", "last"),
        "dorefa-1": ("first", "last"),
    }
    for name, layers in expected.items():
        quantizer = quantizer_named(name)
        assert quantizer is not None
        assert quantizer.settings.float_layers == layers


def test_float_layers_take_names_and_patterns() -> None:
    net = nn.ModuleDict({"stem": nn.Linear(2, 2), "head": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})

    def left(*patterns: str) -> list[str]:
        return [name for name, _ in named("twn", float_layers=patterns).quantized_layers(net)]

    assert left("head.1") == ["stem", "head.0"]
    assert left("head*") == ["stem"]
    assert left("first", "head.0") == ["head.1"]
    with pytest.raises(
        ModelError, match=r"'haed' matches no layer; allowed: first, last, stem, head\.0, head\.1"
    ):
        left("haed")
    with pytest.raises(ModelError, match=r"beside float_layers stem, head\*"):
        left("stem", "head*")
    with pytest.raises(ConfigError, match="empty name"):
        quantizer_settings_from({"kind": "twn", "float_layers": [""]}, "test")


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
