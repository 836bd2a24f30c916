"""The one place that starts a local Ray or joins a running cluster.

A local Ray listens on loopback alone, asks every client for a token, and sends no usage statistics.
"""

import atexit
import contextlib
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvcim
from nvcim.errors import RunError

_OBJECT_STORE_BYTES = 512 * 2**20  # small messages only: tensors of nodes stay inside their hosts
_LOOPBACK = "127.0.0.1"
_REACH_SECONDS = 10.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class RaySession:
    """What a session found: the cluster's address, what it can run at once, and whether it is our own."""

    address: str
    cpus: int
    gpus: int
    local: bool


@contextlib.contextmanager
def ray_session(address: str | None = None, num_cpus: int | None = None) -> Iterator[RaySession]:
    """Connect this process to Ray for the length of a `with` block.

    Args:
        address: `local` starts a Ray of our own; `host:port` or `auto` joins a running cluster; None takes
            the environment variable `RAY_ADDRESS` (which `ray job submit` sets) and, without it, `local`.
        num_cpus: CPUs of a local Ray; None takes those that this process may use.

    A process that is connected already keeps its connection: the block uses it and leaves it open.

    Raises:
        RunError: the cluster cannot be reached, or a local Ray cannot start.
    """
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    with _local_environment() if target == "local" else contextlib.nullcontext():
        import ray  # late: Ray reads the environment when it is imported

        if ray.is_initialized():
            yield _describe(ray, local=target == "local")
            return
        _start(ray, target, num_cpus)
        try:
            yield _describe(ray, local=target == "local")
        finally:
            _shut_down(ray)


def worker_environment() -> dict[str, str]:
    """Environment in which local workers import nvcim and, from a checkout, `jobs` and `serving` beside it.

    On a cluster the image or Ray's `working_dir` brings the code instead.
    """
    sources = Path(nvcim.__file__).resolve().parent.parent
    folders = [str(sources), str(sources.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(folder for folder in folders if folder))}


def _start(ray: Any, target: str, num_cpus: int | None) -> None:
    """Start or join, with Ray's many exceptions turned into a RunError of one line."""
    options: dict[str, Any] = {"address": target, "log_to_driver": False, "logging_level": "ERROR"}
    if target == "local":
        options |= {
            "num_cpus": num_cpus or len(os.sched_getaffinity(0)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "runtime_env": {"env_vars": worker_environment()},
        }
    else:
        _check_reachable(target)
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        doing = (
            "cannot start a local Ray" if target == "local" else f"cannot join the Ray cluster at '{target}'"
        )
        raise RunError(f"{doing}: {reason}") from error
    if target == "local" and ray.util.get_node_ip_address() != _LOOPBACK:
        _shut_down(ray)
        raise RunError("a local Ray would listen beyond loopback; start Python without importing ray first")


def _shut_down(ray: Any) -> None:
    """Disconnect, and wait for the processes that were started here: Ray kills them but leaves zombies."""
    node = ray._private.worker._global_node
    started = [info.process for infos in node.all_processes.values() for info in infos] if node else []
    ray.shutdown()
    for process in started:
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check_reachable(target: str) -> None:
    """Refuse an address where nothing answers (Ray itself would try for many minutes)."""
    if target == "auto":
        return
    host, colon, port = target.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise RunError(
            f"Ray address '{target}' is not valid; allowed: local, auto, HOST:PORT, ray://HOST:PORT"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"cannot join the Ray cluster at '{target}': {error}") from error


def _describe(ray: Any, *, local: bool) -> RaySession:
    """Read what the connected cluster offers."""
    resources = ray.cluster_resources()
    return RaySession(
        address=ray.get_runtime_context().gcs_address,
        cpus=max(1, int(resources.get("CPU", 1))),
        gpus=int(resources.get("GPU", 0)),
        local=local,
    )


@contextlib.contextmanager
def _local_environment() -> Iterator[None]:
    """Set what keeps a local Ray private, and put the process's environment back afterwards."""
    wanted = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name the switch that binds Ray to loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a CPU-only worker keeps seeing the machine as it is
    }
    if not _has_token():
        wanted["RAY_AUTH_TOKEN_PATH"] = str(_process_token())
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module without stubs

    # Where somebody imported Ray before us it has read the environment already, so its copies are set too.
    Config.initialize("")
    loopback_before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = loopback_before
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        Config.initialize("")


def _has_token() -> bool:
    """Whether the user gave Ray a token in one of the ways that Ray documents."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or (Path.home() / ".ray" / "auth_token").is_file()


_token_file: Path | None = None


def _process_token() -> Path:
    """Return this process's own token file, readable by its owner alone and removed when the process ends.

    One per process, not per session: Ray reads the token once and keeps it.
    """
    global _token_file
    if _token_file is None:
        descriptor, name = tempfile.mkstemp(prefix="nvcim-ray-token-")  # mkstemp makes it 0600
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        _token_file = Path(name)
        atexit.register(_token_file.unlink, missing_ok=True)
    return _token_file
