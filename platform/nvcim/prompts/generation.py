"""Generation for many users in one batch, each with tokens of its own or none."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from nvcim.errors import DataError
from nvcim.prompts.batching import length_groups
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.prefix_cache import GrowingLayer, Prefix, PrefixCache, check_tokens, content_hash
from nvcim.prompts.stop_texts import cut_at_stop
from nvcim.randomness import named_generator


@dataclass(frozen=True)
class Generated:
    """An answer.

    Attributes:
        text: as the model wrote it, white space included, up to a stop text.
        prompt_tokens: read, virtual ones included.
        completion_tokens: written; up to a stop text those that `text` takes, an end of text not counted.
        finish_reason: 'stop' at an end of text or a stop text, 'length' at `max_new_tokens`.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


@torch.no_grad()
def generate(
    lm: LanguageModel,
    questions: Sequence[str],
    tokens: Sequence[Tensor | None],
    max_new_tokens: int = 24,
    temperature: float = 0.0,
    seed: int = 0,
    cache: PrefixCache | None = None,
    stops: Sequence[Sequence[str]] | None = None,
) -> list[Generated]:
    """Answer every question after its virtual tokens.

    An answer is the one that the question gets alone, whoever shares the batch, up to the rounding of batched
    matrix products (in float32 at most 1e-5, plus 1e-5 of a logit): nothing is truncated, rows do not see each
    other, and each row samples from a generator of its own, seeded by `seed`, its question and tokens, and how
    many equal rows stand before it.

    Args:
        lm: the frozen model.
        questions: texts as the user asked them (the answer mark is added here).
        tokens: for each question its virtual tokens [n, hidden], or None; n may differ from row to row.
        max_new_tokens: longest answer, at least 1.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        seed: of sampling.
        cache: where the virtual tokens' keys and values are kept between calls; None computes them here. Of no
            use, and not asked, where `lm.can_cache_prefix` is false.
        stops: for each question the texts that end its answer, beside the model's own ends (`lm.ends`).

    Raises:
        DataError: a question that does not fit the model's context, or tokens of a wrong width.
        ValueError: a cache of another model, fewer tokens than questions, or of stop texts, or less than one new token.
    """
    if not questions:
        return []
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; at least 1")
    if stops is not None and len(stops) != len(questions):
        raise ValueError(f"{len(stops)} lists of stop texts for {len(questions)} questions")
    if cache is not None and cache.lm.model is not lm.model:
        raise ValueError(f"the prefix cache belongs to model '{cache.lm.name}', not to '{lm.name}'")
    rows = [lm.question_ids(question) for question in questions]
    _check(lm, questions, rows, tokens, max_new_tokens)
    choice = Choice(rows, tokens, max_new_tokens, temperature, seed)
    endings = Endings(lm, [()] * len(rows) if stops is None else stops)
    if lm.can_cache_prefix:
        prefixes = [None] * len(rows) if cache is None else cache.of(tokens)
        written = _decode(Batch(lm, rows, tokens, prefixes, max_new_tokens), choice, endings)
    else:
        written = _decode_by_transformers(lm, rows, tokens, choice, endings)
    answers = []
    for place, (row, ids, token) in enumerate(zip(rows, written, tokens, strict=True)):
        read = len(row) + (0 if token is None else len(token))
        answers.append(endings.answer(place, ids, read))
    return answers


class Endings:
    """Where each row's answer ends, and what is returned of it.

    Args:
        lm: whose end tokens and text count.
        stops: each row's stop texts.
    """

    def __init__(self, lm: LanguageModel, stops: Sequence[Sequence[str]]) -> None:
        self.lm = lm
        self.stops = stops

    def reached(self, row: int, ids: Sequence[int]) -> bool:
        """Whether the row's last id ended its answer."""
        if ids[-1] in self.lm.ends:
            return True
        return bool(self.stops[row]) and cut_at_stop(self.lm.decode(ids), self.stops[row]) is not None

    def answer(self, row: int, ids: Sequence[int], read: int) -> Generated:
        """The answer of a row that wrote these ids behind `read` others."""
        if ids[-1] in self.lm.ends:
            return Generated(self.lm.decode(ids[:-1]), read, len(ids) - 1, "stop")
        text = self.lm.decode(ids)
        cut = cut_at_stop(text, self.stops[row])
        if cut is None:
            return Generated(text, read, len(ids), "length")
        taken = next(k for k in range(len(ids) + 1) if self.lm.decode(ids[:k]).startswith(cut))
        return Generated(cut, read, taken, "stop")


