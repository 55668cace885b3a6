"""Alerts and dashboard: what `promtool check` looks at, and that every name in them is really exported."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.db import Database
from service.fleet import presence
from service.fleet.states import WorkerState
from service.jobs.states import Stage
from service.metrics.api import ApiMetrics
from service.metrics.disk import DiskCollector
from service.metrics.fleet import FleetCollector
from tests.builders import make_tenant
from tests.exposition import Samples, labels_by_metric, samples
from tests.promql import DURATION, Selector, parse
from tests.service.fleet.test_repository import sighting
from workers.metrics import WorkerMetrics

ROOT = Path(__file__).parents[1]
OPS = ROOT / "ops"
PROMETHEUS = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
RULES = yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text())
DASHBOARD = json.loads((OPS / "grafana" / "autoclave.json").read_text())
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

ALL_RULES: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for rule in ALL_RULES if "record" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [
    *((rule.get("alert") or rule["record"], rule["expr"]) for rule in ALL_RULES),
    *TARGETS,
]
_ENUMERATED = {
    "ft_job_attempts_total": "outcome",
    "ft_reaped_total": "reason",
    "ft_harmful_score_bucket": "phase",
    "ft_jobs": "status",
}
"""Labels whose every value is exported from the start."""


def _exported(database: Database) -> Iterator[tuple[dict[str, set[str]], Samples]]:
    api = ApiMetrics()
    api.registry.register(FleetCollector(database))
    api.registry.register(DiskCollector({"storage": Path("/")}))
    api.answered(method="GET", route="/v1/models", status=200, seconds=0.01)
    worker = WorkerMetrics()
    worker.registry.register(DiskCollector({"work": Path("/")}))
    worker.stage_finished(Stage.TRAIN, 1.0)
    worker.webhook_attempted(status=200, error=None)
    for registry in (api.registry, worker.registry):
        yield labels_by_metric(registry), samples(registry)


@pytest.fixture
def exported(sqlite_url: str) -> tuple[dict[str, set[str]], Samples]:
    """Names with their labels, and samples, of an API and a worker that have just begun."""
    database = Database.from_url(sqlite_url)
    make_tenant(database)
    with database.transaction() as session:
        presence.see(session, sighting(heartbeat_at=time.time(), memory_used_bytes=1, state=WorkerState.BUSY))
    labels: dict[str, set[str]] = {"up": {"job", "instance"}}
    values: Samples = {}
    for names, found in _exported(database):
        for name, of_name in names.items():
            # Prometheus adds these two to what it scrapes.
            labels.setdefault(name, {"job", "instance"}).update(of_name)
        values |= found
    database.close()
    return labels, values


def _selectors(text: str) -> list[Selector]:
    """Of an expression, with those of the rules that it names in their place."""
    found = []
    for selector in parse(text).selectors:
        found += _selectors(RECORDED[selector.metric]) if selector.metric in RECORDED else [selector]
    return found


@pytest.mark.parametrize(("name", "text"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_every_metric_and_label_of_an_expression_is_exported(
    exported: tuple[dict[str, set[str]], Samples], name: str, text: str
) -> None:
    labels, values = exported
    selectors = _selectors(text)
    assert selectors, "an expression about nothing"
    for selector in selectors:
        assert selector.metric in labels, f"{selector.metric} is exported by nobody"
        for label, _, value in selector.matchers:
            assert label in labels[selector.metric], f"{selector.metric} has no label {label}"
            if _ENUMERATED.get(selector.metric) == label:
                for each in value.split("|"):
                    shown = [
                        name
                        for name in values
                        if name.startswith(f"{selector.metric}{{") and f'{label}="{each}"' in name
                    ]
                    assert shown, f"{selector.metric} is never {label}={each}"
    known = set().union(*(labels[selector.metric] for selector in selectors))
    assert set(parse(text).grouped_by) <= known


@pytest.mark.parametrize(("name", "text"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_counters_are_asked_for_their_rate_and_gauges_are_not(name: str, text: str) -> None:
    for selector in parse(text).selectors:
        is_counter = selector.metric.endswith(("_total", "_bucket", "_sum", "_count"))
        assert is_counter == (selector.range is not None), selector.metric


def test_rules_have_the_shape_that_prometheus_takes() -> None:
    assert set(RULES) == {"groups"}
    names = [group["name"] for group in RULES["groups"]]
    assert len(set(names)) == len(names)
    for group in RULES["groups"]:
        assert set(group) <= {"name", "interval", "rules"}
        assert DURATION.fullmatch(group.get("interval", "1m"))
    for rule in ALL_RULES:
        allowed = {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule) <= (allowed if "alert" in rule else {"record", "expr", "labels"}), rule
        assert DURATION.fullmatch(rule.get("for", "1m")), rule
    assert all(re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9]+", name) for name in RECORDED)
    alerts = [rule["alert"] for rule in ALERTS]
    assert len(set(alerts)) == len(alerts)
    assert all(re.fullmatch(r"Autoclave[A-Za-z]+", name) for name in alerts)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["summary"]
    templates = re.findall(r"\{\{(.*?)\}\}", rule["annotations"]["description"])
    for template in templates:
        name = template.split("|")[0].strip()
        assert name == "$value" or name.removeprefix("$labels.") in parse(rule["expr"]).grouped_by, name
        assert template.partition("|")[2].strip() in {
            "", "humanize", "humanizeDuration", "humanizePercentage"
        }  # fmt: skip
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert file == "docs/operations.md"
    headings = re.findall(r"^#+ (.*)$", OPERATIONS, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert anchor in anchors
    assert f"`{rule['alert']}`" in OPERATIONS


def test_there_is_an_alert_for_everything_that_was_promised() -> None:
    assert {rule["alert"] for rule in ALERTS} >= {
        "AutoclaveNoWorker",
        "AutoclaveQueueTooOld",
        "AutoclaveHeartbeatLost",
        "AutoclaveGateFailures",
        "AutoclaveOutboxLag",
        "AutoclaveDiskFull",
        "AutoclaveOutOfMemory",
    }


def test_prometheus_scrapes_both_kinds_of_process_and_reads_the_rules() -> None:
    assert set(PROMETHEUS) == {"global", "rule_files", "scrape_configs"}
    assert all(
        DURATION.fullmatch(PROMETHEUS["global"][name])
        for name in ("scrape_interval", "scrape_timeout", "evaluation_interval")
    )
    for file in PROMETHEUS["rule_files"]:
        assert (OPS / "prometheus" / file).is_file()
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for job in PROMETHEUS["scrape_configs"]:
        [discovery] = job["dns_sd_configs"]
        [service] = discovery["names"]
        assert job["job_name"] == f"autoclave-{service}"
        assert compose[service]["environment"]["METRICS_PORT"] == str(discovery["port"])
    # `up` in the alerts names one of these jobs.
    jobs = {job["job_name"] for job in PROMETHEUS["scrape_configs"]}
    named = {
        value
        for _, text in EXPRESSIONS
        for selector in parse(text).selectors
        for label, _, value in selector.matchers
        if label == "job"
    }
    assert named <= jobs


def test_the_dashboard_is_whole() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("autoclave", "Autoclave")
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource", "datasource", "prometheus"
    )  # fmt: skip
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {
                "type": "prometheus", "uid": "${datasource}"
            }  # fmt: skip
            legend = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert set(legend) <= set(parse(target["expr"]).grouped_by), panel["title"]


def test_the_dashboard_shows_every_metric_of_ours(
    exported: tuple[dict[str, set[str]], Samples],
) -> None:
    shown = {selector.metric for _, text in EXPRESSIONS for selector in _selectors(text)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in exported[0]
        if name.startswith("ft_") and not name.endswith("_created")
    }
    assert ours == families & ours


def test_every_metric_is_documented(exported: tuple[dict[str, set[str]], Samples]) -> None:
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name): labels - {"job", "instance", "le"}
        for name, labels in exported[0].items()
        if name.startswith("ft_") and not name.endswith("_created")
    }
    rows = re.findall(r"^\| `(ft_[a-z_]+)(?:\{([a-z, ]+)\})?` \|", OPERATIONS, flags=re.MULTILINE)
    documented = {name: set(labels.replace(" ", "").split(",")) - {""} for name, labels in rows}
    assert documented == ours


def test_grafana_is_given_the_datasource_and_the_dashboard() -> None:
    provisioning = OPS / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = yaml.safe_load((provisioning / "dashboards" / "autoclave.yml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = [volume.split(":")[1] for volume in compose["grafana"]["volumes"] if volume.startswith("./ops")]
    assert f"{provider['options']['path']}/autoclave.json" in mounted
    assert "/etc/grafana/provisioning" in mounted
