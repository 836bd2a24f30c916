"""The endpoints over backends that answer deterministically: no model, no Ray."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry

from nvcim.fleet.metrics import PrometheusBackend
from serving.api import create_api, cut_at_stop
from serving.backends import Completion, CompletionJob, Offer, Refusal, RequestError
from serving.images import MAX_PIXELS
from serving.metrics import RequestMetrics
from serving.schemas import CompletionRequest

USERS = {"ada": 0, "bo": 1}


class EchoLanguage:
    """Answers with the user's number and the prompt reversed; refuses as a real backend does."""

    def __init__(self) -> None:
        self.seen: list[list[CompletionJob]] = []

    async def offer(self) -> Offer:
        return Offer(("tiny",), len(USERS), 7)

    async def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
        self.seen.append(list(jobs))
        for job in jobs:
            if job.user not in USERS:
                raise RequestError(Refusal(404, f"user '{job.user}' has no node", "user", "user_not_found"))
            if len(job.prompt) > 200:
                raise RequestError(Refusal(400, "the prompt is too long", "prompt"))
        return [
            Completion(
                job.prompt[::-1], USERS[job.user], float("nan"), len(job.prompt), job.max_tokens, "length"
            )
            for job in jobs
        ]


class ThresholdSegmentation:
    """Labels dark pixels of the left and right half as objects 1 and 2."""

    async def offer(self) -> Offer:
        return Offer(("float", "inq-5"), 0, 7)

    async def segment(self, image: np.ndarray, model: str, scale: float) -> np.ndarray:
        mask = np.where(image.sum(axis=2) < 384, 1, 0).astype(np.int32)
        half = mask.shape[1] // 2
        mask[:, half:] *= 2
        return mask


@pytest.fixture(scope="module")
def language() -> EchoLanguage:
    return EchoLanguage()


@pytest.fixture(scope="module")
def client(language: EchoLanguage) -> Iterator[TestClient]:
    api = create_api(language, ThresholdSegmentation(), own_metrics())
    # Raised server exceptions would fail the test: what counts here is the answer, as over a socket.
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def own_metrics() -> RequestMetrics:
    """Metrics in a registry of their own: the default one takes each name once a process."""
    return RequestMetrics(PrometheusBackend(CollectorRegistry()))


def picture(kind: str = "PNG", size: tuple[int, int] = (12, 8), mode: str = "RGB") -> bytes:
    """A bright image with one dark square in each half."""
    image = Image.new("L", size, 255)
    image.paste(0, (1, 1, 4, 4))
    image.paste(0, (8, 2, 10, 5))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


