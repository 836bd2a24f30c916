"""The same calls count the same in both backends."""

import prometheus_client
import pytest

from nvcim.fleet.metrics import (
    FleetMetrics,
    MetricsBackend,
    PrometheusBackend,
    RayBackend,
    current_backend,
)
from nvcim.fleet.ray_session import RaySession


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    return prometheus_client.CollectorRegistry()


def test_a_fleet_counts_by_device(registry: prometheus_client.CollectorRegistry) -> None:
    metrics = FleetMetrics(PrometheusBackend(registry))
    metrics.samples_observed(3, "RRAM1")
    metrics.samples_observed(4, "RRAM1")
    metrics.samples_observed(5, "FeFET2")
    metrics.ovts_stored(2, "RRAM1")
    metrics.crossbar_writes(1, "RRAM1")
    metrics.retrievals(0, "RRAM1")
    metrics.nodes(6, "RRAM1")
    metrics.nodes(5, "RRAM1")
    metrics.request_seconds(0.3, "answer")
    value = registry.get_sample_value
    assert value("nvcim_samples_observed_total", {"device": "RRAM1"}) == 7
    assert value("nvcim_samples_observed_total", {"device": "FeFET2"}) == 5
    assert value("nvcim_ovts_stored_total", {"device": "RRAM1"}) == 2
    assert value("nvcim_crossbar_writes_total", {"device": "RRAM1"}) == 1
    assert value("nvcim_retrievals_total", {"device": "RRAM1"}) == 0
    assert value("nvcim_nodes", {"device": "RRAM1"}) == 5
    assert value("nvcim_request_seconds_bucket", {"kind": "answer", "le": "0.2"}) == 0
    assert value("nvcim_request_seconds_bucket", {"kind": "answer", "le": "0.5"}) == 1


@pytest.mark.parametrize("backend", [PrometheusBackend(prometheus_client.CollectorRegistry()), RayBackend()])
@pytest.mark.parametrize("tag", ["user", "node_id", "trial"])
def test_no_backend_tags_by_user(backend: MetricsBackend, tag: str) -> None:
    with pytest.raises(ValueError, match=f"never tagged by {tag}"):
        backend.counter("nvcim_test", "a test", (tag,))


def test_a_driver_uses_prometheus_client(ray_local: RaySession) -> None:
    assert isinstance(current_backend(), PrometheusBackend)


def test_a_worker_uses_ray_and_exports_what_it_counts(ray_local: RaySession) -> None:
    import ray

    @ray.remote
    def count() -> tuple[str, dict[str, object]]:
        metrics = FleetMetrics()
        metrics.samples_observed(3, "RRAM1")
        metrics.retrievals(0, "RRAM1")
        metrics.nodes(2, "RRAM1")
        metrics.request_seconds(0.3, "answer")
        return type(current_backend()).__name__, metrics._samples._metric.info

    backend, info = ray.get(count.remote())
    assert backend == "RayBackend"
    assert info["name"] == "nvcim_samples_observed"
    assert info["tag_keys"] == ("device",)
