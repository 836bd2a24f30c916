"""The HTTP endpoints: a FastAPI app that validates, asks two clients, and shapes their answers.

Whatever a client of the API sends, it gets an answer or a 4xx with the reason in OpenAI's error shape.
"""

import asyncio
import base64
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

import nvcim
from nvcim.prompts.stop_texts import cut_at_stop
from serving import images
from serving.backends import (
    Completion,
    CompletionJob,
    LanguageClient,
    Offer,
    Refusal,
    RequestError,
    SegmentationClient,
)
from serving.metrics import RequestMetrics
from serving.schemas import (
    Choice,
    CompletionRequest,
    CompletionResponse,
    ErrorBody,
    ErrorResponse,
    Health,
    ModelCard,
    ModelList,
    Retrieval,
    SegmentResponse,
    Usage,
)

MAX_JSON_BYTES = 2**20
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 413, 422, 429, 503)
}
_COMPLETION_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": CompletionRequest.model_json_schema()}},
    }
}
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)


def create_api(
    language: LanguageClient | None, segmentation: SegmentationClient | None, metrics: RequestMetrics
) -> FastAPI:
    """Return the app; a client is None where the run that is served holds nothing for it."""
    api = FastAPI(title="nvcim", version=nvcim.__version__, responses=_ERRORS)
    _answer_errors(api)
    _add_metrics(api, metrics)
    _add_information(api, language, segmentation)

    @api.post("/v1/completions", response_model=CompletionResponse, openapi_extra=_COMPLETION_BODY)
    async def complete(request: Request) -> Response:
        """Complete prompts with the virtual tokens that the user's prompt memory returns for them."""
        body = parse_json(await read_body(request, MAX_JSON_BYTES), CompletionRequest)
        if language is None:
            raise RequestError(Refusal(404, "this run holds no nodes", code="model_not_found"))
        model = choose_model(body.model, await language.offer())
        stops = tuple(body.stops)
        jobs = [CompletionJob(body.user, prompt, body.max_tokens or 16, stops) for prompt in body.prompts]
        return _json(_completion_response(body, model, await language.complete(jobs)))

    @api.post("/v1/segment", response_model=SegmentResponse, openapi_extra=_IMAGE_BODY)
    async def segment(
        request: Request,
        model: Annotated[str | None, Query(description="name of a trained FCN, see /v1/models")] = None,
        kind: Annotated[
            Literal["json", "png"], Query(alias="format", description="png answers the mask alone")
        ] = "json",
        scale: Annotated[
            float,
            Query(ge=0.05, le=8, allow_inf_nan=False, description="resize by this before the model sees it"),
        ] = 1.0,
    ) -> Response:
        """Segment the image in the body, or the one file of a form in it: PNG, JPEG, TIFF or BMP."""
        _refuse_unknown_parameters(request, {"model", "format", "scale"})
        if segmentation is None:
            raise RequestError(Refusal(404, "this run holds no FCN", code="model_not_found"))
        name = choose_model(model, await segmentation.offer())
        content = await read_body(request, images.MAX_BYTES)
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            content = await images.file_of_form(content, request.headers)
        image = await run_in_threadpool(images.read_upload, content, scale)
        mask = await segmentation.segment(image, name, scale)
        return await run_in_threadpool(_segment_response, name, mask, kind)

    return api


def choose_model(name: str | None, offer: Offer) -> str:
    """Return the model asked for, the first offered one where none was.

    Raises:
        RequestError: 404, listing the models that there are.
    """
    if name is None:
        return offer.models[0]
    if name not in offer.models:
        message = f"model '{name}' is not served; available: {', '.join(offer.models)}"
        raise RequestError(Refusal(404, message, param="model", code="model_not_found"))
    return name


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body, read no further than `limit` bytes.

    Raises:
        RequestError: 413 for a longer body.
    """
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise RequestError(Refusal(413, f"the body is larger than {limit} bytes"))
    return bytes(content)


def parse_json(content: bytes, kind: type[Model]) -> Model:
    """Validate a JSON body.

    Raises:
        RequestError: 400 that names the field, and the allowed ones where it does not exist.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = next((part for part in first["loc"] if isinstance(part, str)), None)
        if first["type"] == "extra_forbidden":
            message = f"unknown field '{field}'; allowed: {', '.join(kind.model_fields)}"
        elif field is None:
            message = f"body: {first['msg']}"
        else:
            message = f"field '{field}': {first['msg'].removeprefix('Value error, ')}"
        raise RequestError(Refusal(400, message, param=field)) from error


