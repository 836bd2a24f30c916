"""A frozen causal language model and its tokenizer, by path or hub name.

`embedded` is the model that the project trains (`python -m jobs.pretrain`) and ships in `prompts/base_lm`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from nvcim.compute import resolve_device
from nvcim.errors import ModelError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "base_lm"
ANSWER_MARK = "\nAnswer:"
"""What stands between a question and its answer, in training and in use."""


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM; no gradient ever reaches its weights.

    Attributes:
        name: what it was loaded as.
        model: the transformers model, in eval mode, `requires_grad` off.
        tokenizer: its tokenizer, with a pad token.
        context: the longest sequence it takes, in tokens.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int

    @classmethod
    def load(cls, name: str = EMBEDDED, device: str = "auto") -> "LanguageModel":
        """Load a causal LM by path or hub name.

        Raises:
            ModelError: no such model, a broken file, no tokenizer, or a model without a causal head.
        """
        source = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
        if name == EMBEDDED and not (EMBEDDED_FOLDER / "config.json").exists():
            raise ModelError(
                f"model '{EMBEDDED}' is missing in {EMBEDDED_FOLDER}; make it: python -m jobs.pretrain"
            )
        disable_progress_bar()  # type: ignore[no-untyped-call]  # a second's bar of transformers' own amid our plain lines
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"model '{name}' cannot be loaded as a causal LM: {reason}") from error
        return cls.wrap(name, model, tokenizer, device)

    @classmethod
    def wrap(cls, name: str, model: Any, tokenizer: Any, device: str = "auto") -> "LanguageModel":
        """Freeze a model that is already in memory.

        Raises:
            ModelError: a tokenizer without an end-of-text token: answers could not end.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError(f"model '{name}': its tokenizer has no end-of-text token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.requires_grad_(False).eval().to(resolve_device(device))
        context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
        return cls(name, model, tokenizer, context)

    @property
    def hidden(self) -> int:
        """Width of a token embedding."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    @property
    def embedding_weight(self) -> Tensor:
        """Every token's input embedding [vocabulary, hidden], with the model's own scaling (Gemma)."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        return self.embed(torch.arange(rows, device=self.device)).detach()

    @cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the input embeddings: the natural size of a virtual token's elements."""
        return float(self.embedding_weight.square().mean().sqrt())

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, any leading shape; includes the model's own scaling (Gemma)."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def question_ids(self, text: str) -> list[int]:
        """Token ids of a question as the model is asked it, answer mark included."""
        return list(self.tokenizer(text + ANSWER_MARK)["input_ids"])

    def shortened(self, text: str, limit: int) -> str:
        """The text, its end cut off word by word where it would take more than `limit` tokens as a question."""
        words = text.split(" ")
        while len(words) > 1 and (length := len(self.question_ids(" ".join(words)))) > limit:
            words = words[: max(1, min(len(words) - 1, int(len(words) * limit / length)))]
        return " ".join(words)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer, end of text included."""
        ids = list(self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
        return [*ids, self.tokenizer.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
