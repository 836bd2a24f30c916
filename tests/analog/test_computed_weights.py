"""Weights that a layer computes before each forward, on crossbars: against the digital layer itself."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from nvcim.analog import AnalogLinear, analogize, analogize_for_training, calibrate, deploy, to_digital
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, ModelError

FINE = CrossbarConfig.ideal(16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    return prune.random_unstructured(layer, "weight", 0.2)  # a container of two


HOOKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "prune": pruned,
    "weight_norm": old_weight_norm,
    "spectral_norm": spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
}
LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (5, 8)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 5)),
}


def as_made(net: nn.Module, x: torch.Tensor) -> None:
    """Nothing has run yet."""


def run(net: nn.Module, x: torch.Tensor) -> None:
    net(x)


def loaded(net: nn.Module, x: torch.Tensor) -> None:
    """Other values are loaded after a forward."""
    net(x)
    drawn = generator(5)
    state = net.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and "mask" not in name:
            state[name] = torch.randn(value.shape, generator=drawn)
    net.load_state_dict(state)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("history", [as_made, run, loaded])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("hook", HOOKS)
def test_the_weight_that_is_written_is_the_one_the_model_computes_with(
    hook: str, layer: str, history: Callable[[nn.Module, torch.Tensor], None], mode: str
) -> None:
    make, shape = LAYERS[layer]
    torch.manual_seed(1)
    net = nn.Sequential(HOOKS[hook](make()))
    net.train(mode == "train")
    x = normal(*shape, seed=1)
    history(net, x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    analog = analogize(net, FINE, generator())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        y, exact = analog(x), net.eval()(x)
    assert float((y - exact).norm() / exact.norm()) < 1e-3


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("hook", HOOKS)
def test_training_moves_what_the_weight_is_computed_from(hook: str, layer: str) -> None:
    make, shape = LAYERS[layer]
    torch.manual_seed(1)
    net = nn.Sequential(HOOKS[hook](make())).eval()
    x = normal(*shape, seed=1)
    analog = analogize_for_training(net, FINE, generator()).eval()
    # in eval mode, where spectral_norm stands still; the digital net takes the same steps
    for model in (net, analog):
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            if model is analog:
                analog[0].reprogram()
            optimiser.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimiser.step()
    analog[0].reprogram()
    with torch.no_grad():
        exact = net(x)
        for trained in (analog, deploy(analog), to_digital(analog)):
            assert float((trained(x) - exact).norm() / exact.norm()) < 2e-3


@pytest.mark.parametrize("hook", HOOKS)
def test_cells_are_written_from_computed_weights_at_every_forward(hook: str) -> None:
    torch.manual_seed(1)
    analog = analogize_for_training(nn.Sequential(HOOKS[hook](nn.Linear(8, 6))), FINE, generator()).train()
    x = normal(5, 8, seed=1)
    for _ in range(3):  # a graph of the step before would raise
        analog(x).sum().backward()
    assert all(bool(p.grad.any()) for p in analog.parameters())
    assert int(analog[0].crossbar.wear().max()) == 4


def test_projections_of_attention_are_split_as_pruning_leaves_them() -> None:
    attention = prune.l1_unstructured(nn.MultiheadAttention(8, 2, batch_first=True), "in_proj_weight", 0.5)
    x = normal(2, 5, 8, seed=1)
    exact = attention.eval()(x, x, x)[0]
    loaded_again = attention.state_dict()
    attention.load_state_dict(loaded_again)
    y = analogize(attention, FINE, generator())(x, x, x)[0]
    assert torch.allclose(y, exact, atol=1e-3)


def test_a_weight_that_an_unknown_hook_sets_is_refused_by_name() -> None:
    layer = nn.Linear(4, 3)
    raw = layer.weight
    del layer.weight
    layer.raw = raw
    layer.weight = raw.detach()

    def halve(module: nn.Module, inputs: object) -> None:
        module.weight = module.raw / 2

    layer.register_forward_pre_hook(halve)
    with pytest.raises(ModelError, match=r"layer '0': its weight is no parameter.*halve.*parametrize"):
        analogize(nn.Sequential(layer), FINE, generator())
    assert isinstance(analogize(nn.Sequential(layer), FINE, generator(), skip=["0"])[0], nn.Linear)


class Standardised(nn.Conv2d):
    """A convolution whose own forward uses another weight than it stores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias)


class Renamed(nn.Linear):
    """A linear layer that computes what linear layers compute, in its own words."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


def test_a_forward_of_its_own_is_taken_only_where_it_computes_with_the_weight() -> None:
    with pytest.raises(ModelError, match="layer '1': Standardised has a forward of its own"):
        analogize(nn.Sequential(nn.ReLU(), Standardised(3, 4, 3)), FINE, generator())
    assert isinstance(analogize(nn.Sequential(Renamed(3, 4)), FINE, generator())[0], AnalogLinear)
    replaced = nn.Linear(3, 4)
    replaced.forward = lambda x: 2 * nn.Linear.forward(replaced, x)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="forward of its own"):
        analogize(replaced, FINE, generator())


def test_weights_without_values_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="layer '0': its weight has no values yet"):
        analogize(nn.Sequential(nn.LazyLinear(3)), FINE, generator())


def test_weights_in_cells_cannot_be_tied_or_replaced() -> None:
    layer = analogize(nn.Linear(3, 2), FINE, generator())
    with pytest.raises(ConfigError, match="lies in cells, so it cannot be tied"):
        layer.weight = nn.Parameter(torch.ones(2, 3))


def test_errors_name_the_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    net[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="layer '2': weight holds NaN"):
        analogize(net, FINE, generator())
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    analog = analogize(net, CrossbarConfig(adc_scaling="calibrated"), generator())
    with pytest.raises(ConfigError, match="layer '0': all calibration inputs are zero"):
        calibrate(analog, [torch.zeros(3, 4)])


def test_forward_hooks_that_are_left_behind_are_named() -> None:
    layer = nn.Linear(8, 6)
    layer.register_forward_hook(lambda module, inputs, output: output * 3)
    with pytest.warns(UserWarning, match=r"layer '0': its own forward hooks are left behind"):
        analogize(nn.Sequential(layer), CrossbarConfig.ideal(16), torch.Generator().manual_seed(0))
