"""A base that no job can start from, and layers that it does not have, are named when the job is created."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.db import Database
from tests.autoclave.tiny_architectures import save_tiny_architecture
from tests.builders import BASE_ID, Tenant, make_base, make_file

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def create(client: TestClient, database: Database, tenant: Tenant, folder: Path, **body: Any) -> Any:
    with database.transaction() as session:
        make_base(session, path=str(folder), sha256=f"{hash(str(folder)) & 0xFFFFFFFF:064x}")
        file = make_file(session, tenant.project_id).id
    request = {"model": BASE_ID, "training_file": file, **body}
    return client.post("/fine_tuning/jobs", json=request, headers=tenant.headers)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantised (bitsandbytes, 4 bits)",
        ),
    ],
)
def test_an_architecture_is_named(
    client: TestClient, database: Database, tenant: Tenant, tmp_path: Path, config: Any, words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = create(client, database, tenant, tmp_path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_model", "model")
    assert words in error["message"]
    assert str(tmp_path) not in error["message"]


def test_layers_that_the_base_does_not_have(
    client: TestClient, database: Database, tenant: Tenant, tmp_path: Path
) -> None:
    folder = save_tiny_architecture("mixtral", tmp_path / "base")
    for name in ("w1", "gate", "lm_head"):  # an expert's, a router, the head
        answer = create(client, database, tenant, folder, lora={"target_modules": ["q_proj", name]})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "lora.target_modules")
        assert f"no linear layer {name!r} that can be adapted; it has k_proj, o_proj" in error["message"]
    answer = create(client, database, tenant, folder, lora={"target_modules": "attention"})
    assert answer.status_code == 200
    assert answer.json()["lora"]["target_modules"] == "attention"
