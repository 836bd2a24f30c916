"""The Serve app: an ingress over a language and a segmentation deployment, built from one run folder.

`build` is what a Serve config imports; `run_app` starts the app from Python (the demo, `nvcim serve`).
"""

import asyncio
import contextlib
import errno
import io
import logging
import re
import signal
import socket
import threading
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
import ray
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus, ServeDeploySchema

from nvcim.compute import resolve_device
from nvcim.data.images import Pixels
from nvcim.errors import RunError
from nvcim.fleet.ray_session import RaySession, ray_session
from serving.api import create_api
from serving.backends import Completion, CompletionJob, Offer, Refusal, RequestError
from serving.config import CONFIG_FILE, AppSettings, deployment_options, load_serve_config
from serving.metrics import BatchMetrics, RequestMetrics
from serving.resources import shortage
from serving.run_contents import inspect_run

APP_NAME = "nvcim"
PROJECT_ROOT = Path(__file__).resolve().parent.parent
_FAILURES_UNTIL_UNHEALTHY = 3

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

# A run folder that cannot be loaded stays so: Serve would try 20 times before it says why.
_deployment = serve.deployment(max_constructor_retry_count=1)


class _FailureCount:
    """Calls a replica sick when its backend failed several times in a row, so that Serve replaces it."""

    def __init__(self) -> None:
        self._in_a_row = 0

    async def run(self, work: Any, *arguments: Any) -> Any:
        """Run blocking work in a thread, so that health checks and arrivals go on, and count how it ended."""
        try:
            result = await asyncio.to_thread(work, *arguments)
        except Exception:
            self._in_a_row += 1
            raise
        self._in_a_row = 0
        return result

    def check(self) -> None:
        """Raise RuntimeError where the replica should be replaced."""
        if self._in_a_row >= _FAILURES_UNTIL_UNHEALTHY:
            raise RuntimeError(f"the last {self._in_a_row} calls failed")


@_deployment
class Language:
    """Holds the frozen LM and every node of the run; one batch mixes the prompts of many users."""

    def __init__(self, settings: AppSettings) -> None:
        from serving.language import RunLanguage  # late: the other replicas need no transformers

        self._backend = RunLanguage(settings.run, settings.device)
        self._failures = _FailureCount()
        self._metrics = BatchMetrics()
        self._complete_batch.set_max_batch_size(settings.max_batch_size)
        self._complete_batch.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    def check_health(self) -> None:
        """Called by Serve."""
        self._failures.check()

    def offer(self) -> Offer:
        """As `LanguageBackend.offer`."""
        return self._backend.offer()

    async def complete(self, job: CompletionJob) -> Completion | Refusal:
        """Refuse a job before it can spoil a batch, or complete it together with those of other requests."""
        refusal = self._backend.refuse(job)
        return refusal if refusal is not None else await self._complete_batch(job)

    @serve.batch
    async def _complete_batch(self, jobs: list[CompletionJob]) -> list[Completion]:
        self._metrics.ran(len(jobs))
        return await self._failures.run(self._backend.complete, jobs)


@_deployment
class Segmentation:
    """Holds the trained FCNs of the run."""

    def __init__(self, settings: AppSettings) -> None:
        from serving.segmentation import RunSegmentation  # late: the other replicas need no FCN

        self._backend = RunSegmentation(settings.run, settings.device)
        self._failures = _FailureCount()

    def check_health(self) -> None:
        """Called by Serve."""
        self._failures.check()

    def offer(self) -> Offer:
        """As `SegmentationBackend.offer`."""
        return self._backend.offer()

    async def segment(self, image: Pixels, model: str, scale: float) -> NDArray[np.int32]:
        """As `SegmentationBackend.segment`."""
        return await self._failures.run(self._backend.segment, image, model, scale)


@_deployment
@serve.ingress()
class Ingress:
    """Validates and shapes; see `serving.api`."""

    def __init__(self, language: DeploymentHandle | None, segmentation: DeploymentHandle | None) -> None:
        self._language = language
        self._segmentation = segmentation

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app; Serve calls this after the constructor."""
        return create_api(
            None if self._language is None else _LanguageHandle(self._language),
            None if self._segmentation is None else _SegmentationHandle(self._segmentation),
            RequestMetrics(),
        )


class _LanguageHandle:
    """The language deployment as the ingress sees it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def offer(self) -> Offer:
        return await _answer(self._handle.offer.remote())

    async def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
        answers = await asyncio.gather(*(_answer(self._handle.complete.remote(job)) for job in jobs))
        for answer in answers:
            if isinstance(answer, Refusal):
                raise RequestError(answer)
        return list(answers)


