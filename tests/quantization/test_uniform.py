import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nvcim.quantization import Uniform, UniformSettings


def attached(
    granularity: str, weight: list[list[float]], bits: int = 3, scheme: str = "symmetric"
) -> tuple[Uniform, nn.Linear]:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    quantizer = Uniform(UniformSettings(bits=bits, granularity=granularity, scheme=scheme))
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


def test_affine_levels_by_hand() -> None:
    # 2 bits: codes 0..3. First row: -0.5..1 in steps of 0.5, zero is code 1. Second: 0..0.75 in steps of 0.25.
    quantizer, layer = attached("channel", [[1.0, -0.5, 0.2], [0.75, 0.3, 0.6]], 2, "affine")
    assert quantizer.levels(layer).tolist() == [[-0.5, 0.0, 0.5, 1.0], [0.0, 0.25, 0.5, 0.75]]
    assert layer.weight.tolist() == [[1.0, -0.5, 0.0], [0.75, 0.25, 0.5]]
    layer(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert layer.parametrizations["weight"].original.grad.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_one_affine_step_a_layer() -> None:
    quantizer, layer = attached("layer", [[1.0, -0.5, 0.2], [0.75, 0.3, 0.6]], 2, "affine")
    assert quantizer.levels(layer).tolist() == [[-0.5, 0.0, 0.5, 1.0]]
    # 0.75 lies between two levels: 1.5 steps round to the even 2.
    assert layer.weight.tolist() == [[1.0, -0.5, 0.0], [1.0, 0.5, 0.5]]


rows = st.lists(st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5), min_size=2, max_size=4)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
@given(weight=rows, bits=st.integers(2, 8))
def test_every_weight_goes_to_a_nearest_level(
    scheme: str, granularity: str, weight: list[list[float]], bits: int
) -> None:
    quantizer, layer = attached(granularity, weight, bits, scheme)
    levels = quantizer.levels(layer).double()
    original = torch.tensor(weight).double()
    distances = (original[:, :, None] - levels[:, None, :]).abs().amin(dim=-1)
    own = (original - layer.weight.detach().double()).abs()
    step = float(levels.diff(dim=-1).max())
    # A zero point is rounded, so that a range's end may lie up to half a step outside the levels.
    assert bool((own <= distances + 1e-5 * step).all())
    assert bool((own <= (0.5 if scheme == "symmetric" else 1.0) * step * (1 + 1e-5)).all())
    assert bool((levels == 0).any(dim=-1).all())


def test_affine_levels_fit_lopsided_channels_better() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(8, 200, generator=generator).add(-0.1).tolist()
    errors = []
    for scheme in ("symmetric", "affine"):
        _, layer = attached("channel", weight, 4, scheme)
        errors.append(float((layer.weight.detach() - torch.tensor(weight)).square().mean()))
    assert errors[1] < 0.5 * errors[0]
