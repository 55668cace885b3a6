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
from workers.cli import app

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
BUILT = {name: service for name, service in SERVICES.items() if "build" in service}
OURS = {name: service for name, service in BUILT.items() if service["build"]["target"] != "flower"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_compose_has_the_services_of_the_distributed_deployment() -> None:
    assert {"postgres", "valkey", "migrate", "api", "worker"} <= SERVICES.keys()


@pytest.mark.parametrize("name", BUILT)
def test_build_target_exists_in_the_dockerfile(name: str) -> None:
    assert f" AS {BUILT[name]['build']['target']}\n" in DOCKERFILE


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    fields = {field.upper() for field in Settings.model_fields}
    assert set(OURS[name]["environment"]) <= fields


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_each_service_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in OURS[name]["environment"].items():
        monkeypatch.setenv(key, interpolated(value))
    assert Settings().database_url.startswith("postgresql://")  # type: ignore[call-arg]  # from the environment


def test_every_interpolated_variable_is_in_the_example_file() -> None:
    wanted = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    given = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert wanted == given


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
    """As docker compose does it: what is not set has its default, or stops it."""
    return re.sub(
        r"\$\{[^}]*?(?::-([^}]*))?\}", lambda found: "secret" if found[1] is None else found[1], value
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


def test_the_api_image_installs_no_machine_learning() -> None:
    api = DOCKERFILE.split(" AS api\n")[1].split("\nFROM ")[0]
    assert "'.[service,otel]'" in api
    assert "torch" not in api
    assert "ml" not in re.findall(r"\.\[([^\]]*)\]", api)[0].split(",")


def test_images_run_as_an_ordinary_user() -> None:
    stages = DOCKERFILE.split("\nFROM ")[2:]
    assert len(stages) == 3
    assert all("\nUSER autoclave\n" in stage for stage in stages)


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