class Choice:
    """Which token follows, given the logits; the draws are made beforehand, one per row and place.

    Args:
        rows: each row's question ids.
        tokens: each row's virtual tokens, or None.
        steps: longest answer.
        temperature: 0 takes the likeliest.
        seed: of sampling.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        tokens: Sequence[Tensor | None],
        steps: int,
        temperature: float,
        seed: int,
    ) -> None:
        """Draw a uniform number for every row and step."""
        self.steps = steps
        self.temperature = temperature
        self.uniform = torch.zeros(len(rows), steps, dtype=torch.float64)
        if temperature <= 0:
            return
        seen: Counter[str] = Counter()
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            name = f"{row} {'' if token is None else content_hash(token).hex()}"
            generator = named_generator(seed, "sample", name, seen[name])
            self.uniform[place] = torch.rand(steps, generator=generator, dtype=torch.float64)
            seen[name] += 1

    def pick(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """Token ids [active].

        Args:
            logits: [active, vocabulary].
            rows: [active], the places of those rows in the whole batch.
            step: of the answer, from 0.
        """
        if self.temperature <= 0:
            return logits.argmax(1)
        mass = (logits.double() / self.temperature).softmax(1).cumsum(1)
        drawn = self.uniform[rows.cpu(), step].to(logits.device)[:, None]
        # Scaled by the sum, which rounding leaves a little off 1, so that a draw never falls behind the last token.
        return torch.searchsorted(mass, drawn * mass[:, -1:], right=True)[:, 0].clamp(max=logits.shape[1] - 1)


class Batch:
    """Rows that are being answered together, one token at a time.

    In the buffers a row is [padding | virtual tokens | question and answer], without a gap, so that a sliding
    window spans the same tokens as in the row alone. What the model reads at first (virtual tokens that come from
    no cache, and the question but for its last token) is padded on the right and then shifted to end in one column.

    Args:
        lm: the frozen model, one that can cache prefixes.
        rows: each row's question ids, one or more.
        tokens: each row's virtual tokens [n, hidden], or None.
        prefixes: each row's virtual tokens as keys and values; None: computed here from `tokens`.
        steps: longest answer.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[Sequence[int]],
        tokens: Sequence[Tensor | None],
        prefixes: Sequence[Prefix | None],
        steps: int,
    ) -> None:
        """Read everything but each question's last token."""
        self.lm = lm
        self.next_ids = torch.tensor([row[-1] for row in rows], device=lm.device)
        """[active]: what `advance` reads first."""
        texts = lm.embed(
            torch.tensor([i for row in rows for i in row[:-1]], dtype=torch.long, device=lm.device)
        )
        parts = list(torch.split(texts, [len(row) - 1 for row in rows]))
        for place, (token, prefix) in enumerate(zip(tokens, prefixes, strict=True)):
            if token is not None and prefix is None:
                parts[place] = torch.cat([token.to(lm.device, lm.dtype), parts[place]])
        ready = torch.tensor([0 if prefix is None else len(prefix) for prefix in prefixes], device=lm.device)
        lengths = torch.tensor([len(part) for part in parts], device=lm.device)
        start, width = int(ready.max()), int(lengths.max())
        room = start + width + steps
        layers = lm.model.config.get_text_config(decoder=True).num_hidden_layers
        self.layers = [GrowingLayer(layer, prefixes, start, room) for layer in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.positions = ready + lengths
        """[active]: the place of the next token in its own row."""
        self.mask = torch.ones(len(rows), room, dtype=torch.long, device=lm.device)
        if width:
            self._read(pad_sequence(parts, batch_first=True), ready, lengths, start)
        column = torch.arange(start + width, device=lm.device)
        self.mask[:, : start + width] = column >= start + width - self.positions[:, None]

    def _read(self, embedded: Tensor, ready: Tensor, lengths: Tensor, start: int) -> None:
        """Run the beginnings [batch, width, hidden] through the model, then close the gap behind the shorter ones."""
        width = embedded.shape[1]
        column = torch.arange(start, device=ready.device)
        text = torch.arange(width, device=ready.device)
        mask = torch.cat([column >= start - ready[:, None], text < lengths[:, None]], dim=1).long()
        self.lm.model.base_model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=(ready[:, None] + text).clamp(max=self.lm.context - 1),  # padding may lie behind it
            past_key_values=self.cache,
            use_cache=True,
        )
        gaps = width - lengths
        if gaps.any():
            for layer in self.layers:
                layer.shift(gaps)

    def advance(self) -> Tensor:
        """Read `next_ids` and return the logits [active, vocabulary] of what follows, in float32."""
        length = self.layers[0].length + 1
        logits: Tensor = self.lm.model(
            input_ids=self.next_ids[:, None],
            attention_mask=self.mask[:, :length],
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.positions = self.positions + 1
        return logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [kept] of the active ones alone."""
        for layer in self.layers:
            layer.keep(rows)
        self.next_ids, self.positions, self.mask = self.next_ids[rows], self.positions[rows], self.mask[rows]


def _decode(batch: Batch, choice: Choice, endings: Endings) -> list[list[int]]:
    """Ids of every row's answer, its end of text included; a row that has ended leaves the batch."""
    written: list[list[int]] = [[] for _ in batch.next_ids]
    active = torch.arange(len(written), device=batch.next_ids.device)
    for step in range(choice.steps):
        batch.next_ids = choice.pick(batch.advance(), active, step)
        going = []
        for place, (row, token) in enumerate(zip(active.tolist(), batch.next_ids.tolist(), strict=True)):
            written[row].append(token)
            if not endings.reached(row, written[row]):
                going.append(place)
        if not going:
            break
        if len(going) < len(active):
            kept = torch.tensor(going, device=active.device)
            batch.keep(kept)
            active = active[kept]
    return written


class _Chosen(LogitsProcessor):
    """Makes transformers' greedy loop take what `Choice` picks for the rows at `places`."""

    def __init__(self, choice: Choice, places: Tensor) -> None:
        self.choice = choice
        self.places = places
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [batch, vocabulary] that are highest where the choice fell."""
        picked = self.choice.pick(scores.float(), self.places, self.step)
        self.step += 1
        only: Any = torch.full_like(scores, -torch.inf).scatter(1, picked[:, None], 0.0)
        return only  # type: ignore[no-any-return]  # transformers names it by a CPU tensor's old class


class _Reached(StoppingCriteria):
    """Ends transformers' loop once `Endings` has ended every row; `lengths` says after how many ids each did."""

    def __init__(self, endings: Endings, places: Sequence[int]) -> None:
        self.endings = endings
        self.places = places
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        """Which rows [batch] have ended; `input_ids` [batch, written]."""
        for place, ids in zip(self.places, input_ids.tolist(), strict=True):
            if place not in self.lengths and self.endings.reached(place, ids):
                self.lengths[place] = len(ids)
        return torch.tensor([place in self.lengths for place in self.places], device=input_ids.device)


def _decode_by_transformers(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    tokens: Sequence[Tensor | None],
    choice: Choice,
    endings: Endings,
) -> list[list[int]]:
    """The same for models of other layers than attention, whose state transformers' own loop looks after."""
    parts = [lm.embed(torch.tensor(row, device=lm.device)) for row in rows]
    for place, token in enumerate(tokens):
        if token is not None:
            parts[place] = torch.cat([token.to(lm.device, lm.dtype), parts[place]])
    # The checkpoint's own settings of generation (a penalty of repetition, say) would change what is chosen.
    model = copy.copy(lm.model)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    written: list[list[int]] = [[] for _ in rows]
    for places in length_groups([len(part) for part in parts], len(parts), lm.most_padding):
        some = [parts[place] for place in places]
        mask = [torch.ones(len(part), dtype=torch.long, device=lm.device) for part in some]
        reached = _Reached(endings, places)
        output = model.generate(
            inputs_embeds=pad_sequence(some, batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(mask, batch_first=True, padding_side="left"),
            max_new_tokens=choice.steps,
            do_sample=False,
            logits_processor=LogitsProcessorList([_Chosen(choice, torch.tensor(places))]),
            stopping_criteria=StoppingCriteriaList([reached]),
        )
        for place, ids in zip(places, output.tolist(), strict=True):
            written[place] = ids[: reached.lengths.get(place)]
    return written


def _check(
    lm: LanguageModel,
    questions: Sequence[str],
    rows: Sequence[Sequence[int]],
    tokens: Sequence[Tensor | None],
    new: int,
) -> None:
    """Refuse what does not fit the model's width or context; nothing is ever truncated here."""
    for question, row, token in zip(questions, rows, tokens, strict=True):
        if token is not None:
            check_tokens(lm, token)
        room = lm.context - (0 if token is None else len(token)) - new
        if len(row) > room:
            raise DataError(
                f"question '{question[:40]}...' has {len(row)} tokens; at most {room} fit the context"
            )
