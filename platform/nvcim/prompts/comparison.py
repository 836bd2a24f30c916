"""One point of the comparison: some users of one task, and all devices and methods on which they are compared.

Methods share users, samples, starts, seeds of tuning and, on one device, the chips that they are written to; they
differ in what their names say. Users' token sets are tuned in shared batches.
"""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import Sample, UserStream, read_lamp_folders, spread_evenly
from nvcim.data.users import UserSettings, generate_users
from nvcim.errors import DataError
from nvcim.prompts.baselines.registry import BASELINES, get_baseline
from nvcim.prompts.baselines.settings import BaselineSettings
from nvcim.prompts.generation import generate
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.memory import PromptMemory
from nvcim.prompts.methods import METHODS, Method, get_method
from nvcim.prompts.noise import LevelNoise, level_noise
from nvcim.prompts.personaliser import CodeJob, Personaliser, PromptSettings, TunedCode
from nvcim.prompts.scoring import grade, task_metrics
from nvcim.randomness import named_generator, named_seed

Row = dict[str, Any]
NO_DEVICE = "none"
QUERIES = 12
"""Most queries of a user that are scored; the first ones."""
ROWS_AT_ONCE = 64
"""Questions per batch of answers."""
SCALE_BYTES = 4
"""Of a stored column's scale, beside its code."""
_QUIET = LevelNoise(0.0, 0.0)


class ComparisonPoint(Settings):
    """One unit of work: everything that shares users and tuning."""

    model: str
    data: Path | None = Field(None, description="folder of LaMP folders; null: users are generated")
    task: str
    repeat: int = Field(ge=0, description="which independent repetition: users, tuning and chips of its own")
    users: int = Field(ge=1)
    sigma: float = Field(ge=0)
    buffer: int = Field(ge=1)
    devices: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)

    @property
    def point_id(self) -> str:
        """A short name that says which point it is and nothing else."""
        return hashlib.sha256(self.model_dump_json().encode("utf-8")).hexdigest()[:16]


