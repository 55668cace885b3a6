"""What an API process counts. Its own registry: two applications in one process do not share figures.

Labels are templates, classes and our own words, never a tenant, an id or anything that a client wrote.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "none"
"""Of a path that no route answers: the path itself is the client's."""


def process_registry() -> CollectorRegistry:
    """With what the process itself needs: memory, processor time, open files."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class ApiMetrics:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or process_registry()
        self._requests = Counter(
            "ft_http_requests",
            "Requests answered, by route template, method and class of the status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "ft_http_request_duration_seconds",
            "From the first byte of a request to the last of its answer; event streams last as long as they "
            "are watched.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def answered(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """`status` 0: the client was gone before there was one."""
        known = method if method in _METHODS else "other"
        template = route or NO_ROUTE
        family = f"{status // 100}xx" if status else "none"
        self._requests.labels(known, template, family).inc()
        self._seconds.labels(known, template).observe(seconds)
