"""Put the attention products of whole models on crossbars: torch's MultiheadAttention, and Hugging Face models.

Hugging Face models that look their attention up in the registry of transformers (Llama, GPT-2, BERT and most others)
are told to use the entry that this module registers. What it costs is said in `attention`.
"""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from nvcim.analog.attention import AnalogProducts, SplitAttention, split_attention
from nvcim.analog.replacing import replace_modules
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError
from nvcim.quantization.computed import copied
from nvcim.randomness import named_generator

IMPLEMENTATION = "nvcim_crossbar"
"""Name in transformers' registry of attention functions."""
# Terms between the scores and the softmax that some models pass along, and that no product here has.
_UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")


def with_analog_attention(model: nn.Module, config: CrossbarConfig, generator: Generator) -> nn.Module:
    """Return a copy of `model` whose attention writes K and V into crossbars at every call and reads them.

    Projections are left as they are: `analogize` before or after converts them.

    Args:
        model: holds nn.MultiheadAttention or `SplitAttention`, or is a transformers PreTrainedModel.
        config: of the arrays; see `AnalogProducts`.
        generator: gives one number, from which the streams of all attentions derive, by their names.

    Raises:
        ConfigError: a model without attention that can be replaced; otherwise as `AnalogProducts`.
        DeviceError: the catalogue does not hold the device.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    converted = replace_modules(copied(model), lambda _, module: split_attention(module))
    found = _attentions(converted)
    if not found:
        raise ConfigError(
            "the model has no attention to put on crossbars; allowed: nn.MultiheadAttention without added keys, "
            "transformers models that follow its AttentionInterface"
        )
    for name, module in found:
        products = AnalogProducts(config, named_generator(seed, name)).train(module.training)
        module.products = products.to(next(module.parameters(), torch.empty(0)).device)
    return converted


def _attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that take `products`, by name; Hugging Face models are switched to them."""
    split: list[tuple[str, nn.Module]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, SplitAttention)
    ]
    switch: Any = getattr(model, "set_attn_implementation", None)
    if switch is None or not _follows_the_interface(model):
        return split
    _register()
    switch(IMPLEMENTATION)
    # Every attention that uses the interface has `is_causal`, which the interface's own functions read.
    return split + [(name, module) for name, module in model.named_modules() if hasattr(module, "is_causal")]


def _follows_the_interface(model: Any) -> bool:
    return bool(model._can_set_attn_implementation())


def _register() -> None:
    # Imported here: transformers takes seconds to load, and a model that needs it has loaded it.
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **terms: Any,
) -> tuple[Tensor, Tensor]:
    """An attention function of transformers: [batch, heads, ...] in, [batch, queries, heads, d] out."""
    unknown = [name for name in _UNKNOWN_TERMS if terms.get(name) is not None]
    products = getattr(module, "products", None)
    if unknown or not isinstance(products, AnalogProducts):
        raise ConfigError(
            f"{type(module).__name__} cannot attend on crossbars: "
            + (f"it passes {', '.join(unknown)}" if unknown else "use with_analog_attention on its model")
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed, weights = products(query, key, value, attention_mask, scale, dropout)
    return mixed.transpose(1, 2).contiguous(), weights
