"""Gradients through arrays: against finite differences on an ideal array, and against the formulas by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from nvcim.analog import AnalogConv2d, AnalogLinear
from nvcim.analog.straight_through import read_straight_through, read_trained, summed_to
from nvcim.crossbar import Crossbar, CrossbarConfig
from tests.closeness import close

FINE = CrossbarConfig.ideal(16)
NOISY = CrossbarConfig(sigma=0.2, read_noise_floor=0.01)
SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "bias": False},
    {"kernel_size": 3, "dilation": (1, 2), "groups": 2, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 1, "groups": 4},
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def held_kernels(layer: AnalogConv2d) -> torch.Tensor:
    return layer.shape.kernels(layer.crossbar.read_weight())


def test_the_gradient_of_a_read_is_the_product_with_what_the_cells_hold() -> None:
    crossbar = Crossbar.program(normal(200, 7), NOISY, generator())
    x, upstream = normal(5, 200).requires_grad_(), normal(5, 7, seed=1)
    read_straight_through(crossbar, x).backward(upstream)
    assert close(x.grad, upstream @ crossbar.read_weight().T)


def test_the_gradient_of_the_master_is_inputs_times_outputs() -> None:
    master = normal(2, 20, 7).requires_grad_()
    crossbar = Crossbar.program(master.detach(), NOISY, generator())
    x, upstream = normal(5, 20), normal(2, 5, 7, seed=1)
    read_trained(crossbar, x, master).backward(upstream)
    assert close(master.grad, x.T @ upstream)


def test_inputs_shared_by_devices_gather_the_gradients_of_all() -> None:
    crossbar = Crossbar.program(normal(3, 20, 7), NOISY, generator())
    x = normal(5, 20).requires_grad_()
    read_straight_through(crossbar, x).sum().backward()
    by_hand = crossbar.read_weight().sum(dim=(0, 2)).expand(5, 20)
    assert close(x.grad, by_hand, 1e-5)


def test_sums_undo_broadcasting() -> None:
    assert summed_to(torch.ones(4, 3, 2), torch.Size([1, 2])).tolist() == [[12.0, 12.0]]


def test_finite_differences_agree_on_an_ideal_linear_layer() -> None:
    layer = AnalogLinear.from_linear(nn.Linear(9, 4), FINE, generator())
    x, direction = normal(3, 9), normal(3, 9, seed=1)
    weighting = normal(3, 4, seed=2)
    leaf = x.clone().requires_grad_()
    (layer(leaf) * weighting).sum().backward()
    # The layer is linear in x: a central difference over a wide step is exact but for float32.
    measured = ((layer(x + direction) - layer(x - direction)) / 2 * weighting).sum()
    assert float((leaf.grad * direction).sum()) == pytest.approx(float(measured), rel=1e-5)


@pytest.mark.parametrize("kwargs", SHAPES, ids=str)
def test_finite_differences_agree_on_an_ideal_convolution(kwargs: dict) -> None:
    layer = AnalogConv2d.from_conv(nn.Conv2d(4, 8, **kwargs), FINE, generator())
    x, direction = normal(2, 4, 9, 8), normal(2, 4, 9, 8, seed=1)
    weighting = normal(*layer(x).shape, seed=2)
    leaf = x.clone().requires_grad_()
    (layer(leaf) * weighting).sum().backward()
    measured = ((layer(x + direction) - layer(x - direction)) / 2 * weighting).double().sum()
    assert float((leaf.grad * direction).double().sum()) == pytest.approx(float(measured), rel=1e-4)


def test_a_noisy_convolution_has_the_gradient_of_the_kernels_its_cells_hold() -> None:
    layer = AnalogConv2d.from_conv(nn.Conv2d(4, 8, 3, padding=1), NOISY, generator())
    x, same = normal(2, 4, 9, 8).requires_grad_(), normal(2, 4, 9, 8).requires_grad_()
    upstream = normal(2, 8, 9, 8, seed=1)
    layer(x).backward(upstream)
    functional.conv2d(same, held_kernels(layer), padding=1).backward(upstream)
    assert close(x.grad, same.grad, 1e-5)


def test_a_gradient_belongs_to_the_cells_that_were_read_though_they_are_rewritten_since() -> None:
    crossbar = Crossbar.program(normal(20, 7), NOISY, generator())
    before, x = crossbar.read_weight(), normal(5, 20).requires_grad_()
    y = read_straight_through(crossbar, x)
    crossbar.rewrite(normal(20, 7, seed=1))
    y.sum().backward()
    assert close(x.grad, before.sum(dim=1).expand(5, 20), 1e-5)


def test_reading_for_a_gradient_gives_what_reading_without_gives() -> None:
    conv = nn.Conv2d(4, 8, 3)
    x = normal(2, 4, 9, 8)
    layers = [AnalogConv2d.from_conv(conv, NOISY, generator()) for _ in range(2)]
    assert torch.equal(layers[0](x.clone().requires_grad_()), layers[1](x))


def test_a_prompt_trains_through_frozen_arrays() -> None:
    first, second = nn.Linear(8, 16), nn.Linear(16, 3)
    with torch.no_grad():
        first.weight.copy_(normal(16, 8, seed=1))
        second.weight.copy_(normal(3, 16, seed=2))
    body = nn.Sequential(
        AnalogLinear.from_linear(first, NOISY, generator()),
        nn.Tanh(),
        AnalogLinear.from_linear(second, NOISY, generator(1)),
    )
    prompt = nn.Parameter(normal(1, 8))
    optimiser = torch.optim.Adam([prompt], lr=0.1)
    losses = []
    for _ in range(40):
        loss = functional.cross_entropy(body(prompt), torch.tensor([2]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
