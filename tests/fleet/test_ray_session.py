"""A local Ray is private, its workers import our code, and failures are RunErrors."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nvcim.fleet.ray_session import RaySession, ray_session, worker_environment

# 127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net/tcp and tcp6 write them on a little-endian machine.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_a_local_session_offers_the_cpus_that_were_asked_for(ray_local: RaySession) -> None:
    assert ray_local.local
    assert ray_local.cpus == 2
    assert ray_local.address.startswith("127.0.0.1:")


def test_workers_import_the_package_and_the_jobs(ray_local: RaySession) -> None:
    import ray

    @ray.remote
    def where() -> list[str]:
        import importlib.util

        found = [importlib.util.find_spec(name) for name in ("nvcim", "jobs", "serving")]
        return [str(spec.submodule_search_locations[0]) for spec in found if spec is not None]

    places = ray.get(where.remote())
    assert [Path(place).name for place in places] == ["nvcim", "jobs", "serving"]


def test_a_nested_session_uses_the_open_one_and_leaves_it_open(ray_local: RaySession) -> None:
    import ray

    with ray_session("local") as inner:
        assert inner.address == ray_local.address
    assert ray.is_initialized()


PRIVATE_SESSION = """
import os, subprocess, sys
from pathlib import Path
from nvcim.fleet.ray_session import ray_session

def listening():
    # Addresses of all listening TCP sockets of this process's descendants, from Linux's /proc.
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    family = {os.getpid()}
    while grown := {p for p, parent in parents.items() if parent in family} - family:
        family |= grown
    inodes = set()
    for pid in family:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(link.readlink()))
            except OSError:
                pass
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").open()]
    return {r[1].split(":")[0] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in inodes}

with ray_session("local", num_cpus=1) as session:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    print(oct(token.stat().st_mode & 0o777))
    print(*sorted(listening()))
    ask = f"from ray._raylet import GcsClient; GcsClient(address='{session.address}').check_alive([], 5)"
    for environment in (os.environ, {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}):
        done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
        print(done.returncode, (done.stderr.strip().splitlines() or [""])[-1])
print("RAY_AUTH_TOKEN_PATH" in os.environ, "RAY_USAGE_STATS_ENABLED" in os.environ)
print(token)
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads listening sockets from Linux's /proc")
def test_a_local_ray_listens_on_loopback_alone_and_refuses_a_wrong_token(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= worker_environment() | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", PRIVATE_SESSION]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    mode, addresses, with_token, with_wrong, restored, token = done.stdout.splitlines()
    assert mode == "0o600"
    assert set(addresses.split()) <= LOOPBACK
    assert addresses
    assert with_token.startswith("0")
    assert with_wrong.startswith("1")
    assert restored == "False False"
    assert not Path(token).exists()


@pytest.mark.parametrize("case", ["closed port", "no port", "port out of range"])
def test_a_cluster_that_cannot_be_joined_is_a_run_error(case: str) -> None:
    with socket.socket() as held:  # bound but not listening: nobody else takes the port, nobody answers
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        address = {"closed port": f"127.0.0.1:{port}", "no port": "somewhere"}.get(case, "127.0.0.1:99999")
        code = f"""
from nvcim.errors import RunError
from nvcim.fleet.ray_session import ray_session
try:
    with ray_session({address!r}): pass
except RunError as error:
    print(error)
"""
        environment = {**os.environ, **worker_environment()}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert repr(address) in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
