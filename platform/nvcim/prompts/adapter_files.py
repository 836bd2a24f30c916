"""Virtual tokens as files in PEFT's adapter layout: what is tuned here loads there, and the other way round.

A folder holds `adapter_config.json` and `adapter_model.safetensors` with one tensor, `prompt_embeddings`
[n, hidden], as `peft.PeftModel.save_pretrained` writes them for its PROMPT_TUNING method (PEFT 0.21.2).
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nvcim.errors import ModelError, RunError
from nvcim.prompts.language_model import LanguageModel
from nvcim.storage.files import atomic_write_bytes, atomic_write_text

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"


def save_adapter(tokens: Tensor, lm: LanguageModel, folder: Path) -> None:
    """Write tuned tokens as PEFT's prompt tuning does; `peft.PeftModel.from_pretrained(model, folder)` reads them.

    Args:
        tokens: [n, hidden], kept in float32.
        lm: the model they were tuned on.
        folder: made if it does not exist; each file is replaced as a whole.

    Raises:
        ModelError: tokens of another shape or width than the model's, or none, or a value that is not finite.
        RunError: the folder cannot be written to.
    """
    content = tokens.detach().to("cpu", torch.float32).contiguous()
    _check_tokens(content, lm, "tokens")
    atomic_write_bytes(folder / WEIGHTS_FILE, save({TENSOR: content}, metadata={"format": "pt"}))
    settings = json.dumps(adapter_config(lm, len(content)), indent=2, sort_keys=True)
    atomic_write_text(folder / CONFIG_FILE, settings)


def load_adapter(folder: Path, lm: LanguageModel) -> Tensor:
    """Read virtual tokens [n, hidden], float32, on the model's device, that PEFT or `save_adapter` wrote.

    Raises:
        ModelError: a missing or broken file, a method other than prompt tuning, a task other than a causal LM's,
            or tokens that do not fit the model.
    """
    settings = _read_config(folder / CONFIG_FILE)
    kind = settings.get("peft_type")
    if kind != "PROMPT_TUNING":
        raise ModelError(f"{folder / CONFIG_FILE}: peft_type is {kind}; only PROMPT_TUNING can be read")
    task = settings.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(f"{folder / CONFIG_FILE}: task_type is {task}; only CAUSAL_LM can be read")
    file = folder / WEIGHTS_FILE
    try:
        with safe_open(file, "pt") as stream:
            if TENSOR not in stream.keys():  # noqa: SIM118  # it is no mapping
                raise ModelError(f"{file}: has no tensor '{TENSOR}'")
            tokens: Tensor = stream.get_tensor(TENSOR)
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{file}: cannot be read as an adapter's weights ({reason})") from error
    _check_tokens(tokens, lm, str(file))
    if settings.get("num_virtual_tokens") != len(tokens):
        raise ModelError(
            f"{file}: holds {len(tokens)} virtual tokens, "
            f"but num_virtual_tokens in {CONFIG_FILE} is {settings.get('num_virtual_tokens')}"
        )
    return tokens.to(lm.device, torch.float32)


def save_adapters(sets: Mapping[str, Tensor], lm: LanguageModel, folder: Path) -> None:
    """Write many sets of tokens, each into a folder of its name under `folder`.

    Raises:
        ModelError: a name that cannot be a folder's (then nothing is written), or as `save_adapter`.
        RunError: as `save_adapter`.
    """
    for name in sets:
        if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
            raise ModelError(
                f"adapter name '{name}': give a folder's name, without / or \\ and not beginning with a dot"
            )
    for name, tokens in sets.items():
        save_adapter(tokens, lm, folder / name)


def load_adapters(folder: Path, lm: LanguageModel) -> dict[str, Tensor]:
    """Read every adapter under `folder`, by name, in order of names; tokens [n, hidden].

    Raises:
        RunError: no such folder.
        ModelError: as `load_adapter`.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder of adapters")
    found = sorted(place.parent for place in folder.glob(f"*/{CONFIG_FILE}"))
    return {place.name: load_adapter(place, lm) for place in found}


def adapter_config(lm: LanguageModel, count: int) -> dict[str, Any]:
    """PEFT's settings for `count` virtual tokens of this model, every field that PEFT 0.21.2 writes."""
    config = lm.model.config.get_text_config(decoder=True)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": lm.model.name_or_path or lm.name,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": _heads(config),
        "num_layers": config.num_hidden_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": count,
        "peft_type": "PROMPT_TUNING",
        "peft_version": version("peft"),
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": lm.hidden,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }


def _heads(config: Any) -> int:
    """Heads as PEFT looks for them; 1 where there are none (Mamba): PEFT asks for a number, but does not use it."""
    for name in ("num_attention_heads", "num_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int):
            return heads
    return 1


def _read_config(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{file}: not an adapter's settings")
    return settings


def _check_tokens(tokens: Tensor, lm: LanguageModel, where: str) -> None:
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] != lm.hidden:
        raise ModelError(
            f"{where}: virtual tokens of shape {list(tokens.shape)}; "
            f"[n, {lm.hidden}] with n of at least 1 fit model '{lm.name}'"
        )
    if not tokens.isfinite().all():
        raise ModelError(f"{where}: virtual tokens hold values that are not finite")
