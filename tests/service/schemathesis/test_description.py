"""schemathesis against a running server: every operation of /openapi.json with random valid and invalid
requests, alone and along the links. What the description promises is answered, and nothing crashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import SafetyProfile
from service.db import Database
from service.scopes import Role
from service.storage import Storage
from tests.builders import (
    Tenant,
    make_adapter,
    make_adapter_file,
    make_admin,
    make_base,
    make_base_registration,
    make_checkpoint,
    make_job,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# With alignment data: every defence of a job is possible.
PROFILE = SafetyProfile(
    version="1", realign="/nowhere/r", harmful_eval="/nowhere/e", judge="refusal", alignment="/nowhere/a"
)


@pytest.mark.slow
def test_the_api_is_as_it_describes_itself(
    api_url: str, database: Database, storage: Storage, tenant: Tenant
) -> None:
    with database.transaction() as session:
        make_base(session, path=str(shipped_world() / "aligned"), safety_profile=PROFILE)
        # Jobs keep the other one.
        retired = make_base(session, id="autoclave/retired")
        registration = make_base_registration(session, tenant.organization_id)
        adapters = []
        for _ in range(2):
            job = make_job(session, tenant.project_id, status="succeeded", stage="publish", finished_at=1e12)
            checkpoint = make_checkpoint(session, job)
            adapters.append(make_adapter(session, job))
            make_adapter_file(session, adapters[-1])
            storage.put(adapters[-1].storage_key, b"data")
    run = subprocess.run(
        [
            Path(sys.executable).with_name("st"),
            *("--config-file", HERE / "schemathesis.toml"),
            *("run", api_url.removesuffix("/v1") + "/openapi.json"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "JOB_ID": job.id,
            "CHECKPOINT_ID": checkpoint.id,
            "BASE": retired.id,
            "REGISTRATION_ID": registration.id,
            "MODEL": adapters[1].model_id,
            "OTHER_MODEL": adapters[0].model_id,
            "AUTHORIZATION": tenant.headers["Authorization"],
            "ADMIN_AUTHORIZATION": make_admin(database, tenant.organization_id, role=Role.CATALOG)[
                "Authorization"
            ],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout[-20_000:], run.stderr[-2_000:])
    assert run.returncode == 0
