"""What representative selection clusters: one unit vector per text, from the frozen LM or from a sentence encoder.

NVCiM-PT's embedding is not known, so its source is a setting. A sentence encoder is any transformers model in a folder;
sentence-transformers' layout is read as far as it pools by mean or by its first token and then at most normalises.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from nvcim.compute import resolve_device
from nvcim.config import Settings
from nvcim.errors import ModelError
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.representation import represent

LM_SOURCE = "lm"
TEXTS_PER_BATCH = 64
Pooling = Literal["mean", "first token"]


class EmbeddingSource(Settings):
    """Where the embeddings of representative selection come from."""

    source: str = Field(LM_SOURCE, min_length=1, description="'lm', or the folder of a sentence encoder")
    layer: int = Field(2, ge=0, description="hidden layer of the LM; 0: its input embeddings")


@dataclass(frozen=True)
class SentenceEncoder:
    """A frozen transformers encoder and its tokenizer.

    Attributes:
        name: the folder it was loaded from.
        model: the transformers model, in eval mode.
        tokenizer: its tokenizer; texts longer than `context` keep their end.
        context: the longest text, in tokens, special tokens included.
        pooling: how a text's token vectors become one: their mean (padding left out), or the first of them.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    pooling: Pooling = "mean"

    @classmethod
    def load(cls, folder: str, device: str = "auto") -> "SentenceEncoder":
        """Load an encoder from a folder.

        Raises:
            ModelError: no such folder, a broken or incomplete model, no tokenizer, or steps that are not supported.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ModelError(
                f"sentence encoder '{folder}': no such folder; allowed: 'lm' or a model's folder"
            )
        source = root if (root / "config.json").exists() else root / "0_Transformer"
        disable_progress_bar()  # type: ignore[no-untyped-call]  # a bar of transformers' own amid our plain lines
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source))
            model, loading = AutoModel.from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            ImportError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"sentence encoder '{folder}' cannot be loaded: {reason}") from error
        absent = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
        if absent:
            raise ModelError(f"sentence encoder '{folder}' is incomplete: it has no weights '{absent[0]}'")
        if model.config.is_encoder_decoder:
            raise ModelError(f"sentence encoder '{folder}' has a decoder too; allowed: models of one stack")
        if tokenizer.pad_token_id is None:
            raise ModelError(f"sentence encoder '{folder}': its tokenizer has no padding token")
        tokenizer.truncation_side = "left"
        model.requires_grad_(False).eval().to(resolve_device(device))
        return cls(folder, model, tokenizer, _context(model, tokenizer), _pooling(root))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [texts, hidden], float32; other texts in the call change them by rounding only."""
        if not texts:
            return torch.empty(0, int(self.model.config.hidden_size))
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows: dict[int, Tensor] = {}
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            batch = by_length[start : start + TEXTS_PER_BATCH]
            inputs = self.tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=self.context,
                padding_side="right",
                split_special_tokens=True,  # what a person wrote is text
                return_tensors="pt",
            ).to(self.model.device)
            hidden = self.model(**inputs).last_hidden_state
            if self.pooling == "mean":
                mask = inputs["attention_mask"][..., None].to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0)
            else:
                pooled = hidden[:, 0]
            rows |= dict(zip(batch, functional.normalize(pooled, dim=1), strict=True))
        return torch.stack([rows[i] for i in range(len(texts))])


def text_embedder(source: EmbeddingSource, lm: LanguageModel) -> Callable[[Sequence[str]], Tensor]:
    """A function from texts to unit vectors [texts, hidden], to be clustered.

    `lm` gives the mean over a text of the hidden states of one of its layers; an encoder is put on the LM's device.

    Raises:
        ModelError: as `SentenceEncoder.load`.
    """
    if source.source != LM_SOURCE:
        return SentenceEncoder.load(source.source, str(lm.device)).embed

    def embed(texts: Sequence[str]) -> Tensor:
        return functional.normalize(represent(lm, texts, 1, source.layer)[:, 0], dim=1)

    return embed


def _context(model: Any, tokenizer: Any) -> int:
    """Most tokens: the tokenizer's limit, or the position table's without the rows that RoBERTa's kin leave unused."""
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 512)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    unused = getattr(table, "padding_idx", None)
    if unused is not None:
        positions -= int(unused) + 1
    return min(positions, int(tokenizer.model_max_length))


def _pooling(root: Path) -> Pooling:
    """How sentence-transformers' files in the folder pool; the mean where there are none."""
    modules = root / "modules.json"
    if not modules.exists():
        return "mean"
    try:
        steps = {str(step["type"]).rsplit(".", 1)[-1]: root / step["path"] for step in _read(modules)}
        pooling = _read(steps["Pooling"] / "config.json") if "Pooling" in steps else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"sentence encoder '{root}': its pooling cannot be read from {modules}") from error
    other = sorted(set(steps) - {"Transformer", "Pooling", "Normalize"})
    if other:
        raise ModelError(
            f"sentence encoder '{root}' has a step '{other[0]}'; allowed: Transformer, Pooling, Normalize"
        )
    used = sorted(key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True)
    if used == ["pooling_mode_cls_token"] or pooling.get("pooling_mode") == "cls":
        return "first token"
    if used in ([], ["pooling_mode_mean_tokens"]) and pooling.get("pooling_mode", "mean") == "mean":
        return "mean"
    raise ModelError(
        f"sentence encoder '{root}' pools by {', '.join(used) or pooling['pooling_mode']}; "
        "allowed: mean tokens, cls token"
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
