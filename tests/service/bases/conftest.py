"""Two admin keys and a folder that may be named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from autoclave.microcosm.shipped import shipped_world
from service.db import Database
from service.scopes import Role
from service.settings import Settings
from tests.builders import Tenant, make_admin


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """BASE_FOLDERS: the shipped world with its sets."""
    folder = tmp_path / "models"
    shutil.copytree(shipped_world() / "data", folder / "data")
    shutil.copy(shipped_world() / "world.json", folder)
    (folder / "aligned").symlink_to(shipped_world() / "aligned")
    return folder


@pytest.fixture
def settings(settings: Settings, models: Path) -> Settings:
    # The second one holds what the first one links to.
    return settings.model_copy(update={"base_folders": f"{models},{shipped_world()}"})


@pytest.fixture
def admin(database: Database, tenant: Tenant) -> dict[str, str]:
    """Headers of a key that looks after bases."""
    return make_admin(database, tenant.organization_id, role=Role.CATALOG)


@pytest.fixture
def profile(models: Path) -> dict[str, Any]:
    return {
        "version": "1",
        "realign": str(models / "data" / "realign.jsonl"),
        "harmful_eval": str(models / "data" / "harmful_eval.jsonl"),
        "judge": f"exact:{models / 'world.json'}",
        "evaluate": {"max_new_tokens": 12, "max_prompts": 6},
    }


@pytest.fixture
def body(models: Path, profile: dict[str, Any]) -> dict[str, Any]:
    return {"name": "acme/micro", "source": str(models / "aligned"), "profile": profile, "device": "cpu"}
