"""Put a trained model on crossbars."""

import copy
from collections.abc import Collection

import torch
from torch import Generator, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from nvcim.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError
from nvcim.randomness import named_generator


def analogize(
    model: nn.Module, config: CrossbarConfig, generator: Generator, skip: Collection[str] = ()
) -> nn.Module:
    """Return a copy of `model` whose Linear and Conv2d layers are programmed into crossbars.

    Weights are read as the model uses them, so parametrized (quantized) layers are written in quantized form.
    Everything else stays digital: normalisation, activations, ConvTranspose2d, the fused projections of
    MultiheadAttention. Each layer draws from a stream of its own name: skipping one changes no other.

    Args:
        model: left as it is.
        config: of every crossbar.
        generator: gives one number, from which all layers' streams derive.
        skip: names as in `named_modules`; a layer with that name, or inside a module with it, stays digital.

    Raises:
        ConfigError: `skip` names a module that the model does not have, or a weight cannot be programmed.
        DeviceError: the catalogue does not hold the device.
    """
    known = {name for name, _ in model.named_modules()}
    for name in skip:
        if name not in known:
            allowed = ", ".join(sorted(known - {""}))
            raise ConfigError(
                f"skip names module '{name}', which the model does not have; allowed: {allowed}"
            )
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    converted = copy.deepcopy(model)
    done: dict[nn.Module, AnalogLayer] = {}  # a layer used twice is one crossbar
    for name, module in list(converted.named_modules(remove_duplicate=False)):
        if not _convertible(module) or _skipped(name, skip) or ".parametrizations." in f".{name}.":
            continue
        if module not in done:
            done[module] = _program(module, config, named_generator(seed, name)).train(module.training)
        if name == "":
            return done[module]
        parent, _, child = name.rpartition(".")
        setattr(converted.get_submodule(parent), child, done[module])
    return converted


def _convertible(module: nn.Module) -> bool:
    # MultiheadAttention hands its projection's weight to a fused kernel, so no layer can stand in for it.
    return isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(
        module, NonDynamicallyQuantizableLinear
    )


def _skipped(name: str, skip: Collection[str]) -> bool:
    return any(name == skipped or name.startswith(f"{skipped}.") for skipped in skip)


def _program(module: nn.Module, config: CrossbarConfig, generator: Generator) -> AnalogLayer:
    if isinstance(module, nn.Linear):
        return AnalogLinear.from_linear(module, config, generator)
    assert isinstance(module, nn.Conv2d)
    return AnalogConv2d.from_conv(module, config, generator)
