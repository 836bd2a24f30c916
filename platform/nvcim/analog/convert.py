"""Put a trained model on crossbars, for inference or for training with them in the loop."""

import warnings
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Generator, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from nvcim.analog.attention import split_attention
from nvcim.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear
from nvcim.analog.replacing import replace_modules
from nvcim.analog.training import TrainableAnalogConv2d, TrainableAnalogLinear, TrainableLayer, Writes
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, ModelError
from nvcim.quantization.computed import (
    computed,
    computed_weight,
    computes_weight,
    copied,
    in_eval_mode,
    made_plain,
)
from nvcim.quantization.dorefa import QuantizedInput
from nvcim.randomness import named_generator

# Height and width of an image that tells one convolution from another.
_PROBE = (32, 32)

_Program = Callable[[Any, CrossbarConfig, Generator], AnalogLayer]


def analogize(
    model: nn.Module,
    config: CrossbarConfig,
    generator: Generator,
    skip: Collection[str] = (),
    layers: Mapping[str, CrossbarConfig] | None = None,
) -> nn.Module:
    """Return a copy of `model` whose linear layers and convolutions are programmed into crossbars.

    That is every nn.Linear, nn.Conv2d, Hugging Face Conv1D, and the projections of nn.MultiheadAttention, which becomes
    a `SplitAttention`. Weights are read as the model uses them in eval mode: parametrized (quantized) layers are
    written in quantized form, and pruning, weight_norm and spectral_norm of torch.nn.utils are run first. Inputs that
    DoReFa quantizes stay quantized; other forward hooks of a layer are left behind with a UserWarning that names it.
    Everything else stays digital; `describe` lists it with reasons. A head whose weight is tied to an embedding is
    written into cells of its own, and the embedding stays a digital look-up of the old weights. Each layer draws from a
    stream of its own name: skipping one changes no other.

    Args:
        model: left as it is.
        config: of every crossbar that `layers` does not name.
        generator: gives one number, from which all layers' streams derive.
        skip: names as in `named_modules`; a layer with that name, or inside a module with it, stays digital.
        layers: configs by pattern of names (`*` for any characters); the first pattern that fits a layer counts.

    Raises:
        ConfigError: `skip` names a module that the model does not have, a pattern fits no layer, or a weight cannot be
            programmed.
        ModelError: a layer whose weight unknown hooks compute, or a subclass whose own forward is another function of
            the weight.
        DeviceError: the catalogue does not hold the device.
    """
    return _converted(
        model, config, generator, skip, layers or {}, AnalogLinear.from_linear, AnalogConv2d.from_conv
    )


def analogize_for_training(
    model: nn.Module,
    config: CrossbarConfig,
    generator: Generator,
    skip: Collection[str] = (),
    layers: Mapping[str, CrossbarConfig] | None = None,
    writes: Writes = "every_forward",
) -> nn.Module:
    """As `analogize`, with layers that keep float master weights to train; see `training`.

    Args:
        model, config, generator, skip, layers: as `analogize`.
        writes: when the cells are written: at every forward in train(), or by `reprogram(model)` alone.

    Raises:
        ConfigError, DeviceError: as `analogize`.
    """
    linear = partial(TrainableAnalogLinear.from_linear, writes=writes)
    conv = partial(TrainableAnalogConv2d.from_conv, writes=writes)
    return _converted(model, config, generator, skip, layers or {}, linear, conv)


def deploy(model: nn.Module) -> nn.Module:
    """A copy whose layers in training are inference layers, on their cells as they were last written."""

    def deployed(_: str, module: nn.Module) -> nn.Module | None:
        return _with_inputs_of(module, module.deployed()) if isinstance(module, TrainableLayer) else None

    return replace_modules(copied(model), deployed)


