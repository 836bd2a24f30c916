"""From a user's samples to token sets in a prompt memory, and from a question to an answer: NVCiM-PT put together.

A token set has two parts. Its first `key_tokens` start as the representative's question, as the LM sees it, and move
little: the search finds the set by them. The rest start as the representative's answer and move freely. A query fills
the first part only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from nvcim.config import Settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import Sample
from nvcim.errors import DataError
from nvcim.mitigation import Mitigation
from nvcim.prompts.autoencoder import AutoencoderSettings, TokenAutoencoder, train_autoencoder
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.memory import PromptMemory, Replacement
from nvcim.prompts.methods import NVCIM_PT, Method
from nvcim.prompts.noise import (
    LevelNoise,
    LevelNoiseSettings,
    add_level_noise,
    crossbar_in_the_loop,
    level_noise,
)
from nvcim.prompts.representation import represent
from nvcim.prompts.search import SearchSettings, blend
from nvcim.prompts.selection import SelectionSettings, select_representatives
from nvcim.prompts.sentence_encoder import EmbeddingSource, text_embedder
from nvcim.prompts.tuning import Perturbation, TuningJob, TuningResult, TuningSettings, loss_gradients, tune
from nvcim.randomness import named_generator, named_seed

AUTOENCODER_SAMPLES = 256
"""About how many samples' starting sets the autoencoder is fitted to, beside the token embeddings."""


class PromptSettings(Settings):
    """How a node makes token sets of its stream and finds them again; of the values only `buffer` is the paper's."""

    buffer: int = Field(25, ge=1, description="samples in the data buffer (the paper's Table I)")
    selection: SelectionSettings = SelectionSettings()
    embedding: EmbeddingSource | None = Field(
        None, description="what selection clusters; null: the keys of the search, averaged"
    )
    neighbours: int = Field(
        1, ge=1, description="samples a set is tuned on: the representative and its nearest"
    )
    key_tokens: int = Field(2, ge=1, description="tokens of a set that the search goes by")
    key_mobility: float = Field(
        0.1, ge=0, le=1, description="how far key tokens move, relative to the others"
    )
    layer: int = Field(2, ge=0, description="hidden layer of the LM that represents texts")
    capacity: int = Field(32, ge=1, description="token sets in a prompt memory")
    replacement: Replacement = Field("oldest", description="which set a full memory gives up")
    search: SearchSettings = SearchSettings()
    blended: int = Field(
        1, ge=1, description="best sets whose codes are blended for an answer; 1: the best alone"
    )
    blend_temperature: float = Field(
        0.1, gt=0, description="of the blend's weights, relative to a query's largest score"
    )
    noise: LevelNoiseSettings = LevelNoiseSettings()
    noise_factor: float = Field(
        1.0, ge=0, description="noise while tokens are tuned, relative to the device's"
    )
    one_for_all_samples: int = Field(
        12, ge=1, description="samples that the one-for-all baseline is tuned on"
    )
    tuning: TuningSettings = TuningSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    max_new_tokens: int = Field(24, ge=1)

    @model_validator(mode="after")
    def _keys_fit(self) -> "PromptSettings":
        if self.key_tokens >= self.tuning.tokens:
            raise ValueError(
                f"key_tokens is {self.key_tokens}, but a set has {self.tuning.tokens} tokens and needs one that is free"
            )
        return self