def _completion_response(
    body: CompletionRequest, model: str, completions: Sequence[Completion]
) -> CompletionResponse:
    """Shape completions of the prompts of one request as OpenAI does."""
    choices = []
    for index, (prompt, done) in enumerate(zip(body.prompts, completions, strict=True)):
        cut = cut_at_stop(done.text, body.stops)  # whatever a backend writes, no client gets a stop text
        choices.append(
            Choice(
                index=index,
                text=(prompt if body.echo else "") + (done.text if cut is None else cut),
                finish_reason=done.finish_reason if cut is None else "stop",
                nvcim=Retrieval(slot=done.slot, score=done.score),
            )
        )
    read = sum(done.prompt_tokens for done in completions)
    added = sum(done.completion_tokens for done in completions)
    return CompletionResponse(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=Usage(prompt_tokens=read, completion_tokens=added, total_tokens=read + added),
    )


def _segment_response(model: str, mask: np.ndarray, kind: Literal["json", "png"]) -> Response:
    """Shape an instance map as JSON with counts, or as the PNG alone."""
    png = images.encode_mask(mask)
    instances = images.list_instances(mask)
    if kind == "png":
        headers = {"X-Instance-Count": str(len(instances))}
        return Response(png, media_type="image/png", headers=headers)
    height, width = mask.shape
    return _json(
        SegmentResponse(
            model=model,
            width=width,
            height=height,
            count=len(instances),
            foreground=float(np.count_nonzero(mask) / mask.size),
            instances=instances,
            mask_png=base64.b64encode(png).decode("ascii"),
        )
    )


def _add_information(
    api: FastAPI, language: LanguageClient | None, segmentation: SegmentationClient | None
) -> None:
    """Add the endpoints that say what is served."""

    async def offers() -> tuple[Offer, Offer]:
        async def nothing() -> Offer:
            return Offer()

        asked: list[Awaitable[Offer]] = [
            client.offer() if client is not None else nothing() for client in (language, segmentation)
        ]
        texts, pictures = await asyncio.gather(*asked)
        return texts, pictures

    @api.get("/healthz", response_model=Health)
    async def healthz() -> Response:
        """Answer 200 where every backend answers."""
        texts, pictures = await offers()
        return _json(Health(users=texts.users, models=[*texts.models, *pictures.models]))

    @api.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """List the language model and the FCNs."""
        texts, pictures = await offers()
        cards = [ModelCard(id=name, created=texts.created, task="completion") for name in texts.models]
        cards += [
            ModelCard(id=name, created=pictures.created, task="segmentation") for name in pictures.models
        ]
        return _json(ModelList(data=cards))


def _add_metrics(api: FastAPI, metrics: RequestMetrics) -> None:
    """Count and time requests by route (never by user) and status."""

    @api.middleware("http")
    async def observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        status = 500
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            route = getattr(request.scope.get("route"), "path", "other")
            metrics.answered(route, status, time.perf_counter() - began)


def _answer_errors(api: FastAPI) -> None:
    """Give every error OpenAI's shape."""

    @api.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return error_response(error.refusal)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return error_response(Refusal(400, f"parameter '{name}': {first['msg']}", param=name))

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(Refusal(error.status_code, detail), error.headers)

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(Refusal(500, "the server failed on this request; its log says why"))


def error_response(refusal: Refusal, headers: Any = None) -> Response:
    """Return a refusal as a JSON response."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    if refusal.status == 429:
        kind = "rate_limit_error"
    body = ErrorBody(
        message=_printable(refusal.message),
        type=kind,
        param=None if refusal.param is None else _printable(refusal.param),
        code=refusal.code,
    )
    extra = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return _json(ErrorResponse(error=body), refusal.status, {**(headers or {}), **extra})


def _printable(text: str) -> str:
    """Keep a message that quotes a request short and encodable."""
    return text[:1000].encode("utf-8", "backslashreplace").decode("utf-8")


def _refuse_unknown_parameters(request: Request, allowed: set[str]) -> None:
    """Refuse query parameters that do not exist, so that a misspelt one is not ignored."""
    for name in request.query_params:
        if name not in allowed:
            message = f"unknown parameter '{name}'; allowed: {', '.join(sorted(allowed))}"
            raise RequestError(Refusal(400, message, param=name))


def _json(content: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Serialize with pydantic, which writes NaN as null where JSON has no word for it."""
    return Response(content.model_dump_json(), status, headers, media_type="application/json")
