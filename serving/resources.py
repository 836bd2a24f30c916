"""Whether a Ray cluster can ever hold the app: Serve itself waits without end for what is missing."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

_SLACK = 1e-4
"""Ray counts resources in ten-thousandths."""


def needed(options: Mapping[str, Any]) -> dict[str, float]:
    """What all replicas of a deployment ask for, by Ray's names, from what the Serve config sets for it.

    An autoscaled deployment needs its fewest replicas; a replica that says nothing asks for one CPU, as Serve has it.
    """
    scaling = options.get("autoscaling_config") or {}
    count = options.get("num_replicas", scaling.get("min_replicas", 1))
    replicas = count if isinstance(count, int) else int(scaling.get("min_replicas", 1))
    actor = options.get("ray_actor_options") or {}
    one = {"CPU": actor.get("num_cpus", 1), "GPU": actor.get("num_gpus", 0), **(actor.get("resources") or {})}
    return {name: replicas * float(amount) for name, amount in one.items() if amount}


def shortage(deployments: Mapping[str, Mapping[str, Any]], has: Mapping[str, float]) -> str | None:
    """Why a cluster cannot hold the deployments even if nothing else runs on it; None where it can.

    Args:
        deployments: what is deployed, with its options in the Serve config.
        has: the cluster's resources, as `ray.cluster_resources()` names them.
    """
    each = {name: needed(options) for name, options in deployments.items()}
    total: Counter[str] = Counter()
    for one in each.values():
        total.update(one)
    for resource, amount in total.items():
        there = float(has.get(resource, 0))
        if amount > there + _SLACK:
            parts = ", ".join(f"{name} {one[resource]:g}" for name, one in each.items() if resource in one)
            return (
                f"serving needs {amount:g} {resource} ({parts}), but Ray has {there:g}; "
                "give it more, or ask for less in the Serve config (ray_actor_options)"
            )
    return None
