"""Reading what /metrics says, as Prometheus would."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, float]


def samples_of(text: str) -> Samples:
    """`{'name{label="value"}': number}`, labels in alphabetical order."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def samples(registry: CollectorRegistry) -> Samples:
    return samples_of(generate_latest(registry).decode())


def labels_by_metric(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The names that a scrape of this registry shows now, each with the labels of its samples."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
