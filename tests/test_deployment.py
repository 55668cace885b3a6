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
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_compose_has_the_services_of_the_distributed_deployment() -> None:
    assert {"postgres", "valkey", "migrate", "api", "worker"} <= SERVICES.keys()


@pytest.mark.parametrize("name", OURS)
def test_build_target_exists_in_the_dockerfile(name: str) -> None:
    assert f" AS {OURS[name]['build']['target']}\n" in DOCKERFILE


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    fields = {field.upper() for field in Settings.model_fields}
    assert set(OURS[name]["environment"]) <= fields


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_each_service_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in OURS[name]["environment"].items():
        monkeypatch.setenv(key, re.sub(r"\$\{[^}]*\}", "secret", value))
    assert Settings().database_url.startswith("postgresql://")  # type: ignore[call-arg]  # from the environment


def test_every_interpolated_variable_is_in_the_example_file() -> None:
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    given = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert wanted == given


@pytest.mark.parametrize("name", OURS)
def test_dependencies_and_volumes_exist(name: str) -> None:
    assert set(OURS[name].get("depends_on", {})) <= SERVICES.keys()
    named = [v.split(":")[0] for v in OURS[name].get("volumes", []) if not v.startswith(("$", ".", "/"))]
    assert set(named) <= COMPOSE["volumes"].keys()


def _commands() -> list[list[str]]:
    image_commands = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    lines = [yaml.safe_load(text) for text in image_commands]
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
    assert "'.[service]'" in api
    assert "torch" not in api
    assert "ml" not in re.findall(r"\.\[([^\]]*)\]", api)[0].split(",")


def test_images_run_as_an_ordinary_user() -> None:
    stages = DOCKERFILE.split("\nFROM ")[2:]
    assert len(stages) == 2
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
