"""Prometheus metrics of a fleet: one facade, two backends.

Inside a Ray worker the series go through `ray.util.metrics`, which exports them as `ray_<name>` with Ray's
own tags (`prometheus_client` metrics made in a worker are never exported); elsewhere `prometheus_client`.
Counters end in `_total` in both. Tags have few values by design: never a user, a node or a trial.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import prometheus_client

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_UNBOUNDED = {"user", "user_id", "node", "node_id", "trial", "trial_id", "run", "run_id", "request_id"}


class Series(Protocol):
    """One metric: a counter adds `value`, a gauge takes it, a histogram counts it in its bucket."""

    def record(self, value: float, **tags: str) -> None:
        """Record `value` under exactly the tags that the series was made with."""


class MetricsBackend(Protocol):
    """Makes series by kind; both backends refuse tags that grow with users (ValueError)."""

    def counter(self, name: str, about: str, tags: Sequence[str] = ()) -> Series:
        """A sum that only grows."""

    def gauge(self, name: str, about: str, tags: Sequence[str] = ()) -> Series:
        """A value that goes up and down."""

    def histogram(
        self, name: str, about: str, boundaries: Sequence[float], tags: Sequence[str] = ()
    ) -> Series:
        """A distribution over buckets with the given upper boundaries."""


class _PrometheusSeries:
    """A series of prometheus_client; `verb` is the method that records."""

    def __init__(self, metric: Any, verb: str) -> None:
        self._metric, self._verb = metric, verb

    def record(self, value: float, **tags: str) -> None:
        labelled = self._metric.labels(**tags) if tags else self._metric
        getattr(labelled, self._verb)(value)


class PrometheusBackend:
    """Series in a registry of prometheus_client (its default one, which exporters read, unless given)."""

    def __init__(self, registry: prometheus_client.CollectorRegistry | None = None) -> None:
        self.registry = registry or prometheus_client.REGISTRY

    def counter(self, name: str, about: str, tags: Sequence[str] = ()) -> Series:
        """See `MetricsBackend`."""
        made = prometheus_client.Counter(name, about, bounded(tags), registry=self.registry)
        return _PrometheusSeries(made, "inc")

    def gauge(self, name: str, about: str, tags: Sequence[str] = ()) -> Series:
        """See `MetricsBackend`."""
        made = prometheus_client.Gauge(name, about, bounded(tags), registry=self.registry)
        return _PrometheusSeries(made, "set")

    def histogram(
        self, name: str, about: str, boundaries: Sequence[float], tags: Sequence[str] = ()
    ) -> Series:
        """See `MetricsBackend`."""
        made = prometheus_client.Histogram(
            name, about, bounded(tags), buckets=tuple(boundaries), registry=self.registry
        )
        return _PrometheusSeries(made, "observe")


class _RaySeries:
    """A series of ray.util.metrics; `verb` is the method that records."""

    def __init__(self, metric: Any, verb: str) -> None:
        self._metric, self._verb = metric, verb

    def record(self, value: float, **tags: str) -> None:
        # Ray warns of and drops an increment of zero; to Prometheus it means nothing either.
        if value == 0 and self._verb == "inc":
            return
        getattr(self._metric, self._verb)(value, tags=tags or None)


class RayBackend:
    """Series of `ray.util.metrics`, for code that runs in a Ray worker."""

    def counter(self, name: str, about: str, tags: Sequence[str] = ()) -> Series:
        """See `MetricsBackend`."""
        from ray.util import metrics

        return _RaySeries(metrics.Counter(name, about, bounded(tags)), "inc")

    def gauge(self, name: str, about: str, tags: Sequence[str] = ()) -> Series:
        """See `MetricsBackend`."""
        from ray.util import metrics

        return _RaySeries(metrics.Gauge(name, about, bounded(tags)), "set")

    def histogram(
        self, name: str, about: str, boundaries: Sequence[float], tags: Sequence[str] = ()
    ) -> Series:
        """See `MetricsBackend`."""
        from ray.util import metrics

        return _RaySeries(metrics.Histogram(name, about, list(boundaries), bounded(tags)), "observe")


class FleetMetrics:
    """What a host counts; every series is tagged by the memory device alone."""

    def __init__(self, backend: MetricsBackend | None = None) -> None:
        made = backend or current_backend()
        device = ("device",)
        self._samples = made.counter("nvcim_samples_observed", "Samples taken from user streams", device)
        self._tokens = made.counter("nvcim_ovts_stored", "Optimal virtual tokens stored", device)
        self._writes = made.counter("nvcim_crossbar_writes", "Programmings of a crossbar", device)
        self._retrievals = made.counter("nvcim_retrievals", "Searches of a prompt memory", device)
        self._seconds = made.histogram(
            "nvcim_request_seconds", "Time to answer one batch of requests", SECONDS, ("kind",)
        )
        self._nodes = made.gauge("nvcim_nodes", "Nodes that a host holds", device)

    def samples_observed(self, count: int, device: str) -> None:
        """Count samples that nodes with this memory device took from their users' streams."""
        self._samples.record(count, device=device)

    def ovts_stored(self, count: int, device: str) -> None:
        """Count optimal virtual tokens that were tuned and stored."""
        self._tokens.record(count, device=device)

    def crossbar_writes(self, count: int, device: str) -> None:
        """Count programmings of a crossbar."""
        self._writes.record(count, device=device)

    def retrievals(self, count: int, device: str) -> None:
        """Count searches of a prompt memory."""
        self._retrievals.record(count, device=device)

    def nodes(self, count: int, device: str) -> None:
        """Say how many nodes with this memory device the host holds now."""
        self._nodes.record(count, device=device)

    def request_seconds(self, seconds: float, kind: str) -> None:
        """Say how long a batch of requests took; `kind` is `observe`, `learn` or `answer`."""
        self._seconds.record(seconds, kind=kind)


@functools.cache
def process_metrics() -> FleetMetrics:
    """The one set of series of this process, however many hosts it holds: a registry takes a name once."""
    return FleetMetrics()


def current_backend() -> MetricsBackend:
    """Ray's backend inside a Ray worker, prometheus_client's default registry elsewhere."""
    ray = sys.modules.get("ray")  # a process that never imported Ray is no worker of it
    in_worker = ray is not None and ray.is_initialized() and _is_worker(ray)
    return RayBackend() if in_worker else PrometheusBackend()


def _is_worker(ray: Any) -> bool:
    """Whether this process runs tasks or actors, rather than being the driver."""
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def bounded(tags: Sequence[str]) -> tuple[str, ...]:
    """Return the tags; raise ValueError for one whose values grow with users, nodes or trials."""
    refused = sorted(_UNBOUNDED.intersection(tags))
    if refused:
        raise ValueError(f"metrics are never tagged by {', '.join(refused)}: a series for each would be kept")
    return tuple(tags)
