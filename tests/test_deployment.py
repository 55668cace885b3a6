"""The files that deploy: no Docker engine is needed to see that they say what the code understands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from service.settings import Settings
from service.storage.s3_url import ENVIRONMENT as S3_ENVIRONMENT
from service.storage.s3_url import s3_place
from workers.child import WANDB_NAMES
from workers.cli import app

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
BUILT = {name: service for name, service in SERVICES.items() if "build" in service}
OURS = {name: service for name, service in BUILT.items() if service["build"]["target"] != "flower"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXAMPLE = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
VARIABLES = {field.upper() for field in Settings.model_fields} | S3_ENVIRONMENT | WANDB_NAMES
"""What our processes read."""


def test_compose_has_the_services_of_the_distributed_deployment() -> None:
    ours = {"migrate", "create-bucket", "api", "maintenance", "worker", "admin"}
    assert {"postgres", "valkey", "s3"} | ours <= SERVICES.keys()
    assert ours <= OURS.keys()


@pytest.mark.parametrize("name", BUILT)
def test_build_target_exists_in_the_dockerfile(name: str) -> None:
    assert f" AS {BUILT[name]['build']['target']}\n" in DOCKERFILE


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    assert set(OURS[name]["environment"]) <= VARIABLES


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_each_service_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in OURS[name]["environment"].items():
        monkeypatch.setenv(key, interpolated(value))
    settings = Settings()  # type: ignore[call-arg]  # from the environment
    assert settings.database_url.startswith("postgresql://")
    place = s3_place(settings.storage_url, OURS[name]["environment"])
    endpoint = SERVICES["s3"]["command"]
    assert place.endpoint == f"http://s3:{next(a for a in endpoint if 's3.port' in a).split('=')[1]}"


def test_secrets_come_from_the_operator_and_reach_who_needs_them() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert re.findall(r"^ *[A-Z_]*(?:PASSWORD|SECRET|KEY|KEY_ID): (?!\$\{)\S+$", text, re.MULTILINE) == []
    for name in OURS:
        environment = OURS[name]["environment"]
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL"} <= environment.keys()
    assert [name for name in OURS if "LINK_SECRET" in OURS[name]["environment"]] == ["api"]
    worker = OURS["worker"]
    assert "WANDB_API_KEY" in worker["environment"]
    assert worker["environment"]["SIGNING_KEY_FILE"] == f"/run/secrets/{worker['secrets'][0]}"
    assert worker["secrets"][0] in COMPOSE["secrets"]


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "profiles" not in service])
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in ("", "root", "0", "0:0")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] in ("unless-stopped", "on-failure")
    if service["restart"] == "unless-stopped":
        assert "memory" in service["deploy"]["resources"]["limits"]
        assert "healthcheck" in service or "build" in service


def test_our_containers_run_as_the_images_user() -> None:
    assert {service["user"] for service in OURS.values()} == set(re.findall(r"^USER (.*)$", DOCKERFILE, re.M))
    assert "useradd --create-home --uid 10001 --gid 10001 autoclave" in DOCKERFILE


def test_a_stopped_worker_has_the_time_that_handing_back_takes() -> None:
    given_seconds = int(OURS["worker"]["stop_grace_period"].removesuffix("s"))
    assert given_seconds >= drain_seconds()


def drain_seconds() -> float:
    """What `workers.watch` needs at most from SIGTERM on, and half a minute to write it down."""
    fields = Settings.model_fields
    drain = fields["drain_grace_seconds"].default if "drain_grace_seconds" in fields else 0.0
    return float(drain + fields["terminate_grace_seconds"].default + 30.0)


def test_gpus_are_an_addition_to_the_same_worker() -> None:
    gpu = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
    assert gpu["services"].keys() <= SERVICES.keys()
    (device,) = gpu["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])


def test_every_interpolated_variable_is_in_the_example_file() -> None:
    wanted = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert wanted == EXAMPLE.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_and_volumes_exist(name: str) -> None:
    assert set(SERVICES[name].get("depends_on", {})) <= SERVICES.keys()
    for volume in SERVICES[name].get("volumes", []):
        assert not volume.startswith("./") or (ROOT / volume.split(":")[0]).exists(), volume
    named = [v.split(":")[0] for v in SERVICES[name].get("volumes", []) if not v.startswith(("$", ".", "/"))]
    assert set(named) <= COMPOSE["volumes"].keys()


WATCHING = {
    name: service for name, service in SERVICES.items() if service.get("profiles") not in (None, ["admin"])
}


def test_what_watches_is_started_by_profile_and_reached_from_this_machine_only() -> None:
    assert {name: service["profiles"] for name, service in WATCHING.items()} == {
        "prometheus": ["watch"],
        "grafana": ["watch"],
        "flower": ["flower"],
    }
    for service in WATCHING.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    published = [port for name in ("api", "worker") for port in SERVICES[name].get("ports", [])]
    assert not [port for port in published if port.endswith(SERVICES["api"]["environment"]["METRICS_PORT"])]


@pytest.mark.parametrize(
    ("name", "variable"), [("grafana", "GF_SECURITY_ADMIN_PASSWORD"), ("flower", "FLOWER_BASIC_AUTH")]
)
def test_no_page_is_open_for_want_of_a_password(name: str, variable: str) -> None:
    """The shell that stands before it, run here."""
    shell, option, script = (word.replace("$$", "$") for word in SERVICES[name]["entrypoint"])
    script = script.replace("exec /run.sh", "exec echo started")
    for value, expected in (("", 2), ("user:secret", 0)):
        done = subprocess.run(
            [shell, option, script, "echo", "started"], env={"PATH": "/bin:/usr/bin", variable: value},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == (expected != 0), done
        assert ("started" in done.stdout) == (expected == 0)
        assert expected == 0 or "in .env" in done.stderr


def test_flower_is_one_that_is_safe_and_reads_json_only() -> None:
    stage = DOCKERFILE.split(" AS flower\n")[1]
    assert "'flower>=2.2.0,<3'" in stage
    assert "COPY" not in stage
    flower = SERVICES["flower"]
    words = " ".join([*flower["command"], *flower["environment"]]).lower()
    assert "pickle" not in words
    assert "unauthenticated" not in words
    assert flower["environment"]["CELERY_BROKER_URL"] == SERVICES["api"]["environment"]["BROKER_URL"]


def interpolated(value: str) -> str:
    """As docker compose does it with the example file: what is empty there has its default."""
    return re.sub(
        r"\$\{([A-Z0-9_]+)(?::-([^}]*)|[^}]*)\}", lambda found: EXAMPLE[found[1]] or found[2] or "", value
    )


def _commands() -> list[list[str]]:
    image_commands = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    lines = [yaml.safe_load(text) for text in image_commands if "flower" not in text]
    lines += [
        service[key] for service in OURS.values() for key in ("command", "entrypoint") if key in service
    ]
    return lines


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_exists_with_its_options(command: list[str]) -> None:
    assert command[0] == "autoclave"
    # --help after the options: an unknown command or option is an error before help is shown.
    result = CliRunner().invoke(app, [*command[1:], "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("stage", ["api", "maintenance"])
def test_small_images_install_no_machine_learning(stage: str) -> None:
    lines = DOCKERFILE.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
    extras = re.findall(r"\.\[([^\]]*)\]", lines)[0].split(",")
    assert extras == (["service", "otel"] if stage == "api" else ["service", "worker", "otel"])
    assert "torch" not in lines


def test_images_run_as_an_ordinary_user() -> None:
    """By number, and nothing is done as root after that."""
    stages = DOCKERFILE.split("\nFROM ")[2:]
    assert len(stages) == 4
    for stage in stages:
        after = stage.split("\nUSER 10001:10001\n")
        assert len(after) == 2
        assert "RUN" not in after[1]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[0].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in targets if f"make {target} " not in shown] == []


def test_constraints_pin_what_the_project_asks_for() -> None:
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    project = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0]
    asked = {
        m.lower() for m in re.findall(r'^    "([A-Za-z0-9-]+)(?:\[[a-z]+\])?>=', project, flags=re.MULTILINE)
    }
    assert asked <= normal
