"""Lines as a collector of logs gets them: JSON, with the ids that join them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import structlog
from fastapi.testclient import TestClient

from service.db import Database
from tests.builders import BASE_ID, Tenant, make_base, make_file


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


def logged(program: str) -> list[dict[str, object]]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_lines_of_ours_and_of_libraries_have_the_same_shape() -> None:
    ours, theirs, broken = logged(
        "import logging, structlog\n"
        "from service import log\n"
        "log.configure(json=True, fields={'job_id': 'ftjob-x', 'attempt': 2})\n"
        "with structlog.contextvars.bound_contextvars(request_id='req_y'):\n"
        "    structlog.get_logger('service.x').info('one', number=1)\n"
        "    logging.getLogger('some.library').warning('two %s', 2)\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('workers.x').exception('three')\n"
    )
    shared = {"job_id": "ftjob-x", "attempt": 2, "request_id": "req_y"}
    assert {**ours, "timestamp": ""} == {
        **shared, "event": "one", "number": 1, "level": "info", "logger": "service.x", "timestamp": ""
    }  # fmt: skip
    assert {**theirs, "timestamp": ""} == {
        **shared, "event": "two 2", "level": "warning", "logger": "some.library", "timestamp": ""
    }  # fmt: skip
    assert (broken["event"], broken["level"], broken["job_id"]) == ("three", "error", "ftjob-x")
    assert "ZeroDivisionError" in str(broken["exception"])


def test_what_a_line_says_itself_wins_over_what_all_lines_say() -> None:
    [line] = logged(
        "import structlog\nfrom service import log\n"
        "log.configure(json=True, fields={'job_id': 'all'})\n"
        "structlog.get_logger('x').info('one', job_id='own')\n"
    )
    assert line["job_id"] == "own"


def test_requests_and_jobs_find_each_other(client: TestClient, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        make_base(session)
        file = make_file(session, tenant.project_id)
    capture = structlog.testing.LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    try:
        body = {"model": BASE_ID, "training_file": file.id}
        created = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers)
        job_id = created.json()["id"]
        read = client.get(f"/fine_tuning/jobs/{job_id}", headers=tenant.headers)
        client.get("/models", headers=tenant.headers)
    finally:
        structlog.configure(processors=before)
    found = [(line["event"], line["request_id"]) for line in capture.entries if line.get("job_id") == job_id]
    assert found == [
        ("job_created", created.headers["x-request-id"]),
        ("request", read.headers["x-request-id"]),
    ]
    assert all(line["project_id"] == tenant.project_id for line in capture.entries)
