"""A copy of a quantized model whose forward costs what a float model's does."""

from torch import nn

from nvcim.errors import ModelError
from nvcim.quantization.computed import copied, made_plain


def inference_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in evaluation mode with plain weights, equal to the quantized ones to the last bit.

    A quantizer makes each weight anew whenever it is read; the copy has done so once. It takes no gradient and
    knows no quantizer any more: pack or train the model it came from. Quantized inputs (DoReFa's activations)
    stay quantized; what torch's hooks make of weights (pruning, normalisation) becomes permanent. A float model gives
    a plain copy. In the middle of INQ's schedule the copy has the weights that the model computes with then, the
    free ones still in floating point.

    Raises:
        ModelError: a layer has another tensor than its weight parametrized.
    """
    # torch's remove_parametrizations takes the property off a class that a deep copy shares with its model,
    # and so would break the model: the layers of the copy are put together here instead.
    fresh = copied(model).eval()
    for name, layer in fresh.named_modules():
        made_plain(layer)
        parametrizations = layer._modules.get("parametrizations")
        if not isinstance(parametrizations, nn.ModuleDict):
            continue
        if set(parametrizations) != {"weight"}:
            others = ", ".join(sorted(set(parametrizations) - {"weight"}))
            raise ModelError(f"layer '{name}' has parametrized tensors beside its weight: {others}")
        weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        del layer._modules["parametrizations"]
        layer.__class__ = type(layer).__bases__[0]
        layer.register_parameter("weight", weight)
    return fresh.requires_grad_(False)