class _SegmentationHandle:
    """The segmentation deployment as the ingress sees it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def offer(self) -> Offer:
        return await _answer(self._handle.offer.remote())

    async def segment(self, image: Pixels, model: str, scale: float) -> NDArray[np.int32]:
        return await _answer(self._handle.segment.remote(image, model, scale))


async def _answer(response: Awaitable[Result]) -> Result:
    """Await a deployment's answer.

    Raises:
        RequestError: 429 where its queue is full, 503 where no replica is up.
    """
    try:
        return await response
    except BackPressureError as error:
        message = "too many requests are waiting; try again shortly"
        raise RequestError(Refusal(429, message, code="queue_full", retry_after_s=1)) from error
    except (RayActorError, DeploymentUnavailableError) as error:
        message = "no replica is up; try again shortly"
        raise RequestError(Refusal(503, message, code="unavailable", retry_after_s=5)) from error


def build(args: AppSettings) -> Application:
    """Return the app of a run; a relative `run` is seen from the project's root.

    Raises:
        RunError: the run folder is missing or holds nothing to serve.
        ConfigError: an unknown argument or device.
    """
    return _build(args, deployment_options(load_serve_config()))


def _build(args: AppSettings, options: Mapping[str, Mapping[str, Any]]) -> Application:
    """Bind the deployments for which the run holds something, with their options by name."""
    settings = args.model_copy(update={"run": PROJECT_ROOT / args.run})
    names = _deployed(settings.run)
    language = _with(Language, options).bind(settings) if Language.name in names else None
    segmentation = _with(Segmentation, options).bind(settings) if Segmentation.name in names else None
    return _with(Ingress, options).bind(language, segmentation)


def _deployed(run: Path) -> list[str]:
    """Names of the deployments that a run needs."""
    contents = inspect_run(run)
    backends = {Language.name: contents.nodes, Segmentation.name: contents.fcns}
    return [*(name for name, held in backends.items() if held), Ingress.name]


def _with(deployment: Any, options: Mapping[str, Mapping[str, Any]]) -> Any:
    """Apply the options that a Serve config gives to a deployment."""
    return deployment.options(**options.get(deployment.name, {}))


@dataclass
class ServedApp:
    """A running app; leaving a `with` block, or `stop`, ends it and whatever Ray was started for it."""

    url: str
    run: Path
    _resources: contextlib.ExitStack

    def stop(self) -> None:
        """Shut Serve down, and Ray where `run_app` started it. A second call does nothing."""
        self._resources.close()

    def wait(self) -> None:
        """Block until the process is interrupted or told to end (call it from the main thread)."""
        ended = threading.Event()
        before = {
            number: signal.signal(number, lambda *_: ended.set())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            ended.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def run_app(
    run: Path,
    host: str | None = None,
    port: int | None = None,
    device: str = "auto",
    config: Path = CONFIG_FILE,
) -> ServedApp:
    """Serve a run folder and return once it answers.

    Uses the Ray that this process is connected to, else starts a local one, or joins the cluster of
    `RAY_ADDRESS` (whose nodes must then see the run folder under the same path).

    Args:
        run: Run folder with `nodes/` and `model.json`, or `fcn/`, or both.
        host: Address to listen on; None takes the config's (loopback).
        port: Port to listen on; None takes the config's, 0 any free one.
        device: Where the models run: auto, cpu, cuda or cuda:N.
        config: Serve config with the deployments' options.

    Raises:
        RunError: nothing to serve, the port is in use, Serve runs already, Ray lacks the CPUs or GPUs that the config
            asks for, or the app fails to start.
        ConfigError: a mistake in the config, or an unknown device.
    """
    checked = load_serve_config(config)
    resolve_device(device)
    settings = AppSettings(run=run.resolve(), device=device)
    options = deployment_options(checked)
    app = _build(settings, options)
    host = host if host is not None else checked.http_options.host
    port = free_port(host, port if port is not None else checked.http_options.port)
    with contextlib.ExitStack() as resources:
        session = resources.enter_context(ray_session())
        wanted = {name: options.get(name, {}) for name in _deployed(settings.run)}
        _check_room(wanted, session)
        _start(app, host, port, checked, resources)
        url = f"http://{_reachable(host)}:{port}"
        return ServedApp(url, settings.run, resources.pop_all())


def free_port(host: str, port: int) -> int:
    """Return `port` where it can be listened on, or any free port for 0.

    Raises:
        RunError: the port is in use or not allowed, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise RunError(f"port {port} does not exist; allowed: 0..65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise RunError(f"host '{host}' is not known ({error.strerror})") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunError(f"port {port} on {host} is in use; choose another port") from error
        raise RunError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _check_room(deployments: Mapping[str, Mapping[str, Any]], session: RaySession) -> None:
    """Refuse a local Ray that is too small for the deployments; a cluster may grow, so there it is only said.

    Raises:
        RunError: what is needed and what there is.
    """
    lack = shortage(deployments, ray.cluster_resources())
    if lack is None:
        return
    if session.local:
        raise RunError(lack)
    logger.warning("%s; waiting for the cluster to grow", lack)


def _start(
    app: Application, host: str, port: int, config: ServeDeploySchema, resources: contextlib.ExitStack
) -> None:
    """Start Serve and the app, and see that the proxy answers.

    Raises:
        RunError: Serve runs already, or the app does not start.
    """
    if serve.status().proxies:
        raise RunError("Serve runs already on this Ray cluster; stop it first, or deploy to it: serve deploy")
    options = config.http_options.model_dump(exclude_unset=True) | {"host": host, "port": port}
    logger.setLevel(logging.WARNING)  # this process only asks; the replicas keep their own logs
    serve.start(proxy_location=config.proxy_location, http_options=options)
    resources.callback(_shut_serve_down)
    try:
        serve.run(app, name=APP_NAME, route_prefix="/")
        httpx.get(f"http://{_reachable(host)}:{port}/healthz", timeout=60).raise_for_status()
    except (RuntimeError, httpx.HTTPError) as error:
        raise RunError(f"the app does not start: {_startup_failure() or repr(error)}") from error


def _shut_serve_down() -> None:
    """Shut Serve down, without the line that Ray prints when Serve kills its own controller, as it always does."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # Ray prints what its raylet reports from a thread of this process
        serve.shutdown()
    for line in said.getvalue().splitlines():
        if "ServeController.graceful_shutdown" not in line:
            print(line)


def _startup_failure() -> str | None:
    """The last line of what the first failed deployment says: its exception, without the exception's name."""
    app = serve.status().applications.get(APP_NAME)
    for deployment in app.deployments.values() if app is not None else ():
        lines = deployment.message.strip().splitlines()
        if lines and deployment.status != DeploymentStatus.HEALTHY:
            return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1])
    return None


def _reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
