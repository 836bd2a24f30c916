"""Requests and responses of the endpoints, shaped like OpenAI's completions API where one exists.

Fields that the platform cannot honour are known by name, so that a client learns which field to drop instead
of getting an answer that silently ignored it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_PROMPTS = 64
MAX_COMPLETION_TOKENS = 512


def _only(*allowed: object) -> AfterValidator:
    """Accept null and `allowed`; refuse what would change the answer in a way that is not supported."""

    def check(value: object) -> object:
        if value is not None and value not in allowed:
            listed = ", ".join(str(choice).lower() for choice in allowed) or "null"
            raise ValueError(f"not supported; allowed: {listed}")
        return value

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1)]


class CompletionRequest(BaseModel):
    """Body of `POST /v1/completions`. Decoding is greedy, so `seed` is accepted and changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = Field(None, description="language model of the run; null takes the one it has")
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    user: Text = Field(description="selects the node whose prompt memory is searched")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_COMPLETION_TOKENS)] | None = 16
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    echo: bool | None = False
    seed: int | None = None
    temperature: Annotated[float | None, _only(0)] = None
    top_p: Annotated[float | None, _only(1)] = None
    n: Annotated[int | None, _only(1)] = None
    best_of: Annotated[int | None, _only(1)] = None
    stream: Annotated[bool | None, _only(False)] = None
    stream_options: Annotated[dict[str, Any] | None, _only()] = None
    logprobs: Annotated[int | None, _only()] = None
    suffix: Annotated[str | None, _only("")] = None
    presence_penalty: Annotated[float | None, _only(0)] = None
    frequency_penalty: Annotated[float | None, _only(0)] = None
    logit_bias: Annotated[dict[str, float] | None, _only({})] = None

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list, whichever way they were given."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        """The stop texts as a list, empty where none was given."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Retrieval(BaseModel):
    """What the prompt memory returned for a prompt: the slot, and its similarity as the crossbar read it."""

    slot: int | None
    score: float | None


class Choice(BaseModel):
    """One completion; `nvcim` is this platform's addition to OpenAI's fields."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]
    nvcim: Retrieval


class Usage(BaseModel):
    """Tokens read and added, summed over the choices; virtual tokens count as read.

    Added are those of the returned text: neither an end of text nor what lies behind a stop text.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """Answer of `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Instance(BaseModel):
    """One segmented object: its value in the mask, its area, its bounding box [left, top, right, bottom)."""

    label: int
    area_px: int
    box_px: tuple[int, int, int, int]


class SegmentResponse(BaseModel):
    """Answer of `POST /v1/segment`; the mask is a base64 16-bit PNG of the image's size, 0 is background."""

    model: str
    width: int
    height: int
    count: int
    foreground: float = Field(description="share of the pixels that belong to an object")
    instances: list[Instance]
    mask_png: str


class ModelCard(BaseModel):
    """One entry of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nvcim"
    task: Literal["completion", "segmentation"]


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Answer of `GET /healthz`."""

    status: Literal["ok"] = "ok"
    users: int = Field(description="nodes whose prompt memory can be searched")
    models: list[str]


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Answer of every endpoint whose status is 4xx or 5xx."""

    error: ErrorBody
