"""A cluster that can never hold the app is named before anything waits for it."""

from pathlib import Path
from typing import Any

import pytest

from nvcim.errors import RunError
from nvcim.fleet.ray_session import RaySession
from serving import app
from serving.config import deployment_options, load_serve_config
from serving.resources import needed, shortage

CPUS: dict[str, dict[str, Any]] = {
    name: {"ray_actor_options": {"num_cpus": cpus}}
    for name, cpus in (("Language", 0.5), ("Segmentation", 0.5), ("Ingress", 0.2))
}


def test_one_cpu_is_too_few_for_all_three_and_enough_for_two() -> None:
    """0.5 + 0.5 + 0.2 = 1.2; without segmentation 0.7."""
    assert shortage(CPUS, {"CPU": 1.0}) == (
        "serving needs 1.2 CPU (Language 0.5, Segmentation 0.5, Ingress 0.2), but Ray has 1; "
        "give it more, or ask for less in the Serve config (ray_actor_options)"
    )
    assert shortage({name: CPUS[name] for name in ("Language", "Ingress")}, {"CPU": 1.0}) is None
    assert shortage(CPUS, {"CPU": 1.2}) is None
    assert shortage(CPUS, {"CPU": 2.0}) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"CPU": 1}),
        ({"num_replicas": 3, "ray_actor_options": {"num_cpus": 0.5, "num_gpus": 1}}, {"CPU": 1.5, "GPU": 3}),
        ({"num_replicas": "auto", "autoscaling_config": {"min_replicas": 2, "max_replicas": 9}}, {"CPU": 2}),
        ({"autoscaling_config": {"min_replicas": 2}, "ray_actor_options": {"num_cpus": 0}}, {}),
        ({"ray_actor_options": {"resources": {"npu": 2}}}, {"CPU": 1, "npu": 2}),
    ],
)
def test_every_replica_counts_with_what_it_asks_for(
    options: dict[str, Any], expected: dict[str, float]
) -> None:
    assert needed(options) == expected


def test_a_missing_gpu_is_named() -> None:
    wants = {"Language": {"ray_actor_options": {"num_cpus": 0, "num_gpus": 1}}}
    message = shortage(wants, {"CPU": 8.0})
    assert message is not None
    assert message.startswith("serving needs 1 GPU (Language 1), but Ray has 0;")


def test_a_local_ray_of_one_cpu_is_refused_before_serve_starts(
    full_run: Path, monkeypatch: pytest.MonkeyPatch, ray_local: RaySession
) -> None:
    """The session is real; that it has one CPU is what Ray is made to say."""
    started: list[object] = []
    monkeypatch.setattr(app.ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(app, "_start", lambda *given: started.append(given))
    with pytest.raises(RunError, match=r"^serving needs 1\.2 CPU .* but Ray has 1;"):
        app.run_app(full_run, port=0, device="cpu")
    assert not started


def test_the_shipped_config_needs_little_more_than_a_cpu() -> None:
    options = deployment_options(load_serve_config())
    assert sum(needed(options[name])["CPU"] for name in CPUS) == pytest.approx(1.2)
