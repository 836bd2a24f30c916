"""From a user's samples to token sets in a prompt memory, and from a question to an answer: NVCiM-PT put together.

A token set has two parts. Its first `key_tokens` start as the representative's question, as the LM sees it, and move
little: the search finds the set by them. The rest start as the representative's answer and move freely. A query fills
the first part only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from nvcim.config import Settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import Sample
from nvcim.errors import ConfigError
from nvcim.prompts.autoencoder import AutoencoderSettings, TokenAutoencoder, train_autoencoder
from nvcim.prompts.language_model import LanguageModel
from nvcim.prompts.memory import PromptMemory
from nvcim.prompts.noise import add_level_noise, level_noise
from nvcim.prompts.representation import represent
from nvcim.prompts.search import MIPS, SCALED_SEARCH
from nvcim.prompts.selection import select_representatives
from nvcim.prompts.tuning import TuningJob, TuningResult, TuningSettings, tune
from nvcim.randomness import named_seed

AUTOENCODER_TEXTS = 256
"""Most texts whose representations the autoencoder is fitted to, beside the token embeddings."""


class PromptSettings(Settings):
    """How a node turns its stream into token sets."""

    buffer: int = Field(25, ge=1, description="samples in the data buffer (the paper's Table I)")
    representatives: int = Field(3, ge=1, description="k of k-means; the paper's rule for k is not known")
    neighbours: int = Field(
        1, ge=1, description="samples a set is tuned on: the representative and its nearest"
    )
    key_tokens: int = Field(5, ge=1, description="tokens of a set that the search goes by")
    key_mobility: float = Field(
        0.1, ge=0, le=1, description="how far key tokens move, relative to the others"
    )
    layer: int = Field(2, ge=0, description="hidden layer of the LM that represents texts")
    capacity: int = Field(32, ge=1, description="token sets in a prompt memory")
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
class Method:
    """A way to tune for a crossbar and to search it.

    Attributes:
        name: as tables show it.
        noise_share: training noise relative to what the cells will do; 1 is noise-aware, 0 ignores them.
        scales: window length -> weight of the search.
    """

    name: str
    noise_share: float
    scales: Mapping[int, float]


NVCIM_PT = Method("nvcim-pt", 1.0, SCALED_SEARCH)
NO_MITIGATION = Method("mips", 0.0, MIPS)
"""The paper's first baseline: ordinary tokens, plain inner products."""
ONE_FOR_ALL = Method("one-for-all", 1.0, MIPS)
"""One set for everything that a user wrote; with one set stored there is nothing to search for."""
METHODS = {method.name: method for method in (NVCIM_PT, NO_MITIGATION)}


@dataclass(frozen=True)
class CodeJob:
    """A token set to be tuned for a crossbar: the job, the array it will be written to, and what it is for."""

    job: TuningJob
    config: CrossbarConfig
    label: str


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
        cls, lm: LanguageModel, texts: Sequence[str], settings: PromptSettings, seed: int
    ) -> "Personaliser":
        """Train the autoencoder on the LM's token embeddings and on represented texts.

        Raises:
            ConfigError: the LM has fewer layers than `settings.layer`.
        """
        depth = int(lm.model.config.num_hidden_layers)
        if settings.layer > depth:
            raise ConfigError(f"field 'layer' is {settings.layer}; model '{lm.name}' has layers 0 to {depth}")
        step = max(1, len(texts) // AUTOENCODER_TEXTS)
        represented = represent(lm, texts[::step], settings.key_tokens, settings.layer)
        vectors = torch.cat([lm.embedding_weight, represented.flatten(0, 1)])
        autoencoder = train_autoencoder(vectors, settings.autoencoder, named_seed(seed, "autoencoder"))
        return cls(lm, autoencoder.to(lm.device), settings)

    @property
    def code_width(self) -> int:
        """Width of a token's code."""
        return int(self.autoencoder.encoder.out_features)

    def new_memory(self, config: CrossbarConfig, capacity: int) -> PromptMemory:
        """An empty memory for this LM's codes."""
        return PromptMemory(config, self.settings.tuning.tokens, self.code_width, capacity)

    def jobs(self, samples: Sequence[Sample], config: CrossbarConfig, seed: int) -> list[CodeJob]:
        """Representative selection over a drained buffer: one job per representative."""
        keys = represent(self.lm, [s.input for s in samples], self.settings.key_tokens, self.settings.layer)
        selection = select_representatives(
            keys.mean(1), self.settings.representatives, named_seed(seed, "k-means")
        )
        jobs = []
        for chosen, near in zip(selection.representatives, selection.neighbours, strict=True):
            taught = [samples[i] for i in near[: self.settings.neighbours]]
            name = f"{samples[chosen].user_id}/{samples[chosen].seq}"
            jobs.append(
                CodeJob(self._job(name, taught, keys[chosen], seed), config, samples[chosen].domain or "")
            )
        return jobs

    def one_for_all_job(self, samples: Sequence[Sample], config: CrossbarConfig, seed: int) -> CodeJob:
        """One job on all samples at once, whatever their domain."""
        keys = represent(self.lm, [samples[0].input], self.settings.key_tokens, self.settings.layer)
        return CodeJob(self._job(f"{samples[0].user_id}/all", samples, keys[0], seed), config, "")

    def tune(
        self, jobs: Sequence[CodeJob], method: Method, on_step: Callable[[], None] = lambda: None
    ) -> list[TunedCode]:
        """Tune all jobs' tokens as they will come back from the array: through code, noise and decoder."""
        noises = [level_noise(entry.config, method.noise_share) for entry in jobs]

        def through_code(
            tokens: Tensor, places: Sequence[int], generators: Sequence[torch.Generator]
        ) -> Tensor:
            codes = self.autoencoder.encode(tokens)
            levels = [noises[place] for place in places]
            return self.autoencoder.decode(add_level_noise(codes, levels, generators))

        results = tune(self.lm, [entry.job for entry in jobs], self.settings.tuning, through_code, on_step)
        return [
            TunedCode(self.autoencoder.encode(result.tokens).cpu(), entry.label, result)
            for entry, result in zip(jobs, results, strict=True)
        ]

    def encode_queries(self, questions: Sequence[str]) -> Tensor:
        """Query codes [questions, n, code]; the part that is free in a stored set stays zero."""
        keys = represent(self.lm, questions, self.settings.key_tokens, self.settings.layer)
        codes = self.autoencoder.encode(keys)
        return functional.pad(codes, (0, 0, 0, self.settings.tuning.tokens - self.settings.key_tokens))

    def decode(self, codes: Tensor) -> Tensor:
        """Virtual tokens [n, hidden] of a code [n, code] that was read from an array."""
        return self.autoencoder.decode(codes.to(self.lm.device))

    def _job(self, name: str, taught: Sequence[Sample], keys: Tensor, seed: int) -> TuningJob:
        """A job that starts from a question's representation and the first taught answer's embeddings."""
        free = self.settings.tuning.tokens - self.settings.key_tokens
        answer = self.lm.embed(torch.tensor([self.lm.answer_ids(taught[0].output)], device=self.lm.device))[0]
        start = torch.cat([keys, functional.adaptive_avg_pool1d(answer.T[None], free)[0].T])
        mobility = torch.tensor([self.settings.key_mobility] * len(keys) + [1.0] * free)
        pairs = tuple((sample.input, sample.output) for sample in taught)
        return TuningJob(name, pairs, start.detach(), mobility, named_seed(seed, name))
