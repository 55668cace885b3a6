"""How full the folders are that a process writes to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.settings import Settings


def storage_folder(settings: Settings) -> Path | None:
    """None for a store that is not a folder."""
    parts = urlsplit(settings.storage_url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


class DiskCollector(Collector):
    """`folders` by the name that stands in the label `volume`. One that cannot be asked is left out."""

    def __init__(self, folders: dict[str, Path | None]) -> None:
        self._folders = {name: folder for name, folder in folders.items() if folder is not None}

    def collect(self) -> Iterator[Metric]:
        free = GaugeMetricFamily(
            "ft_disk_free_bytes", "Free space where the volume's folder lies.", labels=["volume"]
        )
        size = GaugeMetricFamily(
            "ft_disk_size_bytes", "All space where the volume's folder lies.", labels=["volume"]
        )
        for name, folder in self._folders.items():
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            free.add_metric([name], usage.free)
            size.add_metric([name], usage.total)
        yield from (free, size)
