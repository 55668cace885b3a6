"""A worker's or a maintenance process's own /metrics, if the settings name a port."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from service.metrics.disk import DiskCollector, storage_folder
from service.metrics.listener import MetricsListener
from service.settings import Settings
from workers.metrics import WorkerMetrics


def served_metrics(settings: Settings, stack: ExitStack, *, work_dir: Path | None = None) -> WorkerMetrics:
    """Listened for until `stack` ends. Raises StartError."""
    metrics = WorkerMetrics()
    metrics.registry.register(DiskCollector({"storage": storage_folder(settings), "work": work_dir}))
    if settings.metrics_port:
        stack.enter_context(
            MetricsListener(metrics.registry, host=settings.metrics_host, port=settings.metrics_port)
        )
    return metrics