def to_digital(model: nn.Module) -> nn.Module:
    """A copy whose layers in training are their digital masters again, for another chip or a checkpoint."""
    return replace_modules(
        copied(model), lambda _, module: module.master if isinstance(module, TrainableLayer) else None
    )


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is Hugging Face's Conv1D, a linear layer (GPT-2); told by name, so as not to load transformers."""
    kind = type(module)
    return (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D")


def convertible(module: nn.Module) -> bool:
    """Whether `analogize` has a crossbar form of a module."""
    # MultiheadAttention hands its output projection's weight to a fused kernel, so no layer can stand in for it.
    fused = isinstance(module, NonDynamicallyQuantizableLinear)
    return (isinstance(module, nn.Linear | nn.Conv2d) and not fused) or is_conv1d(module)


def _converted(
    model: nn.Module,
    config: CrossbarConfig,
    generator: Generator,
    skip: Collection[str],
    layers: Mapping[str, CrossbarConfig],
    linear: _Program,
    conv: _Program,
) -> nn.Module:
    known = {name for name, _ in model.named_modules()}
    for name in skip:
        if name not in known:
            allowed = ", ".join(sorted(known - {""}))
            raise ConfigError(
                f"skip names module '{name}', which the model does not have; allowed: {allowed}"
            )
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    programmed: list[str] = []

    def split(name: str, module: nn.Module) -> nn.Module | None:
        if _skipped(name, skip):
            return None
        if isinstance(module, nn.MultiheadAttention):
            made_plain(module)
        return split_attention(module)

    def program(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, AnalogLayer):
            return module  # converted before; its parts are its own
        if not convertible(module) or _skipped(name, skip):
            return None
        programmed.append(name)
        own = next((layers[pattern] for pattern in layers if fnmatchcase(name, pattern)), config)
        make = conv if isinstance(module, nn.Conv2d) else linear
        try:
            _check_forward(module)
            made = make(module, own, named_generator(seed, name)).train(module.training)
        except (ConfigError, ModelError) as error:
            raise type(error)(f"layer '{name}': {error}") from error
        if _has_other_hooks(module):
            warnings.warn(f"layer '{name}': its own forward hooks are left behind", stacklevel=4)
        return _with_inputs_of(module, made)

    converted = replace_modules(replace_modules(copied(model), split), program)
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in programmed):
            raise ConfigError(
                f"layers names '{pattern}', which fits no layer; layers: {', '.join(programmed)}"
            )
    return converted


def _check_forward(layer: nn.Module) -> None:
    """Refuse a subclass, or a layer whose forward was replaced, that does not compute what its kind computes."""
    kind: type[nn.Module] = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    stock = type(layer).forward is kind.forward and "forward" not in vars(layer)
    stock = stock and getattr(type(layer), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
    if stock or is_conv1d(layer):
        return
    with torch.no_grad(), in_eval_mode(layer):
        weight, bias = computed_weight(layer), computed(layer, "bias")
        conv = isinstance(layer, nn.Conv2d)
        features = (layer.in_channels, *_PROBE) if conv else weight.shape[1:2]
        x = torch.randn(2, *features, generator=torch.Generator().manual_seed(0)).to(weight)
        try:
            y = layer.forward(x)
        except Exception as error:
            raise ModelError(
                f"{type(layer).__name__} has a forward of its own that fails ({error}); skip it"
            ) from error
        if isinstance(layer, nn.Conv2d):
            expected = nn.Conv2d._conv_forward(layer, x, weight, bias)
        else:
            expected = nn.functional.linear(x, weight, bias)
        if y.shape != expected.shape or not torch.allclose(
            y, expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
        ):
            raise ModelError(
                f"{type(layer).__name__} has a forward of its own that is not that of {kind.__name__} with its weight; "
                "skip it"
            )


def _with_inputs_of(layer: nn.Module, made: AnalogLayer) -> AnalogLayer:
    """`made` in the place of `layer`, reading inputs quantized as `layer` does."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, QuantizedInput):
            made.register_forward_pre_hook(hook)
    return made


def _has_other_hooks(layer: nn.Module) -> bool:
    """Whether a layer has forward hooks or pre-hooks that neither compute its weight nor quantize its inputs."""
    before = layer._forward_pre_hooks.values()
    other = [hook for hook in before if not computes_weight(hook) and not isinstance(hook, QuantizedInput)]
    return bool(other or layer._forward_hooks)


def _skipped(name: str, skip: Collection[str]) -> bool:
    return any(name == skipped or name.startswith(f"{skipped}.") for skipped in skip)
