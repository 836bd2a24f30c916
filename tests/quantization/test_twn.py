import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nvcim.quantization import TWN
from nvcim.quantization.twn import ternary_codes, ternary_scale


def test_threshold_scale_and_levels_by_hand() -> None:
    # E|W| = 2.0 / 5 = 0.4, threshold 0.28: kept are 1.0, -0.5 and 0.3, their mean 0.6.
    layer = nn.Linear(5, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -0.5, 0.3, 0.2, 0.0]])
    quantizer = TWN()
    quantizer.attach(layer)
    assert layer.weight[0].tolist() == pytest.approx([0.6, -0.6, 0.6, 0.0, 0.0])
    assert quantizer.levels(layer).tolist() == pytest.approx([-0.6, 0.0, 0.6])
    layer(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).sum().backward()
    assert layer.parametrizations["weight"].original.grad.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]


def test_a_weight_exactly_at_the_threshold_becomes_zero() -> None:
    # E|W| = 10 / 4 = 2.5; in float32, 0.7 * 2.5 rounds to 1.75 exactly.
    weight = torch.tensor([1.75, -1.75, 1.7500001, 4.7499999])
    assert 0.7 * weight.abs().mean().item() == pytest.approx(1.75)
    assert ternary_codes(torch.tensor([1.75, -1.75, 1.75, 4.75])).tolist() == [0.0, 0.0, 0.0, 1.0]


def error_by_support(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For k = 1..n largest magnitudes kept: the least ||W - aT||^2 over a fine search, and the a that has it."""
    order = np.sort(np.abs(weight))[::-1].astype(float)
    errors, scales = [], []
    for kept in range(1, len(order) + 1):
        candidates = np.linspace(0, order[0], 4001)
        over = ((order[:kept, None] - candidates) ** 2).sum(axis=0) + (order[kept:] ** 2).sum()
        errors.append(over.min())
        scales.append(candidates[over.argmin()])
    return np.array(errors), np.array(scales)


weights = st.lists(
    st.floats(-1, 1, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3), min_size=2, max_size=12
)


@given(weights.filter(lambda values: max(abs(v) for v in values) > 0))
def test_the_scale_is_the_best_one_for_the_weights_that_are_kept(values: list[float]) -> None:
    weight = torch.tensor(values)
    kept = int(ternary_codes(weight).abs().sum())
    errors, scales = error_by_support(weight.numpy())
    grid = float(weight.abs().max()) / 4000
    assert kept >= 1
    assert float(ternary_scale(weight)) == pytest.approx(scales[kept - 1], abs=grid)
    quantized = ternary_codes(weight) * ternary_scale(weight)
    own = float((weight - quantized).double().square().sum())
    assert own <= errors[kept - 1] * (1 + 1e-5) + 1e-6
    assert own >= errors.min() - len(values) * grid**2  # no rule beats the search over all supports


def draw(kind: str, count: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if kind == "normal":
        return torch.randn(count, generator=generator)
    return 2 * torch.rand(count, generator=generator) - 1


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_the_papers_threshold_comes_close_to_the_best_one(kind: str) -> None:
    weight = draw(kind)
    order = weight.abs().double().sort(descending=True).values
    count = torch.arange(1, len(order) + 1)
    # For the k largest: sum w^2 - (sum of the kept)^2 / k, the least error with its best scale.
    errors = order.square().sum() - order.cumsum(0).square() / count
    quantized = ternary_codes(weight) * ternary_scale(weight)
    own = float((weight - quantized).double().square().sum())
    assert float(errors.min()) <= own <= 1.02 * float(errors.min())
