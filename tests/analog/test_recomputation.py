"""Activation checkpointing: with it as without it."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvcim.analog import analogize, analogize_for_training, with_analog_attention
from nvcim.analog.attention import AnalogProducts
from nvcim.analog.layers import AnalogLayer
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError

READ_NOISE = CrossbarConfig(sigma=0.05, read_noise=0.1)
Run = Callable[[nn.Module, Tensor], Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Linear(12, 12)
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, groups=1, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 12)),
        *(nn.Dropout(0.3), shared, nn.ReLU(), shared),
    )


def attending() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
    return with_analog_attention(layer, CrossbarConfig(read_noise=0.1), generator(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "inference layers": (lambda: analogize(network(), READ_NOISE, generator()), (2, 2, 4, 4)),
    "written at every forward": (
        lambda: analogize_for_training(network(), CrossbarConfig(sigma=0.1), generator()),
        (2, 2, 4, 4),
    ),
    "written on request": (
        lambda: analogize_for_training(network(), READ_NOISE, generator(), writes="on_request"),
        (2, 2, 4, 4),
    ),
    "attention": (attending, (2, 5, 8)),
    "attention with layers": (lambda: analogize(attending(), READ_NOISE, generator()), (2, 5, 8)),
}


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=False)


def reentrant(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=True)


def nested(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(lambda z: checkpoint(model, z, use_reentrant=False), x, use_reentrant=False)


def lived(model: nn.Module) -> dict[str, Tensor]:
    """All that a model's layers have been through: cells, wear, reads; and conversions."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, AnalogLayer):
            state[f"{name}.conversions"] = torch.tensor(module.crossbar.counts.adc_reads)
        if isinstance(module, AnalogProducts):
            state[f"{name}.counted"] = module.counted.clone()
    return state


def trained(model: nn.Module, shape: tuple[int, ...], run: Run) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients of three steps; each has two forwards before one backward pass, and the third a forward of no use."""
    torch.manual_seed(5)
    model.train()
    gradients = []
    for step in range(3):
        inputs = [normal(*shape, seed=10 * step + part).requires_grad_() for part in (0, 1)]
        loss = sum(run(model, x).square().sum() for x in inputs)
        if step == 2:
            with torch.no_grad():
                model(inputs[0])
        model.zero_grad()
        loss.backward()
        gradients += [x.grad for x in inputs]
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return gradients, lived(model)


@pytest.mark.parametrize("run", [checkpointed, reentrant, nested])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_and_cells_are_those_without_checkpointing(kind: str, run: Run) -> None:
    make, shape = MODELS[kind]
    exact, cells = trained(make(), shape, plain)
    found, others = trained(make(), shape, run)
    assert len(exact) == len(found)
    # to rounding: the reentrant form adds up gradients of shared parameters in another order
    for one, other in zip(exact, found, strict=True):
        assert float((one - other).norm()) <= 1e-6 * float(one.norm())
    assert cells.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in cells.items())


@pytest.mark.parametrize("run", [checkpointed, reentrant])
def test_equal_inputs_twice_have_a_noise_each(run: Run) -> None:
    x = normal(3, 8, seed=1)

    def gradient(how: Run) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        model = analogize(net, READ_NOISE, generator()).train()
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        a, b = how(model, first), how(model, second)
        assert not torch.equal(a, b)
        (a.square().sum() + b.square().sum()).backward()
        return torch.cat([first.grad, second.grad])

    assert torch.equal(gradient(run), gradient(plain))


def test_a_graph_that_is_kept_can_be_run_backward_twice() -> None:
    model = analogize(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), READ_NOISE, generator()).train()
    x = normal(3, 8, seed=1).requires_grad_()
    loss = checkpointed(model, x).sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


@pytest.mark.parametrize("run", [checkpointed, reentrant])
def test_a_recomputation_from_other_inputs_is_refused(run: Run) -> None:
    model = analogize(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), READ_NOISE, generator()).train()
    x = normal(3, 8, seed=1).requires_grad_()

    def shaken(module: nn.Module, z: Tensor) -> Tensor:
        return run(lambda inside: module(inside + torch.rand(1, generator=drawn)), z)

    drawn = generator(3)  # a stream that checkpoint does not know, and does not set back
    loss = shaken(model, x).sum()
    with pytest.raises(ConfigError, match="recomputed in a backward pass from inputs that none"):
        loss.backward()


def test_copies_do_not_hold_what_waits_for_a_backward_pass() -> None:
    model = analogize_for_training(nn.Sequential(nn.Linear(8, 8)), CrossbarConfig(), generator()).train()
    checkpointed(model, normal(3, 8, seed=1).requires_grad_())
    assert len(model[0]._forwards._kept) == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0]._forwards._kept == []


def test_nothing_is_kept_outside_checkpointing() -> None:
    model = analogize_for_training(nn.Sequential(nn.Linear(8, 8)), READ_NOISE, generator()).train()
    x = normal(3, 8, seed=1).requires_grad_()
    model(x).sum().backward()
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model.eval()(x)
    assert model[0]._forwards._kept == []


def test_forwards_without_a_backward_pass_do_not_pile_up() -> None:
    model = analogize(nn.Sequential(nn.Linear(2, 2)), READ_NOISE, generator()).train()
    for _ in range(300):
        checkpointed(model, torch.ones(1, 2, requires_grad=True))
    assert len(model[0]._forwards._kept) == 256