def compare(
    point: ComparisonPoint,
    crossbar: CrossbarConfig,
    prompts: PromptSettings,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[list[Row], list[Row]]:
    """Tune, write, search and answer by every method on every device of the point.

    Args:
        point: what is compared.
        crossbar: the array; the point says device and sigma.
        prompts: of every method; the point says the buffer.
        seed: of the whole comparison.
        on_step: called after every tuning step of a batch.

    Returns:
        A row per answered query, and a row per user for what is kept for the user, by method and device.

    Raises:
        DataError: no users of the task, answers that are none of its labels, no question that fits the model, or data
            that cannot be read.
        ConfigError, DeviceError, ModelError: an unknown method, device or model.
    """
    lm = _loaded(point.model)
    settings = prompts.model_copy(update={"buffer": point.buffer})
    drawn = named_seed(seed, "comparison", point.task, point.repeat)
    users = population(point, drawn)
    golds = [query.output for user in users for query in user.queries]
    task_metrics(
        point.task, golds, golds
    )  # answers that cannot be scored are refused before anything is tuned
    configs = {
        device: crossbar.model_copy(update={"device": device, "sigma": point.sigma})
        for device in point.devices
    }
    for config in configs.values():
        config.cell()  # an unknown device is refused before anything is tuned
    bench = _Bench(lm, settings, users, configs, drawn, on_step)
    if not any(bench.fits(query) for user in users for query in user.queries):
        raise DataError(
            f"model '{point.model}' takes {lm.context} tokens: no question of {point.task} fits beside virtual tokens "
            "and an answer, and questions are not cut"
        )
    answers: list[Row] = []
    sets: list[Row] = []
    for name in point.methods:
        for outcome in bench.digital(name) if name in BASELINES else bench.on_crossbars(get_method(name)):
            shared = {
                "model": point.model,
                "data": "generated" if point.data is None else point.data.name,
                "task": point.task,
                "method": name,
                "device": outcome.device,
                "sigma": None if outcome.device == NO_DEVICE else point.sigma,
                "sigma_unit": None if outcome.device == NO_DEVICE else crossbar.sigma_unit,
                "buffer": point.buffer,
                "repeat": point.repeat,
                "basis": "measured",
            }
            answers += [{**shared, **row} for row in outcome.answers]
            sets += [{**shared, **row} for row in outcome.sets]
    return answers, sets


def population(point: ComparisonPoint, seed: int) -> list[UserStream]:
    """The point's users, each with a history and at most `QUERIES` queries.

    Generated, they are new for every repetition. From data, they are drawn without looking at the repetition as long as
    there are users that no earlier repetition had, and at random once there are none.

    Raises:
        DataError: no user of the task has both a history and queries.
    """
    if point.data is None:
        task: Any = point.task
        found = generate_users(point.users, UserSettings(tasks=(task,)), seed)
    else:
        usable = [
            stream
            for stream in read_lamp_folders(point.data)
            if stream.task == point.task and stream.history and stream.queries
        ]
        if not usable:
            raise DataError(f"{point.data}: no user of task '{point.task}' has a history and a query")
        order = torch.randperm(len(usable), generator=named_generator(0, "users", point.task)).tolist()
        start = point.repeat * point.users
        chosen = order[start : start + point.users]
        if len(chosen) < min(point.users, len(usable)):
            shuffled = torch.randperm(len(usable), generator=named_generator(seed, "users")).tolist()
            chosen = shuffled[: point.users]
        found = [usable[index] for index in chosen]
    return [replace(stream, queries=stream.queries[:QUERIES]) for stream in found]


@dataclass(frozen=True)
class _Outcome:
    """Rows of one method on one device, without what the point's rows share."""

    device: str
    answers: list[Row]
    sets: list[Row]


@dataclass(frozen=True)
class _Answer:
    """An answer, and the domain of the set that it was generated with (empty: unknown, or none)."""

    text: str
    found: str = ""


class _Bench:
    """Users, and everything that several methods use: made once, kept until the point is done."""

    def __init__(
        self,
        lm: LanguageModel,
        settings: PromptSettings,
        users: Sequence[UserStream],
        configs: Mapping[str, CrossbarConfig],
        seed: int,
        on_step: Callable[[], None],
    ) -> None:
        self.lm = lm
        self.settings = settings
        self.users = users
        self.configs = configs
        self.seed = seed
        self.on_step = on_step
        self.samples = [sample for user in users for sample in user.history]
        self._personalisers: dict[LevelNoise, Personaliser] = {}
        self._chosen: dict[str, list[tuple[str, CodeJob]]] = {}
        self._tuned: dict[tuple[Any, ...], list[TunedCode]] = {}

    def on_crossbars(self, method: Method) -> list[_Outcome]:
        """The method on every device."""
        owned = self._jobs(method)
        outcomes = []
        for device, config in self.configs.items():
            personaliser = self._personaliser(method, config)
            jobs = [replace(job, config=config) for _, job in owned]
            tuned = self._tune(method, personaliser, jobs, device)
            memories = self._written(method, personaliser, config, [user for user, _ in owned], jobs, tuned)
            answers = self._answered(method, personaliser, memories)
            sets = self._sets(personaliser, memories, [user for user, _ in owned], tuned, config)
            outcomes.append(_Outcome(device, answers, sets))
        return outcomes

    def digital(self, name: str) -> list[_Outcome]:
        """A baseline without a crossbar, fitted to each user."""
        baseline = get_baseline(name)
        settings = BaselineSettings(tokens=self.settings.tuning.tokens, steps=self.settings.tuning.steps)
        answers: list[Row] = []
        sets: list[Row] = []
        for user in self.users:
            samples = [
                (s.input, s.output) for s in spread_evenly(user.history, self.settings.one_for_all_samples)
            ]
            fitted = baseline.fit(self.lm, samples, settings, named_seed(self.seed, name, user.user_id))
            fit = [query for query in user.queries if self.fits(query)]
            texts = fitted.answer([q.input for q in fit], self.settings.max_new_tokens) if fit else []
            said = dict(zip([query.seq for query in fit], texts, strict=True))
            answers += [_answer_row(user, query, _Answer(said.get(query.seq, ""))) for query in user.queries]
            cost = fitted.cost
            sets.append(
                {
                    "user_id": user.user_id,
                    "sets": int(cost.storage_bytes > 0),
                    "storage_bytes": cost.storage_bytes,
                    "trained_parameters": cost.trained_parameters,
                    "tuning_steps": cost.steps,
                    "trained_tokens": cost.trained_tokens,
                    "reconstruction_error": None,
                    "truncated": cost.shortened,
                    "unanswered": len(user.queries) - len(fit),
                    "failed": int(cost.failed),
                }
            )
        return [_Outcome(NO_DEVICE, answers, sets)]

    def _personaliser(self, method: Method, config: CrossbarConfig) -> Personaliser:
        """LM and autoencoder: trained with the device's noise, or without any."""
        noise = _QUIET
        if method.code == "noise-aware":
            noise = level_noise(config, settings=self.settings.noise)
        if noise not in self._personalisers:
            self._personalisers[noise] = Personaliser.fit(
                self.lm, self.samples, self.settings, self.seed, noise
            )
        return self._personalisers[noise]

    def _jobs(self, method: Method) -> list[tuple[str, CodeJob]]:
        """(user, job) for all users, one full buffer after the other."""
        kind = "one-for-all" if method.one_for_all else method.choice
        if kind in self._chosen:
            return self._chosen[kind]
        personaliser = self._personaliser(method, next(iter(self.configs.values())))
        config, size = next(iter(self.configs.values())), self.settings.buffer
        owned: list[tuple[str, CodeJob]] = []
        for user in self.users:
            own = named_seed(self.seed, "jobs", user.user_id)
            if method.one_for_all:
                samples = spread_evenly(user.history, self.settings.one_for_all_samples)
                owned.append((user.user_id, personaliser.one_for_all_job(samples, config, own)))
                continue
            for start in range(0, len(user.history), size):
                part = user.history[start : start + size]
                jobs = personaliser.jobs(part, config, named_seed(own, start), method)
                owned += [(user.user_id, job) for job in jobs]
        self._chosen[kind] = owned
        return owned

    def _tune(
        self, method: Method, personaliser: Personaliser, jobs: Sequence[CodeJob], device: str
    ) -> list[TunedCode]:
        """Tuned sets; those that no device has a part in are tuned once for all devices."""
        regularised = method.mitigation.name if method.regularises else ""
        bound = "" if method.noise == "off" and method.code == "plain" else device
        key = (bound, method.noise, method.code, method.choice, method.one_for_all, regularised)
        if key not in self._tuned:
            self._tuned[key] = personaliser.tune(jobs, method, self.on_step)
        return self._tuned[key]

    def _written(
        self,
        method: Method,
        personaliser: Personaliser,
        config: CrossbarConfig,
        owners: Sequence[str],
        jobs: Sequence[CodeJob],
        tuned: Sequence[TunedCode],
    ) -> dict[str, PromptMemory]:
        """Each user's memory, written; a user's chip is the same for every method."""
        importance = personaliser.importance(jobs, tuned) if method.mitigation.needs_importance else None
        codes = torch.stack([one.codes for one in tuned])
        compensator = personaliser.compensator(
            codes, config, method.mitigation, named_generator(self.seed, "compensator", config.device)
        )
        memories = {}
        for user, places in _places(owners).items():
            memory = personaliser.new_memory(config, len(places), method.mitigation, compensator)
            memory.write_all(
                codes[places],
                [tuned[place].label for place in places],
                [named_generator(self.seed, user, config.device, i) for i in range(len(places))],
                None if importance is None else importance[places],
            )
            memories[user] = memory
        return memories

    def _answered(
        self, method: Method, personaliser: Personaliser, memories: Mapping[str, PromptMemory]
    ) -> list[Row]:
        """Search and answer all queries; a question that does not fit the context stays unanswered."""
        asked: list[tuple[UserStream, Sample]] = []
        tokens: list[Tensor] = []
        labels: list[str] = []
        for user in self.users:
            queries = [query for query in user.queries if self.fits(query)]
            if not queries:
                continue
            memory = memories[user.user_id]
            codes = personaliser.encode_queries([query.input for query in queries])
            places, _, found = personaliser.find(memory, codes, method)
            slots = memory.slots
            asked += [(user, query) for query in queries]
            labels += [slots[place].label or "" for place in places]
            tokens += found
        texts: list[str] = []
        for start in range(0, len(asked), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            questions = [query.input for _, query in asked[some]]
            answers = generate(self.lm, questions, tokens[some], self.settings.max_new_tokens)
            texts += [answer.text for answer in answers]
        said = {
            (user.user_id, query.seq): _Answer(text, label)
            for (user, query), text, label in zip(asked, texts, labels, strict=True)
        }
        return [
            _answer_row(user, query, said.get((user.user_id, query.seq), _Answer("")))
            for user in self.users
            for query in user.queries
        ]

    def _sets(
        self,
        personaliser: Personaliser,
        memories: Mapping[str, PromptMemory],
        owners: Sequence[str],
        tuned: Sequence[TunedCode],
        config: CrossbarConfig,
    ) -> list[Row]:
        rows = []
        places_of = _places(owners)
        for user in self.users:
            places, memory = places_of[user.user_id], memories[user.user_id]
            results = [tuned[place].result for place in places]
            wanted = torch.stack([result.tokens for result in results])
            back = torch.stack([personaliser.decode(memory.read(i)) for i in range(len(places))])
            stored_bits = len(places) * memory.tokens * memory.code * config.weight_bits
            rows.append(
                {
                    "user_id": user.user_id,
                    "sets": len(places),
                    "storage_bytes": -(-stored_bits // 8) + SCALE_BYTES * len(places),
                    "trained_parameters": int(wanted.numel()),
                    "tuning_steps": sum(result.steps for result in results),
                    "trained_tokens": sum(result.trained_tokens for result in results),
                    "reconstruction_error": float((back - wanted).norm() / wanted.norm().clamp_min(1e-30)),
                    "truncated": sum(result.truncated for result in results),
                    "unanswered": sum(not self.fits(query) for query in user.queries),
                    "failed": sum(result.stopped == "not finite" for result in results),
                }
            )
        return rows

    def fits(self, query: Sample) -> bool:
        """Whether a question leaves room for virtual tokens and an answer; a question is never cut."""
        taken = self.settings.tuning.tokens + self.settings.max_new_tokens
        return len(self.lm.question_ids(query.input)) + taken <= self.lm.context


def _places(owners: Sequence[str]) -> dict[str, list[int]]:
    """Which jobs are whose."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, user in enumerate(owners):
        places[user].append(place)
    return places


def _answer_row(user: UserStream, query: Sample, answer: _Answer) -> Row:
    graded = grade(query.task, answer.text, query.output)
    domain = query.domain or ""
    return {
        "user_id": user.user_id,
        "query": query.seq,
        "domain": domain,
        "found": answer.found,
        "hit": answer.found == domain if answer.found and domain else None,
        "domains": len({sample.domain for sample in user.history if sample.domain}),
        "reference": query.output,
        "output": answer.text,
        "parsed": graded.parsed,
        "score": graded.score,
        "rouge_l": graded.rouge_l,
        "error": graded.error,
    }


@functools.lru_cache(maxsize=1)
def _loaded(model: str) -> LanguageModel:
    """The point's LM; a worker works off many points of one model."""
    return LanguageModel.load(model)


KNOWN_METHODS = (*METHODS, *BASELINES)
"""Every method that a point may name."""
