"""What a cluster can grant at most: a request that no machine of it can ever grant is refused, not waited for.

Ray itself queues such a request for ever and says nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

from nvcim.errors import RunError
from nvcim.fleet.ray_session import RaySession

Offer = Mapping[str, float]
"""A machine's resources in Ray's terms, such as `{"CPU": 8.0, "GPU": 1.0}`."""

_log = logging.getLogger(__name__)


def check_request(session: RaySession, what: str, cpus: float, gpus: float = 0.0) -> None:
    """See that one machine of the cluster can run `what`, a task that needs so many CPUs and GPUs at once.

    A local Ray never grows. A cluster that was joined may get a larger machine, from its autoscaler or a person: there
    a line of the log says what is waited for.

    Raises:
        RunError: on a local Ray, what is needed and what there is.
    """
    machines = machines_up() + _machines_to_come()
    if fits(machines, cpus, gpus):
        return
    needed = f"{what} needs {_amounts(cpus, gpus)} on one machine; the Ray cluster has {_largest(machines)}"
    if session.local:
        raise RunError(f"{needed}: ask for less")
    _log.warning("%s: it waits until a machine joins that has them", needed)


def machines_up() -> list[Offer]:
    """Resources of every machine of the cluster that is up."""
    import ray  # late: a session sets the environment that Ray reads when it is imported

    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    return [dict(node["Resources"]) for node in nodes if node["Alive"]]


def _machines_to_come() -> list[Offer]:
    """One machine of each kind that the cluster's autoscaler, where it has one, says it can start."""
    from ray._private.state import state  # no public name tells it

    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [dict(group.resources) for group in groups if group.max_count]


def fits(machines: Sequence[Offer], cpus: float, gpus: float = 0.0) -> bool:
    """Whether one of the machines has so many CPUs and GPUs."""
    return any(offer.get("CPU", 0.0) >= cpus and offer.get("GPU", 0.0) >= gpus for offer in machines)


def whole(machines: Sequence[Offer], resource: str) -> int:
    """How many whole CPUs or GPUs the machines have: halves on two machines are not one."""
    return sum(floor(offer.get(resource, 0.0)) for offer in machines)


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


def _largest(machines: Sequence[Offer]) -> str:
    """The most of each that a machine has."""
    if not machines:
        return "no machine"
    most: dict[str, Any] = {name: max(o.get(name, 0.0) for o in machines) for name in ("CPU", "GPU")}
    plural = "machine" if len(machines) == 1 else "machines"
    return f"{len(machines)} {plural} with at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs"
