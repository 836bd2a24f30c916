"""What makes a model unfit to be a frozen causal LM with virtual tokens; each refusal names the model's kind."""

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from nvcim.errors import ModelError

GPTQ_LIBRARIES = ("gptqmodel", "optimum")
"""What transformers' own loader of GPTQ checkpoints needs (`transformers.quantizers.quantizer_gptq`)."""


def check_config(name: str, config: Any) -> None:
    """Refuse what the settings alone tell is no causal LM, or cannot be read here, before its weights are read.

    Raises:
        ModelError: an encoder-decoder, no causal head, or GPTQ weights without the libraries that read them.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(f"model '{name}' ({kind}) is an encoder-decoder, not a causal LM")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise ModelError(f"model '{name}' ({kind}) cannot be loaded as a causal LM: it has no causal head")
    quantization = getattr(config, "quantization_config", None) or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    missing = [library for library in GPTQ_LIBRARIES if find_spec(library) is None]
    if method == "gptq" and missing:
        raise ModelError(
            f"model '{name}' has GPTQ weights, which need a library that is not installed: "
            f"pip install {' '.join(missing)}"
        )


def check_model(name: str, model: Any) -> None:
    """Refuse a model in eval mode that cannot read virtual tokens, or that reads backwards.

    Raises:
        ModelError: a forward pass without `inputs_embeds` or `attention_mask`, hidden states of another width than
            the embeddings without a map between them, or logits that depend on later tokens.
    """
    kind = model.config.model_type
    absent = {"inputs_embeds", "attention_mask"} - set(inspect.signature(model.forward).parameters)
    if absent:
        raise ModelError(
            f"model '{name}' ({kind}) takes no {' and no '.join(sorted(absent))}: virtual tokens need both"
        )
    width = model.get_input_embeddings().weight.shape[1]
    hidden = getattr(model.config.get_text_config(decoder=True), "hidden_size", width)
    if hidden != width and narrowing(model) is None:
        raise ModelError(
            f"model '{name}' ({kind}) has embeddings {width} wide and hidden states {hidden} wide, "
            "and no map of its own from these to those"
        )
    if _looks_ahead(model):
        raise ModelError(
            f"model '{name}' ({kind}) is an encoder without a causal head: its logits depend on later tokens"
        )


def check_generation(name: str, model: Any) -> None:
    """Refuse a model that transformers' own loop cannot start on virtual tokens.

    Raises:
        ModelError: OpenAI's first GPT, for example, which keeps no state and takes no embeddings there.
    """
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        raise ModelError(
            f"model '{name}' ({model.config.model_type}) cannot answer behind virtual tokens: "
            "transformers' generate takes no embeddings for it"
        )


def narrowing(model: Any) -> Any:
    """The model's own map from hidden states to the width of its embeddings (OPT-350m's), None where it has none."""
    return getattr(model.get_decoder(), "project_out", None)


@torch.no_grad()
def ignores_mask(model: Any) -> bool:
    """Whether a masked token is read all the same (RWKV): then it may stand before no text as padding."""
    ids = torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[:, :2] = 0
    whole, rest = (model(input_ids=ids, attention_mask=given).logits[0, -1] for given in (mask, padded))
    return torch.equal(whole, rest)  # the same sums in the same order, where nothing is masked


@torch.no_grad()
def _looks_ahead(model: Any) -> bool:
    """Whether the first token's logits change with the second token: then there is no causal head."""
    ids = torch.tensor([[0, 1], [0, 2]], device=model.get_input_embeddings().weight.device)
    first, other = model(input_ids=ids).logits[:, 0].float()
    # Of a causal model they are the same sums, equal but for how a library may order them.
    tolerance = 1e-5 if model.dtype == torch.float32 else 1e-2
    return bool((first - other).abs().max() > tolerance * first.abs().max())
