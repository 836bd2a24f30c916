"""What the serving app measures; names and tags never grow with users or requests."""

from nvcim.fleet.metrics import SECONDS, MetricsBackend, current_backend

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class RequestMetrics:
    """HTTP requests by route and status, and how long they took."""

    def __init__(self, backend: MetricsBackend | None = None) -> None:
        made = backend or current_backend()
        self._requests = made.counter(
            "nvcim_http_requests", "HTTP requests that were answered", ("route", "status")
        )
        self._seconds = made.histogram(
            "nvcim_http_request_seconds", "Time to answer an HTTP request", SECONDS, ("route",)
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the path's template, so that it has few values."""
        self._requests.record(1, route=route, status=str(status))
        self._seconds.record(seconds, route=route)


class BatchMetrics:
    """How full the batches are in which completions run."""

    def __init__(self, backend: MetricsBackend | None = None) -> None:
        made = backend or current_backend()
        self._sizes = made.histogram("nvcim_completion_batch_size", "Completions in one batch", _BATCH_SIZES)

    def ran(self, size: int) -> None:
        """Count one batch."""
        self._sizes.record(size)
