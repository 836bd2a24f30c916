"""What makes a model unfit to be a frozen causal LM with virtual tokens; each refusal names the model's kind."""

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
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
        ModelError: a forward pass without `inputs_embeds` or `attention_mask`, or one that fails, hidden states of
            another width than the embeddings without a map between them, or logits that depend on later tokens.
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
    if _looks_ahead(name, model):
        raise ModelError(
            f"model '{name}' ({kind}) is an encoder without a causal head: its logits depend on later tokens"
        )


def check_generation(name: str, model: Any) -> None:
    """Refuse a model that transformers' own loop cannot start on virtual tokens.

    Raises:
        ModelError: OpenAI's first GPT, for example, which keeps no state and takes no embeddings there; a model whose
            own code fails at it.
    """
    kind, embed = model.config.model_type, model.get_input_embeddings()
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        raise ModelError(
            f"model '{name}' ({kind}) cannot answer behind virtual tokens: "
            "transformers' generate takes no embeddings for it"
        )
    ids = torch.arange(2, device=embed.weight.device)[None]
    try:
        model.generate(
            inputs_embeds=embed(ids), attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False
        )
    except Exception as error:  # whatever a model's own code raises
        raise ModelError(
            f"model '{name}' ({kind}) cannot answer behind virtual tokens: {_first_line(error)}"
        ) from error


def narrowing(model: Any) -> Any:
    """The model's own map from hidden states to the width of its embeddings (OPT-350m's), None where it has none."""
    return getattr(model.get_decoder(), "project_out", None)


def can_pad(name: str, model: Any) -> bool:
    """Whether masked tokens before a text leave its logits as they are, so that unequal texts may share a batch.

    Recurrent models may read them all the same (RWKV); learned positions may count them (BART's decoder).

    Raises:
        ModelError: a forward pass on embeddings, as virtual tokens need it, fails.
    """
    ids = torch.arange(4)[None]
    alone = _logits(name, model, ids[:, 2:], torch.tensor([[1, 1]]), torch.tensor([[0, 1]]))
    padded = _logits(name, model, ids, torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 1]]))[:, 2:]
    return bool((alone - padded).abs().max() <= _tolerance(model, 1e-4) * alone.abs().max())


def _looks_ahead(name: str, model: Any) -> bool:
    """Whether the first token's logits change with the second token: then there is no causal head."""
    ids, seen, positions = torch.tensor([[0, 1], [0, 2]]), torch.ones(2, 2), torch.tensor([[0, 1]] * 2)
    first, other = _logits(name, model, ids, seen.long(), positions)[:, 0]
    # Of a causal model they are the same sums, equal but for how a library may order them.
    return bool((first - other).abs().max() > _tolerance(model, 1e-5) * first.abs().max())


def _tolerance(model: Any, single: float) -> float:
    return single if model.dtype == torch.float32 else 2e-2


@torch.no_grad()
def _logits(name: str, model: Any, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Float32 logits [texts, length, words] of ids [texts, length], read as virtual tokens are: as embeddings."""
    embed, kind = model.get_input_embeddings(), model.config.model_type
    ids, mask, positions = (one.to(embed.weight.device) for one in (ids, mask, positions))
    try:
        given = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        logits: Tensor = model(inputs_embeds=embed(ids), **given).logits
    except Exception as error:  # whatever a model's own code raises
        raise ModelError(
            f"model '{name}' ({kind}) cannot be run as a causal LM on embeddings: {_first_line(error)}"
        ) from error
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise ModelError(f"model '{name}' ({kind}) gives no logits for each position of a text")
    return logits.float()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