def error_of(response) -> dict:
    """The error of a response, whose shape is checked on the way."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def test_completion_has_openais_shape(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": "abc", "user": "bo", "max_tokens": 5})
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["object"] == "text_completion"
    assert body["model"] == "tiny"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert body["choices"] == [
        {
            "index": 0,
            "text": "cba",
            "logprobs": None,
            "finish_reason": "length",
            "nvcim": {"slot": 1, "score": None},  # NaN is no JSON
        }
    ]


def test_list_of_prompts_is_one_call_in_order(client: TestClient, language: EchoLanguage) -> None:
    response = client.post("/v1/completions", json={"prompt": ["ab", "cd", "ef"], "user": "ada"})
    assert [choice["text"] for choice in response.json()["choices"]] == ["ba", "dc", "fe"]
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
    assert [job.prompt for job in language.seen[-1]] == ["ab", "cd", "ef"]
    assert {job.max_tokens for job in language.seen[-1]} == {16}


def test_stop_cuts_before_the_earliest_stop_text(client: TestClient) -> None:
    asked = {"prompt": "one two three", "user": "ada", "stop": ["owt", "eno"]}
    choice = client.post("/v1/completions", json=asked).json()["choices"][0]
    assert choice["text"] == "eerht "
    assert choice["finish_reason"] == "stop"
    assert cut_at_stop("abc", ["x"]) is None
    assert cut_at_stop("abc", []) is None


def test_a_text_is_returned_as_written() -> None:
    class Writes(EchoLanguage):
        async def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
            return [Completion("\n street \n", None, None, 1, 4, "stop")]

    client = TestClient(create_api(Writes(), None, own_metrics()))
    asked = {"prompt": "kitchen", "user": "ada", "echo": True}
    text = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    assert text == "kitchen\n street \n"
    stopped = client.post("/v1/completions", json=asked | {"stop": "\n"}).json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("kitchen", "stop")


def test_stop_texts_reach_the_backend(client: TestClient, language: EchoLanguage) -> None:
    for stop, expected in (("x", ("x",)), (["x", "\n"], ("x", "\n")), (None, ())):
        client.post("/v1/completions", json={"prompt": ["ab", "cd"], "user": "ada", "stop": stop})
        assert [job.stops for job in language.seen[-1]] == [expected] * 2


def test_echo_puts_the_prompt_first(client: TestClient) -> None:
    asked = {"prompt": "ab", "user": "ada", "echo": True}
    assert client.post("/v1/completions", json=asked).json()["choices"][0]["text"] == "abba"


def test_unknown_user_is_404_with_reason(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": "x", "user": "nobody"})
    assert response.status_code == 404
    error = error_of(response)
    assert "nobody" in error["message"]
    assert error["param"] == "user"


def test_unknown_model_is_404_and_lists_the_models(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": "x", "user": "ada", "model": "gpt"})
    assert response.status_code == 404
    assert "available: tiny" in error_of(response)["message"]
    response = client.post("/v1/segment", params={"model": "inq-9"}, content=picture())
    assert response.status_code == 404
    assert "float, inq-5" in error_of(response)["message"]


def test_too_long_prompt_is_400(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": "x" * 300, "user": "ada"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", True),
        ("stream_options", {"include_usage": True}),
        ("n", 2),
        ("n", True),
        ("best_of", 3),
        ("temperature", 0.7),
        ("temperature", "0"),
        ("top_p", 0.5),
        ("logprobs", 1),
        ("suffix", "x"),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("max_tokens", 0),
        ("max_tokens", -4),
        ("max_tokens", 1.5),
        ("max_tokens", 10**9),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", ["a", ""]),
        ("prompt", [1, 2]),
        ("prompt", ["a"] * 65),
        ("prompt", None),
        ("user", None),
        ("user", ""),
        ("user", 3),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", ""),
        ("temprature", 0),
    ],
)
def test_field_that_cannot_be_honoured_is_400_and_named(
    client: TestClient, field: str, value: object
) -> None:
    response = client.post("/v1/completions", json={"prompt": "x", "user": "ada", field: value})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == field
    assert f"'{field}'" in error["message"]


def test_unknown_field_lists_the_allowed_ones(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": "x", "user": "ada", "promt": "y"})
    message = error_of(response)["message"]
    assert all(field in message for field in CompletionRequest.model_fields)


def test_fields_at_their_neutral_value_are_accepted(client: TestClient) -> None:
    neutral = {"n": 1, "temperature": 0, "top_p": 1, "stream": False, "logit_bias": {}, "seed": 3}
    empty = dict.fromkeys(["stop", "logprobs", "suffix", "max_tokens", "stream_options", "model"])
    response = client.post("/v1/completions", json={"prompt": "x", "user": "ada", **neutral, **empty})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": "\\ud800", "user": "ada"}',
        b'{"prompt": "x", "user": "ada", "\\ud800": 1}',
        b'{"prompt": "x", "user": "ada", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "user": "ada", "temperature": NaN}',
        b'{"prompt": "x", "user": "ada", "temperature": 1e999}',
    ],
)
def test_broken_json_is_400(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error_of(response)


def test_large_body_is_413(client: TestClient) -> None:
    body = json.dumps({"prompt": "x" * 2**21, "user": "ada"})
    assert client.post("/v1/completions", content=body).status_code == 413


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_fields = st.dictionaries(st.sampled_from([*CompletionRequest.model_fields, "other"]), _json, max_size=6)
_valid = st.fixed_dictionaries({"prompt": st.text(max_size=30), "user": st.sampled_from([*USERS, "nobody"])})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=_valid, fields=_fields)
def test_no_completion_body_is_answered_500(client: TestClient, base: dict, fields: dict) -> None:
    body = json.dumps({**base, **fields}, ensure_ascii=True)
    response = client.post("/v1/completions", content=body)
    assert response.status_code in {200, 400, 404}
    if response.status_code != 200:
        error_of(response)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_segment_answers_counts_and_mask(client: TestClient, kind: str) -> None:
    response = client.post("/v1/segment?model=inq-5", content=picture(kind, (24, 16)))
    assert response.status_code == 200
    body = response.json()
    assert (body["width"], body["height"], body["model"]) == (24, 16, "inq-5")
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["mask_png"]))))
    assert mask.shape == (16, 24)
    assert body["foreground"] == pytest.approx(np.count_nonzero(mask) / mask.size)
    assert body["count"] == len(body["instances"]) == len(np.unique(mask[mask > 0]))


def test_segment_instances_say_area_and_box(client: TestClient) -> None:
    body = client.post("/v1/segment", content=picture(size=(16, 8))).json()
    assert body["instances"] == [
        {"label": 1, "area_px": 9, "box_px": [1, 1, 4, 4]},
        {"label": 2, "area_px": 6, "box_px": [8, 2, 10, 5]},
    ]
    assert body["model"] == "float"


def test_segment_png_is_the_mask(client: TestClient) -> None:
    response = client.post("/v1/segment", params={"format": "png"}, content=picture(size=(16, 8)))
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-instance-count"] == "2"
    mask = np.asarray(Image.open(io.BytesIO(response.content)))
    assert mask[2, 2] == 1
    assert mask[3, 9] == 2


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 7)])
def test_segment_takes_tiny_images(client: TestClient, size: tuple[int, int]) -> None:
    body = client.post("/v1/segment", content=picture(size=size)).json()
    assert (body["width"], body["height"]) == size


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_segment_reads_every_usual_pixel_format(client: TestClient, mode: str) -> None:
    assert client.post("/v1/segment", content=picture(mode=mode)).status_code == 200


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (4, 4)).save(buffer, format="GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        picture()[:40],
        picture(size=(64, 64))[:-30],
        picture("JPEG", (64, 64))[:300],
        picture("BMP", (64, 64))[:300],
        picture("TIFF", (64, 64))[:300],
        gif(),
        b"%PDF-1.4",
        b"II*\x00\x08\x00\x00\x00\xff\xff",
    ],
    ids=[
        "empty",
        "text",
        "png header",
        "png cut",
        "jpeg cut",
        "bmp cut",
        "tiff cut",
        "gif",
        "pdf",
        "tiff loop",
    ],
)
def test_corrupt_image_is_400(client: TestClient, content: bytes) -> None:
    response = client.post("/v1/segment", content=content)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_image"


def test_image_with_too_many_pixels_is_413_unread(client: TestClient) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    for width in (side, 60_000):  # the second is what Pillow calls a bomb
        header = io.BytesIO()
        Image.new("1", (width, width if width == side else 10)).save(header, format="PNG")
        content = header.getvalue()
        if width != side:
            content = content[:20] + (60_000).to_bytes(4, "big") + content[24:]
        response = client.post("/v1/segment", content=content)
        assert response.status_code in ({413} if width == side else {400, 413})


def test_scale_counts_towards_the_size_limit(client: TestClient) -> None:
    content = picture(size=(600, 600))
    assert client.post("/v1/segment?scale=2", content=content).status_code == 200
    response = client.post("/v1/segment?scale=8", content=content)
    assert response.status_code == 413
    assert "at scale 8" in error_of(response)["message"]
    for scale in ("0", "-1", "nan", "inf", "9", "x", ""):
        response = client.post("/v1/segment", params={"scale": scale}, content=content)
        assert response.status_code == 400
        assert error_of(response)["param"] == "scale"


def test_misspelt_parameter_is_400(client: TestClient) -> None:
    response = client.post("/v1/segment", params={"modle": "float"}, content=picture())
    assert response.status_code == 400
    assert "format, model, scale" in error_of(response)["message"]
    response = client.post("/v1/segment", params={"format": "gif"}, content=picture())
    assert response.status_code == 400
    assert error_of(response)["param"] == "format"


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]),
    hits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 400),
)
def test_no_damaged_image_is_answered_500(client: TestClient, kind: str, hits: list, cut: int) -> None:
    content = bytearray(picture(kind, (32, 24)))
    for place, value in hits:
        content[place % len(content)] = value
    response = client.post("/v1/segment", content=bytes(content[: max(1, len(content) - cut)]))
    assert response.status_code in {200, 400, 413}


def test_health_and_models_say_what_is_served(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "users": 2, "models": ["tiny", "float", "inq-5"]}
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["task"]) for card in cards] == [
        ("tiny", "completion"),
        ("float", "segmentation"),
        ("inq-5", "segmentation"),
    ]


def test_unknown_path_and_method_have_the_error_shape(client: TestClient) -> None:
    assert error_of(client.get("/v2/nothing"))["type"] == "invalid_request_error"
    response = client.get("/v1/completions")
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]
    error_of(response)


def test_openapi_describes_both_bodies(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    schema = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(CompletionRequest.model_fields)
    assert "image/*" in paths["/v1/segment"]["post"]["requestBody"]["content"]


def test_half_a_run_answers_404_for_the_other_half() -> None:
    with TestClient(create_api(None, ThresholdSegmentation(), own_metrics())) as client:
        assert client.post("/v1/completions", json={"prompt": "x", "user": "ada"}).status_code == 404
        assert client.get("/healthz").json()["models"] == ["float", "inq-5"]
    with TestClient(create_api(EchoLanguage(), None, own_metrics())) as client:
        assert client.post("/v1/segment", content=picture()).status_code == 404


def test_full_queue_is_429_with_retry_after() -> None:
    class Full(EchoLanguage):
        async def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
            await asyncio.sleep(0)
            raise RequestError(Refusal(429, "too many requests are waiting", retry_after_s=1))

    with TestClient(create_api(Full(), None, own_metrics())) as client:
        response = client.post("/v1/completions", json={"prompt": "x", "user": "ada"})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert error_of(response)["type"] == "rate_limit_error"


def test_a_bug_is_answered_500_in_shape_and_without_its_text() -> None:
    class Broken(EchoLanguage):
        async def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
            raise ZeroDivisionError("secret detail")

    with TestClient(create_api(Broken(), None, own_metrics()), raise_server_exceptions=False) as client:
        response = client.post("/v1/completions", json={"prompt": "x", "user": "ada"})
    assert response.status_code == 500
    assert "secret" not in error_of(response)["message"]


def test_requests_are_counted_by_route_and_status_never_by_user() -> None:
    registry = CollectorRegistry()
    api = create_api(EchoLanguage(), ThresholdSegmentation(), RequestMetrics(PrometheusBackend(registry)))
    with TestClient(api, raise_server_exceptions=False) as client:
        for user in ("ada", "bo", "nobody"):
            client.post("/v1/completions", json={"prompt": "x", "user": user})
        for path in ("/a", "/b"):
            client.get(path)
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "nvcim_http_requests_total"
    }
    assert counted == {
        ("/v1/completions", "200"): 2,
        ("/v1/completions", "404"): 1,
        ("other", "404"): 2,
    }
