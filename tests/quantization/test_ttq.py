import pytest
import torch
from torch import nn

from nvcim.quantization import TTQ, TTQSettings
from nvcim.quantization.base import parametrization_of
from nvcim.quantization.ttq import TTQWeight


def attached(start: str = "means", threshold: float = 0.05) -> tuple[TTQ, nn.Linear, TTQWeight]:
    layer = nn.Linear(5, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.5, -0.25, 0.05, -0.01]])
    quantizer = TTQ(TTQSettings(float_layers=(), start=start, threshold=threshold))
    quantizer.attach(layer)
    found = parametrization_of(layer)
    assert isinstance(found, TTQWeight)
    return quantizer, layer, found


def test_regions_and_levels_by_hand() -> None:
    # Threshold 0.05 * 1.0: 0.05 itself is not above it.
    quantizer, layer, _ = attached()
    assert layer.weight[0].tolist() == [0.75, 0.75, -0.25, 0.0, 0.0]
    assert quantizer.levels(layer).tolist() == [-0.25, 0.0, 0.75]


def test_the_official_start_is_one() -> None:
    _, layer, _ = attached(start="ones")
    assert layer.weight[0].tolist() == [1.0, 1.0, -1.0, 0.0, 0.0]


def test_gradients_of_the_float_weights_scale_with_their_region() -> None:
    _, layer, _ = attached()
    layer(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).sum().backward()
    gradient = layer.parametrizations["weight"].original.grad[0].tolist()
    assert gradient == [0.75 * 1, 0.75 * 2, 0.25 * 3, 4.0, 5.0]


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_gradients_of_the_scales_agree_with_finite_differences(name: str) -> None:
    _, layer, found = attached()
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    scale = getattr(found, name)

    def loss() -> torch.Tensor:
        return (layer(x) - 0.3).square().sum()

    loss().backward()
    step = 1e-2
    with torch.no_grad():
        start = scale.clone()
        scale.copy_(start + step)
        above = float(loss())
        scale.copy_(start - step)
        below = float(loss())
    slope = (above - below) / (2 * step)
    assert float(scale.grad) == pytest.approx(slope, rel=1e-3)
    assert slope * (1 if name == "positive" else -1) > 0  # a larger negative scale lowers this output


def test_levels_stay_ascending_when_training_turns_a_scale() -> None:
    quantizer, layer, found = attached()
    found.positive.data.fill_(-0.5)
    assert quantizer.levels(layer).tolist() == [-0.5, -0.25, 0.0]
    assert layer.weight[0].tolist() == [-0.5, -0.5, -0.25, 0.0, 0.0]


def test_an_optimiser_made_after_attaching_trains_the_scales() -> None:
    _, layer, found = attached()
    before = found.negative.item()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 5)).sum().backward()
    optimiser.step()
    assert found.negative.item() == pytest.approx(before + 0.1)  # its gradient is -1: one weight, minus sign