@dataclass(frozen=True)
class CodeJob:
    """A token set to be tuned for a crossbar.

    Attributes:
        job: what is tuned.
        config: the array that the set will be written to.
        label: what the set is for: its representative's domain, empty where unknown.
        choice: how its representative was chosen, a row of `Selection.log_rows`; empty where nothing was chosen.
    """

    job: TuningJob
    config: CrossbarConfig
    label: str
    choice: Mapping[str, str | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class TunedCode:
    """A tuned set's code [n, code], its label, and the loss it started and ended with."""

    codes: Tensor
    label: str
    result: TuningResult


@dataclass(frozen=True)
class Personaliser:
    """The frozen LM, the autoencoder and the settings that a host's nodes share."""

    lm: LanguageModel
    autoencoder: TokenAutoencoder
    settings: PromptSettings

    @classmethod
    def fit(
        cls,
        lm: LanguageModel,
        samples: Sequence[Sample],
        settings: PromptSettings,
        seed: int,
        noise: LevelNoise | None = None,
    ) -> "Personaliser":
        """Train the autoencoder on the LM's token embeddings and on the token sets that tuning would start from.

        Args:
            lm: the frozen model.
            samples: of users, as they come.
            settings: of everything that follows too.
            seed: of the autoencoder's training.
            noise: of the device that codes will be written to; None takes `settings.autoencoder.noise`.

        Raises:
            ConfigError: the LM has fewer layers than `settings.layer`.
            DataError: no samples.
        """
        if not samples:
            raise DataError("personaliser: there are no samples to fit the autoencoder to")
        sets = starting_sets(lm, samples[:: max(1, len(samples) // AUTOENCODER_SAMPLES)], settings)
        own_seed = named_seed(seed, "autoencoder")
        vectors = lm.embedding_weight.float()
        autoencoder = train_autoencoder(vectors, settings.autoencoder, own_seed, noise, sets)
        return cls(lm, autoencoder.to(lm.device), settings)

    @property
    def code_width(self) -> int:
        """Width of a token's code."""
        return self.autoencoder.code

    def new_memory(
        self,
        config: CrossbarConfig,
        capacity: int,
        mitigation: Mitigation | None = None,
        compensator: nn.Module | None = None,
    ) -> PromptMemory:
        """An empty memory for this LM's codes."""
        tokens, replacement = self.settings.tuning.tokens, self.settings.replacement
        return PromptMemory(config, tokens, self.code_width, capacity, mitigation, compensator, replacement)

    def jobs(
        self, samples: Sequence[Sample], config: CrossbarConfig, seed: int, method: Method = NVCIM_PT
    ) -> list[CodeJob]:
        """What to tune for a drained buffer: a job per representative sample, or per sample drawn at random.

        Raises:
            DataError: an empty buffer.
            ModelError: a sentence encoder that cannot be used.
        """
        settings, texts = self.settings, [sample.input for sample in samples]
        keys = represent(self.lm, texts, settings.key_tokens, settings.layer)
        clustered = keys.mean(1)
        if settings.embedding is not None:
            clustered = text_embedder(settings.embedding, self.lm)(texts)
        selection = select_representatives(clustered, settings.selection, named_seed(seed, "k-means"))
        if method.choice == "random":
            drawn = torch.randperm(len(samples), generator=named_generator(seed, "random choice"))
            groups: list[tuple[int, ...]] = [(int(index),) for index in drawn[: selection.k]]
            log: list[dict[str, str | int | float | None]] = [{} for _ in groups]
        else:
            groups = [near[: settings.neighbours] for near in selection.neighbours]
            log = selection.log_rows()
        jobs = []
        for near, row in zip(groups, log, strict=True):
            first = samples[near[0]]
            taught, name = [samples[i] for i in near], f"{first.user_id}/{first.seq}"
            job = self._job(name, taught, keys[near[0]], seed)
            jobs.append(CodeJob(job, config, first.domain or "", row))
        return jobs

    def one_for_all_job(self, samples: Sequence[Sample], config: CrossbarConfig, seed: int) -> CodeJob:
        """One job on all samples at once, whatever their domain."""
        keys = represent(self.lm, [samples[0].input], self.settings.key_tokens, self.settings.layer)
        return CodeJob(self._job(f"{samples[0].user_id}/all", samples, keys[0], seed), config, "")

    def tune(
        self, jobs: Sequence[CodeJob], method: Method, on_step: Callable[[], None] = lambda: None
    ) -> list[TunedCode]:
        """Tune all jobs' tokens as they will come back from the array: through code, the method's noise and decoder."""
        sigmas = torch.tensor([entry.config.sigma for entry in jobs])

        def penalty(tokens: Tensor, places: Sequence[int]) -> Tensor:
            added = method.mitigation.penalty(self.autoencoder.encode(tokens), sigmas[list(places)])
            return tokens.new_zeros(len(tokens)) if added is None else added

        results = tune(
            self.lm,
            [entry.job for entry in jobs],
            self.settings.tuning,
            self._seen_by_lm(jobs, method),
            on_step,
            penalty if method.regularises else None,
        )
        return [
            TunedCode(self.autoencoder.encode(result.tokens).cpu(), entry.label, result)
            for entry, result in zip(jobs, results, strict=True)
        ]

    def importance(self, jobs: Sequence[CodeJob], tuned: Sequence[TunedCode]) -> Tensor:
        """How much each job's loss depends on each element of its code: squared gradients [jobs, n, code].

        The diagonal of the empirical Fisher matrix, which stands for the second derivatives that SWIM ranks by.
        """
        codes = torch.stack([one.codes for one in tuned]).to(self.lm.device).requires_grad_()
        tokens = self.autoencoder.decode(codes)
        slopes = loss_gradients(
            self.lm, [entry.job for entry in jobs], list(tokens.detach()), self.settings.tuning
        )
        (found,) = torch.autograd.grad([tokens], [codes], [torch.stack(slopes).to(tokens)])
        return found.cpu().square().nan_to_num(0.0, 0.0, 0.0)  # a job that is not finite has no order to give

    def compensator(
        self, codes: Tensor, config: CrossbarConfig, mitigation: Mitigation, generator: torch.Generator
    ) -> nn.Module | None:
        """What the mitigation trains to undo the device's noise in codes [k, n, code] that are read back."""
        noise, n = level_noise(config, settings=self.settings.noise), codes.shape[1]

        def perturb(picked: Tensor, drawn: torch.Generator) -> Tensor:
            # In sets of n: a set's largest element scales its noise.
            sets = torch.split(picked, n)
            return torch.cat([add_level_noise(some[None], [noise], [drawn])[0] for some in sets])

        return mitigation.compensator(codes.flatten(0, 1), perturb, generator)

    def encode_queries(self, questions: Sequence[str]) -> Tensor:
        """Query codes [questions, n, code]; the part that is free in a stored set stays zero."""
        keys = represent(self.lm, questions, self.settings.key_tokens, self.settings.layer)
        codes = self.autoencoder.encode(keys)
        return functional.pad(codes, (0, 0, 0, self.settings.tuning.tokens - self.settings.key_tokens))

    def find(
        self, memory: PromptMemory, queries: Tensor, method: Method
    ) -> tuple[list[int], list[float], list[Tensor]]:
        """Search a memory for encoded queries [batch, n, code].

        Returns:
            Per query the best place, its score, and the virtual tokens [n, hidden] that stand for it: those of the best
            set, or of a blend of the best `settings.blended`.

        Raises:
            DataError: the memory is empty.
        """
        settings = self.settings
        scores = memory.search(queries, method.scales, settings.search)
        best = scores.max(dim=1)
        places = best.indices.tolist()
        if settings.blended == 1:
            codes = [memory.read(place) for place in places]
        else:
            weights = blend(scores, settings.blended, settings.blend_temperature)
            codes = list(memory.read_blended(weights))
        return places, best.values.tolist(), [self.decode(code) for code in codes]

    def decode(self, codes: Tensor) -> Tensor:
        """Virtual tokens [n, hidden] of a code [n, code] that was read from an array."""
        return self.autoencoder.decode(codes.to(self.lm.device))

    def _seen_by_lm(self, jobs: Sequence[CodeJob], method: Method) -> Perturbation:
        """What tokens become on their way through the array, by the method's tuning noise."""
        encode, decode = self.autoencoder.encode, self.autoencoder.decode
        factor, form = self.settings.noise_factor, self.settings.noise
        levels = [level_noise(entry.config, factor, form) for entry in jobs]

        def clean(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
            return decode(encode(tokens))

        def by_levels(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
            return decode(add_level_noise(encode(tokens), [levels[place] for place in places], generators))

        def on_arrays(tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
            configs = [jobs[place].config for place in places]
            return decode(crossbar_in_the_loop(encode(tokens), configs, generators))

        return {"off": clean, "levels": by_levels, "crossbar": on_arrays}[method.noise]

    def _job(self, name: str, taught: Sequence[Sample], keys: Tensor, seed: int) -> TuningJob:
        """A job that starts from a question's representation and the first taught answer's embeddings."""
        free = self.settings.tuning.tokens - self.settings.key_tokens
        start = _start(self.lm, keys, taught[0].output, free)
        mobility = torch.tensor([self.settings.key_mobility] * len(keys) + [1.0] * free)
        pairs = tuple((sample.input, sample.output) for sample in taught)
        return TuningJob(name, pairs, start, mobility, named_seed(seed, name))


def starting_sets(lm: LanguageModel, samples: Sequence[Sample], settings: PromptSettings) -> Tensor:
    """Token sets [samples, n, hidden] from which tuning would start, one per sample."""
    keys = represent(lm, [sample.input for sample in samples], settings.key_tokens, settings.layer)
    free = settings.tuning.tokens - settings.key_tokens
    return torch.stack(
        [_start(lm, own, sample.output, free) for own, sample in zip(keys, samples, strict=True)]
    )


def _start(lm: LanguageModel, keys: Tensor, answer: str, free: int) -> Tensor:
    """A token set [keys + free, hidden] before it is tuned: a question's keys, and the answer's embeddings, pooled."""
    ids = torch.tensor([lm.answer_ids(answer)], device=lm.device)
    embedded = lm.embed(ids)[0].detach().float()
    return torch.cat([keys, functional.adaptive_avg_pool1d(embedded.T[None], free)[0].T])
