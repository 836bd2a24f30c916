"""What serving many users' prompts in one batch costs, against serving the same prompts one by one."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from nvcim.prompts.generation import generate
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.prefix_cache import PrefixCache
from tests.benchmarks.cases import SMOKE, Case, Run, Setup, Sizes
from tests.benchmarks.timing import Result, alternate

WORDS = (
    "a",
    "whale",
    "at",
    "the",
    "pier",
    ",",
    "a",
    "ticket",
    "and",
    "a",
    "brake",
    "in",
    "the",
    "tunnel",
    "knife",
)
LIMIT = 0.2
"""At least five times the tokens per second: every run writes the same number of tokens, so a ratio of times does."""


@dataclass(frozen=True)
class Serving:
    """One batch of requests.

    Attributes:
        users: questions, each with virtual tokens of its own.
        question: tokens of a question, answer mark included.
        virtual: tokens of a prompt.
        new: tokens of every answer.
    """

    users: int = 32
    question: int = 64
    virtual: int = 20
    new: int = 24


@dataclass(frozen=True)
class Requests:
    """What is asked, and the model with an end of text that it never writes, so that all answers are equally long."""

    lm: LanguageModel
    questions: list[str]
    tokens: list[Tensor]
    new: int


def serving(sizes: Sizes, virtual: int) -> Serving:
    """The batch that the figures are stated for, or a small one to see that everything runs."""
    return Serving(4, 24, virtual=3, new=3) if sizes == SMOKE else Serving(virtual=virtual)


@lru_cache(maxsize=4)
def requests(batch: Serving, device: str) -> Requests:
    """Questions of exactly the stated length and Gaussian tokens of the embeddings' size."""
    lm = LanguageModel.load(device=device)
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<never written>"})  # its id is behind the model's last logit
    lm = replace(lm, tokenizer=tokenizer, ends=(tokenizer.eos_token_id,))
    draws = torch.Generator().manual_seed(0)
    questions = []
    for _ in range(batch.users):
        question = "a"
        while len(lm.question_ids(question)) < batch.question:
            question += " " + WORDS[int(torch.randint(len(WORDS), (1,), generator=draws))]
        questions.append(question)
    lengths = {len(lm.question_ids(question)) for question in questions}
    assert lengths == {batch.question}, f"the case is stated for {batch.question} tokens, not {lengths}"
    shape = (batch.users, batch.virtual, lm.hidden)
    tokens = (torch.randn(shape, generator=draws) * lm.embedding_rms).to(lm.device)
    return Requests(lm, questions, list(tokens), batch.new)


def by_transformers(asked: Requests) -> Run:
    """One by one through transformers' own loop: [virtual tokens | question] as embeddings, greedily."""

    @torch.no_grad()
    def run() -> None:
        for question, tokens in zip(asked.questions, asked.tokens, strict=True):
            ids = torch.tensor(asked.lm.question_ids(question), device=asked.lm.device)
            embedded = torch.cat([tokens, asked.lm.embed(ids)])[None]
            asked.lm.model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long, device=asked.lm.device),
                max_new_tokens=asked.new,
                do_sample=False,
                eos_token_id=asked.lm.tokenizer.eos_token_id,
                pad_token_id=asked.lm.tokenizer.pad_token_id,
            )

    return run


def ours(asked: Requests, rows: int, cache: PrefixCache | None) -> Run:
    """`generate` for `rows` users at a time; a cache stays filled from run to run, as a server's does."""

    def run() -> None:
        for start in range(0, len(asked.questions), rows):
            part = slice(start, start + rows)
            answers = generate(asked.lm, asked.questions[part], asked.tokens[part], asked.new, cache=cache)
            assert all(one.completion_tokens == asked.new for one in answers)

    return run


def measured(
    pair: Callable[[Requests], tuple[Run, Run]], virtual: int, unit: str, limit: float | None, note: str
) -> Callable[[Case, Setup], list[Result]]:
    """A ratio of times over the same answers, whose inverse is the ratio of tokens per second."""

    def measure(case: Case, setup: Setup) -> list[Result]:
        batch = serving(setup.sizes, virtual)
        timing = alternate(*pair(requests(batch, setup.device)), setup.repeats)
        rate = batch.users * batch.new / timing.case.median * 1e3
        said = (
            f"{batch.users} users, {batch.question}-token questions, {batch.virtual} virtual and {batch.new} new "
            f"tokens; {1 / timing.ratio:.1f}x the tokens/s, {rate:.0f} tokens/s; {note}"
        )
        own = limit if setup.device == "cpu" and batch.users == Serving.users else None
        return [
            Result(case.name, case.title, setup.threads, setup.place, timing.ratio, unit, own, timing, said)
        ]

    return measure


def cached_against_transformers(asked: Requests) -> tuple[Run, Run]:
    """The batch with its prefixes cached."""
    return ours(asked, len(asked.questions), PrefixCache(asked.lm)), by_transformers(asked)


def uncached_against_transformers(asked: Requests) -> tuple[Run, Run]:
    """The batch without a cache."""
    return ours(asked, len(asked.questions), None), by_transformers(asked)


def cached_against_own(asked: Requests) -> tuple[Run, Run]:
    """The batch against our own loop one by one, both with their prefixes cached."""
    cache = PrefixCache(asked.lm)
    return ours(asked, len(asked.questions), cache), ours(asked, 1, cache)


def cached_against_uncached(asked: Requests) -> tuple[Run, Run]:
    """What the cache alone saves in the batch."""
    whole = len(asked.questions)
    return ours(asked, whole, PrefixCache(asked.lm)), ours(asked, whole, None)


ONE_BY_ONE = "x transformers one by one"
CASES = (
    Case(
        "serve",
        "serve 32 users in one batch, prefixes cached (0.2 is 5x the tokens/s)",
        measured(cached_against_transformers, 20, ONE_BY_ONE, LIMIT, "reference: model.generate"),
    ),
    Case(
        "serve_short",
        "serve 32 users in one batch, prefixes of 8 cached (0.2 is 5x the tokens/s)",
        measured(cached_against_transformers, 8, ONE_BY_ONE, LIMIT, "reference: model.generate"),
    ),
    Case(
        "serve_uncached",
        "serve 32 users in one batch, no prefix cache",
        measured(uncached_against_transformers, 20, ONE_BY_ONE, None, "reference: model.generate"),
    ),
    Case(
        "serve_own",
        "serve 32 users in one batch against our own loop one by one",
        measured(cached_against_own, 20, "x generate one by one", None, "both with cached prefixes"),
    ),
    Case(
        "serve_cache",
        "serve 32 users in one batch: what the prefix cache leaves of the time",
        measured(
            cached_against_uncached, 20, "x without the cache", None, "reference: the same batch uncached"
        ),
    ),
)
