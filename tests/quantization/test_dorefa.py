import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nvcim.quantization import DoReFa, DoReFaSettings


def attached(bits: int, values: list[float]) -> tuple[DoReFa, nn.Linear]:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    quantizer = DoReFa(DoReFaSettings(bits=bits, float_layers=()))
    quantizer.attach(layer)
    return quantizer, layer


def test_one_bit_by_hand() -> None:
    quantizer, layer = attached(1, [0.5, -0.25, 0.0, -1.25])
    assert layer.weight[0].tolist() == [0.5, -0.5, 0.5, -0.5]  # sgn(0) = +1, E|w| = 0.5
    assert quantizer.levels(layer).tolist() == [-0.5, 0.5]
    layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert layer.parametrizations["weight"].original.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_two_bits_by_hand() -> None:
    # tanh(1) = 0.7616 is the largest; x = tanh w / (2 * 0.7616) + 1/2 is rounded to thirds.
    # w = 0.5: 0.4621 -> 0.8034 -> 2/3 -> 1/3; w = -0.1: -0.0997 -> 0.4346 -> 1/3 -> -1/3; -1 -> -1.
    quantizer, layer = attached(2, [1.0, 0.5, -0.1, -1.0])
    assert layer.weight[0].tolist() == pytest.approx([1.0, 1 / 3, -1 / 3, -1.0])
    assert quantizer.levels(layer).tolist() == pytest.approx([-1.0, -1 / 3, 1 / 3, 1.0])


@pytest.mark.parametrize("bits", [2, 5])
def test_gradient_flows_through_tanh_and_the_maximum(bits: int) -> None:
    values, x = [0.9, 0.4, -0.3, 0.05], [1.0, -2.0, 3.0, 0.5]
    _, layer = attached(bits, values)
    layer(torch.tensor([x])).sum().backward()
    gradient = layer.parametrizations["weight"].original.grad[0].tolist()

    def surrogate(w: list[float]) -> float:
        """The rule without rounding, in float64."""
        largest = max(abs(math.tanh(v)) for v in w)
        return sum(a * (2 * (math.tanh(v) / (2 * largest) + 0.5) - 1) for a, v in zip(x, w, strict=True))

    for index in range(len(values)):
        up, down = list(values), list(values)
        up[index] += 1e-6
        down[index] -= 1e-6
        assert gradient[index] == pytest.approx((surrogate(up) - surrogate(down)) / 2e-6, rel=1e-4)


class FunctionalReLU(nn.Module):
    """A model whose activations are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(F.relu(self.two(F.relu(self.one(x)))))  # type: ignore[no-any-return]


def test_activations_are_quantized_before_every_quantized_layer() -> None:
    torch.manual_seed(0)
    model = FunctionalReLU()
    quantizer = DoReFa(DoReFaSettings(bits=8, activation_bits=2))
    quantizer.attach(model)
    seen: dict[str, torch.Tensor] = {}
    for name in ("one", "two", "three"):
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    model(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * 3)
    thirds = torch.tensor([0, 1 / 3, 2 / 3, 1])
    assert bool(torch.isin(seen["two"].unique(), thirds).all())
    assert len(seen["two"].unique()) == 4
    for name in ("one", "three"):  # first and last are float, so are their inputs
        assert not bool(torch.isin(seen[name], thirds).all())
    assert len(copy.deepcopy(model).two._forward_pre_hooks) == 2


def test_activation_gradient_is_one_inside_the_clip_and_zero_outside() -> None:
    layer = nn.Linear(4, 1, bias=False)
    quantizer = DoReFa(DoReFaSettings(bits=1, float_layers=(), activation_bits=2))
    quantizer.attach(layer)
    x = torch.tensor([[-0.5, 0.2, 0.9, 1.5]], requires_grad=True)
    y = layer(x)
    weight = layer.weight[0].detach()
    assert y.item() == pytest.approx(float(weight @ torch.tensor([0.0, 1 / 3, 1.0, 1.0])))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0], weight * torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_float_activations_are_the_default() -> None:
    layer = nn.Linear(4, 1, bias=False)
    quantizer = DoReFa(DoReFaSettings(bits=1, float_layers=()))
    quantizer.attach(layer)
    x = torch.tensor([[-5.0, 0.123, 7.0, 1.5]])
    assert torch.equal(layer(x), F.linear(x, layer.weight))
