"""The manifests, without a cluster: Kubernetes takes them, and they say what code and images understand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sqlalchemy import text
from typer.testing import CliRunner

from service.db import Database
from service.settings import Settings
from service.storage.s3_url import s3_place
from tests.builders import Tenant, limit_running, make_job, make_queued_job
from tests.test_deployment import DOCKERFILE, OURS, SERVICES, VARIABLES, drain_seconds
from workers.cli import app

FOLDER = Path(__file__).parents[1] / "ops" / "kubernetes"
BASE, EXAMPLE = FOLDER / "base", FOLDER / "example"
VERSIONS = ("1.31", "1.37")
"""The oldest that is still supported somewhere, and the newest."""
UID = 10001


def load(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def manifests(folder: Path) -> list[dict[str, Any]]:
    names = load(folder / "kustomization.yaml")[0]["resources"]
    return [each for name in names if name.endswith(".yaml") for each in load(folder / name)]


ALL = [*manifests(BASE), *manifests(EXAMPLE)]
WORKLOADS = {
    each["metadata"]["name"]: each for each in ALL if each["kind"] in ("Deployment", "Job", "StatefulSet")
}
CONFIG = next(each for each in ALL if each["kind"] == "ConfigMap")["data"]
SECRETS = {each["metadata"]["name"]: each["stringData"] for each in ALL if each["kind"] == "Secret"}
KEDA = [each for each in ALL if each["apiVersion"] == "keda.sh/v1alpha1"]


def titled(each: dict[str, Any]) -> str:
    return f"{each['kind']}/{each['metadata']['name']}"


def of(kind: str, name: str) -> dict[str, Any]:
    return next(each for each in ALL if titled(each) == f"{kind}/{name}")


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def labels(workload: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def test_every_file_is_part_of_it() -> None:
    for folder in (BASE, EXAMPLE):
        listed = set(load(folder / "kustomization.yaml")[0]["resources"]) - {"../base"}
        assert listed == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert load(EXAMPLE / "kustomization.yaml")[0]["resources"][0] == "../base"
    assert len({titled(each) for each in ALL}) == len(ALL)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("each", [each for each in ALL if each not in KEDA], ids=titled)
def test_kubernetes_takes_it(each: dict[str, Any], version: str) -> None:
    """Strict: no field that does not exist."""
    assert kubernetes_validate.validate(each, version, strict=True) == version


# keda.sh/docs: "ScaledObject specification", "PostgreSQL", "Authentication". No schema of them is installed.
KEDA_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "ScaledObject": {
        "scaleTargetRef": dict,
        "pollingInterval": int,
        "cooldownPeriod": int,
        "initialCooldownPeriod": int,
        "idleReplicaCount": int,
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "fallback": dict,
        "advanced": dict,
        "triggers": list,
    },
    "TriggerAuthentication": {"secretTargetRef": list, "env": list, "podIdentity": dict},
}
KEDA_POSTGRESQL = {
    *("host", "port", "userName", "dbName", "sslmode", "passwordFromEnv", "connectionFromEnv"),
    *("query", "targetQueryValue", "activationTargetQueryValue"),
}


@pytest.mark.parametrize("each", KEDA, ids=titled)
def test_the_shape_of_what_keda_reads(each: dict[str, Any]) -> None:
    fields = KEDA_FIELDS[each["kind"]]
    assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
    for name, value in each["spec"].items():
        assert isinstance(value, fields[name]), name


def test_workers_follow_the_queue() -> None:
    scaled = of("ScaledObject", "autoclave-worker")["spec"]
    assert scaled["scaleTargetRef"] == {"name": "autoclave-worker"}
    assert 0 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    assert set(scaled["fallback"]) == {"failureThreshold", "replicas", "behavior"}
    assert scaled["fallback"]["behavior"] in ("static", "currentReplicas", "currentReplicasIfHigher")
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    hpa = of("HorizontalPodAutoscaler", "autoclave-api")
    kubernetes_validate.validate(
        {**hpa, "spec": {**hpa["spec"], "behavior": behavior}}, VERSIONS[-1], strict=True
    )
    (trigger,) = scaled["triggers"]
    assert set(trigger) == {"type", "metricType", "metadata", "authenticationRef"}
    assert (trigger["type"], trigger["metricType"]) == ("postgresql", "AverageValue")
    assert set(trigger["metadata"]) <= KEDA_POSTGRESQL
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert float(trigger["metadata"]["targetQueryValue"]) == 1, "a worker runs one job"
    authentication = of("TriggerAuthentication", trigger["authenticationRef"]["name"])
    (reference,) = authentication["spec"]["secretTargetRef"]
    assert reference["parameter"] == "connection"
    assert reference["key"] in SECRETS[reference["name"]]
    assert "replicas" not in of("Deployment", "autoclave-worker")["spec"], "KEDA's choice, not ours"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_query_counts_jobs_that_need_a_worker(database: Database, tenant: Tenant) -> None:
    query = of("ScaledObject", "autoclave-worker")["spec"]["triggers"][0]["metadata"]["query"]

    def count() -> int:
        with database.snapshot() as session:
            (number,) = session.execute(text(query)).one()
            assert isinstance(number, int)
            return number

    assert count() == 0
    with database.transaction() as session:
        make_queued_job(session, tenant.project_id)
        make_queued_job(session, tenant.project_id)
        for status in ("running", "paused", "succeeded", "failed", "cancelled"):
            make_job(session, tenant.project_id, status=status)
    assert count() == 3
    with database.transaction() as session:
        limit_running(session, tenant.project_id, 1)
    assert count() == 1, "those that wait for the project's own job need no worker yet"
    with database.transaction() as session:
        limit_running(session, tenant.project_id, 2)
    assert count() == 3


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_have_no_power(name: str) -> None:
    spec = pod(WORKLOADS[name])
    security = spec["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, UID, UID)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert of("ServiceAccount", spec["serviceAccountName"])["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False, "variables of services could be taken for settings"
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert container(WORKLOADS[name])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
        "emptyDir",
        "secret",
        "persistentVolumeClaim",
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_have_bounds_and_all_their_volumes(name: str) -> None:
    spec, only = pod(WORKLOADS[name]), container(WORKLOADS[name])
    assert {"cpu", "memory"} <= only["resources"]["requests"].keys()
    assert "memory" in only["resources"]["limits"]
    assert {mount["name"] for mount in only["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert "/tmp" in {mount["mountPath"] for mount in only["volumeMounts"]}
    for volume in spec["volumes"]:
        if "emptyDir" in volume:
            assert "sizeLimit" in volume["emptyDir"]
        if "secret" in volume:
            assert volume["secret"]["secretName"] in SECRETS
        if "persistentVolumeClaim" in volume:
            of("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_variable_is_read_and_every_reference_exists(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = container(WORKLOADS[name])
    assert [each["configMapRef"]["name"] for each in only["envFrom"]] == ["autoclave"]
    values = dict(CONFIG)
    for each in only["env"]:
        if "value" in each:
            values[each["name"]] = each["value"]
            continue
        reference = each["valueFrom"]["secretKeyRef"]
        known = SECRETS[reference["name"]]
        assert reference["key"] in known or reference.get("optional"), each
        values[each["name"]] = known.get(reference["key"], "")
    assert values.keys() <= VARIABLES
    for variable, value in values.items():
        assert isinstance(value, str), variable
        monkeypatch.setenv(variable, value)
    settings = Settings()  # type: ignore[call-arg]  # from the environment
    assert settings.database_url.startswith("postgresql://")
    s3_place(settings.storage_url)


def test_secrets_reach_only_who_needs_them() -> None:
    def who(variable: str) -> set[str]:
        return {n for n, w in WORKLOADS.items() if variable in {each["name"] for each in container(w)["env"]}}

    assert who("LINK_SECRET") == {"autoclave-api"}
    assert who("SIGNING_KEY_FILE") == who("WANDB_API_KEY") == {"autoclave-worker"}
    assert who("DATABASE_URL") == set(WORKLOADS)
    assert not {"DATABASE_URL", "BROKER_URL", "LINK_SECRET"} & CONFIG.keys()
    # What is in the example is no secret.
    assert all("change-me" in value for secret in SECRETS.values() for value in secret.values())


@pytest.mark.parametrize("name", WORKLOADS)
def test_commands_and_images_are_those_of_the_dockerfile(name: str) -> None:
    only = container(WORKLOADS[name])
    stage = only["image"].removeprefix("autoclave-")
    assert f" AS {stage}\n" in DOCKERFILE
    assert only["image"] in {each["name"] for each in load(EXAMPLE / "kustomization.yaml")[0]["images"]}
    assert f"USER {UID}:{UID}" in DOCKERFILE.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
    command = only["command"]
    assert command[0] == "autoclave"
    result = CliRunner().invoke(app, [*command[1:], "--help"])
    assert result.exit_code == 0, result.output
    compose = OURS[only["name"]]
    assert compose["build"]["target"] == stage
    assert compose["user"] == f"{UID}:{UID}"
    assert compose.get("command", command) == command


def test_the_ports_are_one() -> None:
    only = container(WORKLOADS["autoclave-api"])
    port, metrics = only["ports"]
    for name in ("autoclave-worker", "autoclave-maintenance"):
        assert container(WORKLOADS[name])["ports"] == [metrics]
    assert CONFIG["METRICS_PORT"] == str(metrics["containerPort"])
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE
    assert only["command"][-2:] == ["--port", str(port["containerPort"])]
    assert SERVICES["api"]["ports"][0].endswith(f":{port['containerPort']}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert only[probe]["httpGet"]["port"] == port["name"]
    assert only["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert only["livenessProbe"]["httpGet"]["path"] == only["startupProbe"]["httpGet"]["path"] == "/healthz"
    (service_port,) = of("Service", "autoclave-api")["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    backend = of("Ingress", "autoclave-api")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "autoclave-api", "port": {"name": service_port["name"]}}


def test_a_worker_has_a_gpu_and_the_time_to_hand_its_job_back() -> None:
    spec, only = pod(WORKLOADS["autoclave-worker"]), container(WORKLOADS["autoclave-worker"])
    assert only["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["terminationGracePeriodSeconds"] >= drain_seconds()
    assert "--without-maintenance" in only["command"]
    mounts = {mount["name"]: mount for mount in only["volumeMounts"]}
    environment = {each["name"]: each.get("value") for each in only["env"]}
    assert mounts["work"]["mountPath"] == environment["WORK_DIR"]
    key_file = Path(str(environment["SIGNING_KEY_FILE"]))
    assert str(key_file.parent) == mounts["signing-key"]["mountPath"]
    assert key_file.name in SECRETS["autoclave-signing-key"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "signing-key"]
    assert volume["secret"]["defaultMode"] == 0o440
    assert mounts["models"]["readOnly"] is True


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"])
def test_selectors_find_their_pods(kind: str) -> None:
    for each in [each for each in ALL if each["kind"] == kind]:
        spec = each["spec"]
        if kind == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in WORKLOADS
            assert "replicas" not in WORKLOADS[spec["scaleTargetRef"]["name"]]["spec"]
            continue
        wanted = spec["selector"] if kind == "Service" else spec["selector"]["matchLabels"]
        assert [n for n, w in WORKLOADS.items() if wanted.items() <= labels(w).items()] == [
            each["metadata"]["name"]
        ]
    for name, workload in WORKLOADS.items():
        if workload["kind"] == "Deployment":
            assert workload["spec"]["selector"]["matchLabels"].items() <= labels(workload).items(), name


def egress_ports(name: str) -> set[int]:
    ports = set()
    for policy in [each for each in ALL if each["kind"] == "NetworkPolicy"]:
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        if selector.items() <= labels(WORKLOADS[name]).items():
            for rule in policy["spec"].get("egress", []):
                assert rule["to"], "an empty list would be everybody"
                ports |= {port["port"] for port in rule["ports"]}
    return ports


def test_nothing_goes_or_comes_that_is_not_needed() -> None:
    deny = of("NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in WORKLOADS:
        webhooks = {8443} if name == "autoclave-maintenance" else set()
        assert egress_ports(name) == {53, 5432, 6379, 443, 8333} | webhooks, name
    assert int(Settings.model_fields["webhook_ports"].default.split(",")[1]) == 8443
    incoming = [p for p in ALL if p["kind"] == "NetworkPolicy" and "ingress" in p["spec"]]
    assert {
        titled(policy): [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        for policy in incoming
    } == {"NetworkPolicy/api": [8000], "NetworkPolicy/metrics": [9464]}
    for policy in [each for each in ALL if each["kind"] == "NetworkPolicy"]:
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert "169.254.0.0/16" in peer["ipBlock"]["except"], "the machines' metadata service"


def test_the_documentation_names_what_is_there() -> None:
    page = (FOLDER.parents[1] / "docs" / "operations.md").read_text()
    assert "## Kubernetes" in page
    named = set(re.findall(r"ops/kubernetes/[a-z]+", page))
    assert {"ops/kubernetes/base", "ops/kubernetes/example"} <= named
