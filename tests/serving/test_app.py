"""The app on a real local Ray, over HTTP, with a run folder that this file makes."""

import base64
import concurrent.futures
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from nvcim.data.images import encode_png
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import ConfigError, RunError
from nvcim.fleet.ray_session import RaySession
from nvcim.segmentation import load_fcn, predict
from serving.app import ServedApp, free_port, run_app
from serving.backends import CompletionJob
from serving.config import CONFIG_FILE
from serving.language import RunLanguage


@pytest.fixture(scope="module")
def served(
    ray_local: RaySession, full_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedApp]:
    content = yaml.safe_load(CONFIG_FILE.read_text())
    (options,) = [d for d in content["applications"][0]["deployments"] if d["name"] == "Segmentation"]
    options |= {"max_ongoing_requests": 1, "max_queued_requests": 1}  # a queue that a test can fill
    config = tmp_path_factory.mktemp("config") / "serve.yaml"
    config.write_text(yaml.safe_dump(content))
    with run_app(full_run, port=0, device="cpu", config=config) as app:
        yield app


@pytest.fixture(scope="module")
def client(served: ServedApp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def test_app_listens_on_loopback_alone(served: ServedApp) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    port = int(served.url.rsplit(":", 1)[1])
    with pytest.raises(RunError, match=f"port {port} on 127.0.0.1 is in use; choose another port"):
        free_port("127.0.0.1", port)
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # another address of this machine: free, so it is no wildcard bind


def test_health_and_models(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "users": 3, "models": ["lm", "float", "inq-5"]}
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["lm", "float", "inq-5"]


def test_users_ask_at_once_and_get_their_own_nodes_answer(client: httpx.Client, full_run: Path) -> None:
    backend = RunLanguage(full_run, "cpu")
    jobs = [CompletionJob(f"node-{index % 3}", f"question {index}", 4) for index in range(12)]

    def ask(job: CompletionJob) -> httpx.Response:
        body = {"prompt": job.prompt, "user": job.user, "max_tokens": job.max_tokens}
        return client.post("/v1/completions", json=body)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, jobs))
    for job, response in zip(jobs, answers, strict=True):
        assert response.status_code == 200, response.text
        (expected,) = backend.complete([job])
        (choice,) = response.json()["choices"]
        assert (choice["text"], choice["nvcim"]["slot"]) == (expected.text, expected.slot)
        assert response.json()["usage"]["prompt_tokens"] == expected.prompt_tokens


@pytest.mark.parametrize("model", ["float", "inq-5"])
def test_served_mask_is_the_models_own(client: httpx.Client, full_run: Path, model: str) -> None:
    (tissue,) = generate_tissue(1, TissueSettings(height=64, width=96), seed=3)
    response = client.post("/v1/segment", params={"model": model}, content=encode_png(tissue.pixels))
    assert response.status_code == 200, response.text
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(response.json()["mask_png"]))))
    expected = predict(load_fcn(full_run / "fcn" / model), tissue.pixels)
    # Threads sum in another order, which may move a pixel on a decision boundary.
    assert np.mean(mask == expected) > 0.99


def test_full_queue_answers_429_and_recovers(client: httpx.Client) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    content = encode_png(pixels)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/segment", content=content), range(12)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    refused = answers[statuses.index(429)]
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"
    assert client.post("/v1/segment", content=content).status_code == 200


def test_bad_requests_reach_the_client_as_4xx(client: httpx.Client) -> None:
    assert client.post("/v1/segment", content=b"nonsense").status_code == 400
    assert client.post("/v1/segment?model=none", content=b"x").status_code == 404
    assert client.get("/nowhere").status_code == 404
    asked = {"prompt": "x", "user": "node-0", "max_tokens": 4}
    assert client.post("/v1/completions", json=asked | {"user": "nobody"}).status_code == 404
    assert client.post("/v1/completions", json=asked | {"n": 2}).status_code == 400
    # One prompt too long among good ones refuses its own request and no other's.
    long = client.post("/v1/completions", json=asked | {"prompt": ["x", "x" * 2000]})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_second_app_is_refused(served: ServedApp, full_run: Path) -> None:
    with pytest.raises(RunError, match="Serve runs already"):
        run_app(full_run, port=0, device="cpu")


def test_port_in_use_is_refused_before_ray_starts(full_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} on 127.0.0.1 is in use"):
            run_app(full_run, port=port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70_000, "port 70000 does not exist"),
        ("127.0.0.1", -1, "port -1 does not exist"),
        ("192.0.2.1", 8000, "cannot listen on 192.0.2.1"),  # an address of documentation: nobody's
    ],
)
def test_address_that_cannot_be_listened_on(host: str, port: int, message: str) -> None:
    with pytest.raises(RunError, match=message):
        free_port(host, port)


def test_folder_without_anything_to_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        run_app(tmp_path / "none")
    with pytest.raises(RunError, match="nothing to serve"):
        run_app(tmp_path)
    (tmp_path / "nodes" / "node-0").mkdir(parents=True)
    with pytest.raises(RunError, match=r"holds nodes, but not the model\.json"):
        run_app(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(RunError, match=r"not the autoencoder\.safetensors"):
        run_app(tmp_path)


def test_unknown_device_is_refused(full_run: Path) -> None:
    with pytest.raises(ConfigError, match="device 'tpu9'"):
        run_app(full_run, device="tpu9")
