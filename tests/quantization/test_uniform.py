import pytest
import torch
from torch import nn

from nvcim.quantization import Uniform, UniformSettings


def attached(granularity: str, weight: list[list[float]], bits: int = 3) -> tuple[Uniform, nn.Linear]:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    quantizer = Uniform(UniformSettings(bits=bits, granularity=granularity))
    quantizer.attach(layer)
    return quantizer, layer


def test_levels_by_hand() -> None:
    # 3 bits: integers -3..3; the first row's step is 1.5 / 3, the second's 0.3 / 3.
    quantizer, layer = attached("channel", [[1.5, 0.7, -0.2], [0.3, -0.16, 0.04]])
    assert layer.weight[0].tolist() == [1.5, 0.5, 0.0]
    assert layer.weight[1].tolist() == pytest.approx([0.3, -0.2, 0.0])
    assert quantizer.levels(layer)[0].tolist() == [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]


def test_one_step_a_layer() -> None:
    quantizer, layer = attached("layer", [[1.5, 0.7, -0.2], [0.3, -0.16, 0.04]])
    assert layer.weight.tolist() == [[1.5, 0.5, 0.0], [0.5, 0.0, 0.0]]
    assert quantizer.levels(layer).shape == (1, 7)


def test_gradient_passes_straight_through() -> None:
    _, layer = attached("channel", [[1.5, 0.7, -0.2]])
    (layer(torch.tensor([[1.0, 2.0, 3.0]])) * 2).sum().backward()
    assert layer.parametrizations["weight"].original.grad.tolist() == [[2.0, 4.0, 6.0]]
