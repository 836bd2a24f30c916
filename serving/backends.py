"""What the ingress asks for: a language backend and a segmentation backend, and how they refuse a request.

The ingress knows these protocols alone; `serving.language` and `serving.segmentation` fill them from a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nvcim.data.images import Pixels


@dataclass(frozen=True)
class CompletionJob:
    """One prompt of one user, to be completed greedily with at most `max_tokens` tokens or up to a stop text."""

    user: str
    prompt: str
    max_tokens: int
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """What was generated for a job; `slot` and `score` say which prompt the user's memory returned.

    `text` is what the model wrote, white space included, up to a stop text; `completion_tokens` are those of `text`.
    """

    text: str
    slot: int | None
    score: float | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: a 4xx or 5xx status and OpenAI's error fields.

    A value and not only an exception, because a refusal crosses processes as part of a batch's results.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None


class RequestError(Exception):
    """A refusal on its way to the client."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True)
class Offer:
    """What a backend can be asked for: its model names, the default first, and how many users it knows."""

    models: tuple[str, ...] = ()
    users: int = 0
    created: int = field(default=0)


class LanguageBackend(Protocol):
    """Completes prompts with the users' own virtual tokens."""

    def offer(self) -> Offer:
        """Name the language model and count the users."""

    def refuse(self, job: CompletionJob) -> Refusal | None:
        """Say why a job cannot be run (unknown user, prompt too long), or None where it can."""

    def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
        """Complete jobs that `refuse` let pass, of any mixture of users, in one batch."""


class SegmentationBackend(Protocol):
    """Segments images."""

    def offer(self) -> Offer:
        """Name the models."""

    def segment(self, image: Pixels, model: str, scale: float) -> NDArray[np.int32]:
        """Return the instance map [height, width] of an RGB image [height, width, 3]; 0 is background.

        `scale` resizes the image before the model sees it; the map has the image's own size all the same.
        """


class LanguageClient(Protocol):
    """A language backend as the ingress sees it; every method may raise RequestError."""

    async def offer(self) -> Offer:
        """As `LanguageBackend.offer`."""

    async def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
        """As `LanguageBackend.complete`, refusing what `LanguageBackend.refuse` refuses."""


class SegmentationClient(Protocol):
    """A segmentation backend as the ingress sees it; every method may raise RequestError."""

    async def offer(self) -> Offer:
        """As `SegmentationBackend.offer`."""

    async def segment(self, image: Pixels, model: str, scale: float) -> NDArray[np.int32]:
        """As `SegmentationBackend.segment`."""
