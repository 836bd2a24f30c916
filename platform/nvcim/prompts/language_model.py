"""A frozen causal language model and its tokenizer, by path or hub name.

`embedded` is the model that the project trains (`python -m jobs.pretrain`) and ships in `prompts/base_lm`.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils.logging import disable_progress_bar

from nvcim.compute import resolve_device
from nvcim.errors import DataError, ModelError
from nvcim.prompts.model_checks import can_pad, check_config, check_generation, check_model
from nvcim.prompts.tokenization import end_ids, opening_ids, text_ids

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "base_lm"
ANSWER_MARK = "\nAnswer:"
"""What stands between a question and its answer, in training and in use."""
Precision = Literal["float32", "bfloat16", "auto"]
"""Of the frozen weights and activations; `auto` is the checkpoint's own. Tuned tokens are float32 throughout."""
UNFINISHED = "\ufffd"
"""What tokenizers show for bytes that are no character, as at the end of a text that is cut within one."""
UNKNOWN_CONTEXT = 2048
"""Taken where a model's settings name no longest sequence (ALiBi models, for example)."""


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM; no gradient ever reaches its weights.

    Attributes:
        name: what it was loaded as.
        model: the transformers model, in eval mode, `requires_grad` off.
        tokenizer: its tokenizer.
        context: the longest sequence it takes, in tokens. A sliding window does not shorten it.
        opening: ids that stand before every question.
        ends: ids that end an answer; the first is the tokenizer's, with which answers are learned.
        can_pad: whether masked tokens before a text change nothing, so that unequal texts may share a batch.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    opening: tuple[int, ...]
    ends: tuple[int, ...]
    can_pad: bool = True

    @classmethod
    def load(
        cls, name: str = EMBEDDED, device: str = "auto", dtype: Precision = "float32"
    ) -> "LanguageModel":
        """Load a causal LM by path or hub name.

        A GPTQ checkpoint keeps its quantized weights; `dtype` then holds for what is not quantized.

        Raises:
            ModelError: no such model, a broken file, no tokenizer, no causal head (an encoder, an encoder-decoder,
                a file without the head's weights), a precision that does not exist, or GPTQ weights without the
                libraries that read them.
        """
        if dtype not in get_args(Precision):
            raise ModelError(f"dtype '{dtype}' is not one of {', '.join(get_args(Precision))}")
        source = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
        if name == EMBEDDED and not (EMBEDDED_FOLDER / "config.json").exists():
            raise ModelError(
                f"model '{EMBEDDED}' is missing in {EMBEDDED_FOLDER}; make it: python -m jobs.pretrain"
            )
        disable_progress_bar()  # type: ignore[no-untyped-call]  # a second's bar of transformers' own amid our plain lines
        try:
            config = AutoConfig.from_pretrained(source)
            check_config(name, config)
            tokenizer = AutoTokenizer.from_pretrained(source)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
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
            raise ModelError(f"model '{name}' cannot be loaded as a causal LM: {reason}") from error
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"model '{name}' cannot be loaded as a causal LM: its files lack {len(missing)} of the weights, "
                f"'{missing[-1]}' among them"
            )
        return cls.wrap(name, model, tokenizer, device)

    @classmethod
    def wrap(cls, name: str, model: Any, tokenizer: Any, device: str = "auto") -> "LanguageModel":
        """Freeze a model that is already in memory.

        Raises:
            ModelError: a tokenizer without an end-of-text token (answers could not end), whose beginning or end of
                text has no embedding, or that does not say what it puts before a text; a model that cannot read or
                answer behind virtual tokens, or whose logits depend on later tokens (BERT and other encoders under a
                language-model head).
        """
        if tokenizer.eos_token_id is None:
            raise ModelError(f"model '{name}': its tokenizer has no end-of-text token")
        try:
            opening = opening_ids(tokenizer)
        except ModelError as error:
            raise ModelError(f"model '{name}': {error}") from error
        model.requires_grad_(False).eval().to(resolve_device(device))
        check_model(name, model)
        config = model.config.get_text_config(decoder=True)
        context = int(getattr(config, "max_position_embeddings", 0) or UNKNOWN_CONTEXT)
        ends = end_ids(tokenizer, model)
        lm = cls(name, model, tokenizer, context, opening, ends, can_pad(name, model))
        for token in (*opening, ends[0]):
            if token >= lm.vocabulary:
                raise ModelError(
                    f"model '{name}': its tokenizer's '{tokenizer.convert_ids_to_tokens(token)}' has id {token}, "
                    f"but the model has {lm.vocabulary} embeddings; give it more by resize_token_embeddings"
                )
        if not lm.can_cache_prefix:
            check_generation(name, model)
        return lm

    @property
    def hidden(self) -> int:
        """Width of a token embedding."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Token embeddings, one per id; a tokenizer may know fewer tokens, or more (then some have no embedding)."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def pad_id(self) -> int:
        """What stands before shorter texts of a batch, masked: the tokenizer's pad token, if it has an embedding."""
        own = self.tokenizer.pad_token_id
        return self.ends[0] if own is None or own >= self.vocabulary else int(own)

    @property
    def most_padding(self) -> float:
        """By how many columns a text may be padded to share a batch with longer ones."""
        return math.inf if self.can_pad else 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the input embeddings, hence of what `embed` returns and the model computes in."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.dtype

    @cached_property
    def can_cache_prefix(self) -> bool:
        """Whether virtual tokens' keys and values may be computed once and put before any question.

        They may where every layer attends over keys and values that depend on a token's place alone: full or
        sliding-window attention with absolute or fixed rotary positions (Llama, Mistral, Phi, GPT-2, Qwen2/3,
        Gemma 1 to 3). They may not with recurrent or convolutional layers, layers that share keys and values or
        differ in their shape (Gemma 3n, 4), and rotations that change with the length of the text ("dynamic",
        "longrope"): generation then computes virtual tokens with each question, through transformers' own loop.
        """
        config = self.model.config.get_text_config(decoder=True)
        arguments = inspect.signature(self.model.forward).parameters
        layers = DynamicCache(config=self.model.config).layers
        return (
            {"inputs_embeds", "position_ids", "past_key_values"} <= set(arguments)
            and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
            and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
            and not getattr(config, "num_kv_shared_layers", None)
            and not getattr(config, "is_heterogeneous", False)
            and not {"dynamic", "longrope"} & set(_rope_types(getattr(config, "rope_parameters", None)))
            and not getattr(self.model, "_is_stateful", False)
        )

    @property
    def embedding_weight(self) -> Tensor:
        """Every token's input embedding [vocabulary, hidden], with the model's own scaling (Gemma)."""
        return self.embed(torch.arange(self.vocabulary, device=self.device)).detach()

    @cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the input embeddings: the natural size of a virtual token's elements."""
        return float(self.embedding_weight.square().mean().sqrt())

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, any leading shape, in the model's `dtype`.

        It is what the model takes as `inputs_embeds`, the model's own scaling included: Gemma 1, 2 and 3 scale
        inside their embedding module (transformers 5), so nothing is scaled again behind it.
        """
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def question_ids(self, text: str) -> list[int]:
        """Token ids of a question as the model is asked it, answer mark included.

        Raises:
            DataError: the text holds a token for which the model has no embedding.
        """
        return [*self.opening, *self._embeddable(text + ANSWER_MARK)]

    def shortened(self, text: str, limit: int) -> str:
        """The text, its end cut off word by word where it would take more than `limit` tokens as a question."""
        words = text.split(" ")
        while len(words) > 1 and (length := len(self.question_ids(" ".join(words)))) > limit:
            words = words[: max(1, min(len(words) - 1, int(len(words) * limit / length)))]
        return " ".join(words)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer, end of text included.

        Raises:
            DataError: as `question_ids`.
        """
        return [*self._embeddable(f" {text}"), self.ends[0]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that were written behind the answer mark, as it stands: the space that opens it is part of it.

        A character that the last ids only begin is left out.
        """
        # Tokenizers that write a word's space with the word leave it off at the beginning of a text.
        text = self._text([self._mark[0], *ids])
        return text.removeprefix(self._mark[1]).rstrip(UNFINISHED)

    @cached_property
    def _mark(self) -> tuple[int, str]:
        """The answer mark's last token, and its text."""
        last = self.question_ids("")[-1]
        return last, self._text([last])

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _embeddable(self, text: str) -> list[int]:
        ids = text_ids(self.tokenizer, text)
        largest = max(ids, default=0)
        if largest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise DataError(
                f"text '{' '.join(text.split())[:40]}...' holds the token '{token}' (id {largest}), "
                f"for which model '{self.name}' has none of its {self.vocabulary} embeddings"
            )
        return ids


def _rope_types(parameters: Any) -> Iterator[str]:
    """Every `rope_type` in a model's rotary settings, which Gemma 3 nests by layer type."""
    if isinstance(parameters, dict):
        for name, value in parameters.items():
            if name == "rope_type":
                yield str(value)
            yield from _rope_types(value)
