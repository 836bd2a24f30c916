"""Pre-training of the embedded base LM: a small Llama with its own BPE tokenizer.

A document is what one writer wrote in one domain: an optional line about the writer, then samples, each opened by the
begin-of-text token. So the model learns to carry a writer's habit from what stands before a question to its answer,
which is the ability that virtual tokens put there later make use of.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nvcim.config import Settings
from nvcim.data.lamp import TASKS, UserStream
from nvcim.data.users import GENERATED_TASKS, HABITS, INSTRUCTIONS, TOPICS, persona, write_sample
from nvcim.errors import DataError
from nvcim.prompts.language_model import ANSWER_MARK
from nvcim.randomness import named_seed

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ANSWER_ROOM = 48
"""Tokens of the context that a document leaves for the last answer, however long its questions are."""


class PretrainSettings(Settings):
    """Architecture and schedule. The defaults give a model of about 4 MB."""

    vocabulary: int = Field(2048, ge=300, description="upper bound of the tokenizer's vocabulary")
    hidden: int = Field(128, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    intermediate: int = Field(344, ge=8)
    context: int = Field(512, ge=64)
    steps: int = Field(4000, ge=1)
    batch: int = Field(16, ge=1, description="documents per step")
    learning_rate: float = Field(2e-3, gt=0)
    text_weight: float = Field(0.1, ge=0, le=1, description="loss weight of question tokens; answers weigh 1")
    samples: int = Field(4, ge=1, description="most samples in one document")
    personas: float = Field(
        0.4, ge=0, le=1, description="share of documents that open with a line on the writer"
    )
    blank: float = Field(
        0.2, ge=0, le=1, description="share of documents of one sample and nothing before it"
    )


@dataclass(frozen=True)
class Document:
    """What one writer wrote: a line on the writer (may be empty) and (input, output) pairs."""

    about: str
    samples: tuple[tuple[str, str], ...]


def generated_documents(settings: PretrainSettings, seed: int) -> Iterator[Document]:
    """Endless documents of generated writers; a writer's seed never coincides with `generate_users`'."""
    for i in range(2**62):
        rng = random.Random(named_seed(seed, "document", i))
        task = rng.choice(GENERATED_TASKS)
        topic, habit = rng.choice(TOPICS), rng.randrange(HABITS[task])
        blank = rng.random() < settings.blank
        count = 1 if blank else rng.randint(1, settings.samples)
        about = persona(task, habit) if not blank and rng.random() < settings.personas else ""
        yield Document(about, tuple(write_sample(rng, task, topic, habit) for _ in range(count)))


def corpus_documents(
    streams: Sequence[UserStream], settings: PretrainSettings, seed: int
) -> Iterator[Document]:
    """Endless documents from users' histories: runs of samples that follow each other.

    Raises:
        DataError: no user has a history (at the first document).
    """
    usable = [stream for stream in streams if stream.history]
    if not usable:
        raise DataError("corpus: no user has a history to train on")
    for i in range(2**62):
        rng = random.Random(named_seed(seed, "document", i))
        stream = rng.choice(usable)
        count = 1 if rng.random() < settings.blank else rng.randint(1, settings.samples)
        start = rng.randrange(max(1, len(stream.history) - count + 1))
        chosen = stream.history[start : start + count]
        yield Document("", tuple((sample.input, sample.output) for sample in chosen))


def train_tokenizer(
    texts: Sequence[str], instructions: Sequence[str], vocabulary: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; each task's long fixed instruction becomes one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fixed = [AddedToken(text, normalized=False) for text in (*instructions, ANSWER_MARK)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(fixed),
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(fixed)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


def instructions_of(streams: Sequence[UserStream]) -> list[str]:
    """The fixed instructions that the streams' questions open with."""
    found = set()
    for stream in streams:
        marker = TASKS[stream.task].marker
        for sample in (*stream.history[:1], *stream.queries[:1]):
            if marker and marker in sample.input:
                found.add(sample.input.partition(marker)[0] + marker)
    return sorted(found)


def new_model(tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama, reproducibly from the seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            named_seed(seed, "initial weights")
        )  # transformers initialises from torch's own state
        return LlamaForCausalLM(config)


def encode_document(
    tokenizer: Any, document: Document, settings: PretrainSettings
) -> tuple[list[int], list[float]]:
    """Token ids of a document and the loss weight of predicting each."""
    ids: list[int] = []
    weights: list[float] = []

    def add(text: str, weight: float, *, opens: bool = False, closes: bool = False) -> None:
        new = list(tokenizer(text, add_special_tokens=opens, split_special_tokens=True)["input_ids"])
        new += [tokenizer.eos_token_id] if closes else []
        ids.extend(new)
        weights.extend([weight] * len(new))

    if document.about:
        add(document.about, settings.text_weight)
    room = settings.context - ANSWER_ROOM
    for given, answer in document.samples:
        if len(ids) >= room:
            break
        add(given, settings.text_weight, opens=True)
        del ids[room:], weights[room:]
        add(ANSWER_MARK, settings.text_weight)
        add(f" {answer}", 1.0, closes=True)
    return ids[: settings.context], weights[: settings.context]


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: Any,
    documents: Iterator[Document],
    settings: PretrainSettings,
    on_step: Callable[[int, float], None],
) -> float:
    """Train in place; returns the mean loss (nats per answer token) over the last tenth of the steps.

    AdamW, linear warm-up over 5 % of the steps, cosine decay to 5 % of the peak rate.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    tail: list[float] = []
    model.train()
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        rows = [encode_document(tokenizer, next(documents), settings) for _ in range(settings.batch)]
        loss, answer_loss = _loss(model, rows, tokenizer.pad_token_id)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step >= settings.steps - max(1, settings.steps // 10):
            tail.append(answer_loss)
        on_step(step, answer_loss)
    model.eval()  # type: ignore[no-untyped-call]
    return sum(tail) / len(tail)


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def _loss(
    model: LlamaForCausalLM, rows: list[tuple[list[int], list[float]]], pad: int
) -> tuple[Tensor, float]:
    """Weighted mean loss, and the plain mean over answer tokens."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    each = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weights = weights[:, 1:]
    answers = weights == 1.0
    return (each * weights).sum() / weights.sum(), float(each[answers].mean().detach())


GENERATED_INSTRUCTIONS = tuple(INSTRUCTIONS[task] for task in GENERATED_TASKS)
