"""Spans on the wire, their parents, what they may not say, and a service without OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog
from fastapi.testclient import TestClient

from service.app import create_app
from service.db import Database
from service.models import Job, OutboxMessage
from service.settings import Settings
from service.storage import Storage
from service.tracing import Tracer, add_trace_id, current_traceparent, tracer_to
from tests.builders import BASE_ID, Tenant, get_job, make_base, make_file
from tests.collector import SentSpan, spans_sent_to
from tests.receiver import Receiver, running_receiver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def tracer(receiver: Receiver) -> Iterator[Tracer]:
    tracer = tracer_to(f"http://127.0.0.1:{receiver.port}/", service="tests")
    yield tracer
    tracer.close()


def sent(tracer: Tracer, receiver: Receiver) -> dict[str, SentSpan]:
    tracer.close()
    return {span.name: span for span in spans_sent_to(receiver)}


def test_spans_are_joined_by_their_surroundings_or_by_a_traceparent(
    tracer: Tracer, receiver: Receiver
) -> None:
    assert current_traceparent() is None
    with tracer.span("outer", kind="server", parent=PARENT):
        outer = current_traceparent()
        with tracer.span("inner", attributes={"autoclave.job.id": "ftjob-x"}) as span:
            span.rename("renamed")
            assert current_traceparent() != outer
        assert current_traceparent() == outer
        tracer.record("past", parent=outer, began_at=5.0, ended_at=7.5, failed_because="died")
    with tracer.span("alone"):
        pass
    spans = sent(tracer, receiver)
    assert spans["outer"].trace_id == PARENT.split("-")[1]
    assert spans["outer"].parent_id == PARENT.split("-")[2]
    assert spans["renamed"].parent_id == spans["past"].parent_id == spans["outer"].span_id
    assert spans["renamed"].attributes == {"autoclave.job.id": "ftjob-x"}
    assert (spans["past"].began_at, spans["past"].ended_at, spans["past"].error) == (5.0, 7.5, "died")
    assert spans["alone"].parent_id == ""
    assert spans["alone"].trace_id != spans["outer"].trace_id
    assert spans["alone"].service == "tests"


def test_an_exception_fails_its_span_without_its_text(tracer: Tracer, receiver: Receiver) -> None:
    with pytest.raises(ValueError), tracer.span("breaks"):
        raise ValueError("what a tenant sent")
    assert sent(tracer, receiver)["breaks"].error == "ValueError"
    assert b"what a tenant sent" not in receiver.received[0].body


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", "x" * 64])
def test_a_parent_that_is_none_begins_a_trace(tracer: Tracer, receiver: Receiver, parent: str) -> None:
    with tracer.span("alone", parent=parent):
        pass
    assert sent(tracer, receiver)["alone"].parent_id == ""


def test_lines_of_a_span_carry_its_trace(tracer: Tracer) -> None:
    assert add_trace_id(None, "info", {}) == {}
    with tracer.span("x", parent=PARENT):
        assert add_trace_id(None, "info", {}) == {"trace_id": PARENT.split("-")[1]}


def test_a_request_is_a_span_by_its_route_and_says_nothing_of_the_client(
    settings: Settings,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    tracer: Tracer,
    receiver: Receiver,
) -> None:
    app = create_app(settings, database=database, storage=storage, tracer=tracer)
    with TestClient(app, base_url="http://testserver") as client:
        headers = {**tenant.headers, "traceparent": PARENT, "x-mark": "markedheader"}
        client.get("/v1/files/file-markedid?after=markedquery", headers=headers)
        client.get("/v1/downloads/markedtoken", headers=headers)
        client.get("/marked/path")
        client.get("/readyz")
    spans = sent(tracer, receiver)
    assert set(spans) == {"GET /v1/files/{file_id}", "GET /v1/downloads/{token}", "GET none"}
    assert spans["GET /v1/files/{file_id}"].attributes == {"http.response.status_code": "404"}
    # A client cannot write into a trace that it knows the id of.
    assert PARENT.split("-")[1] not in {span.trace_id for span in spans.values()}
    assert b"marked" not in b"".join(message.body for message in receiver.received)
    assert tenant.key.encode() not in b"".join(message.body for message in receiver.received)


def test_a_job_keeps_the_request_and_the_trace_that_made_it(
    settings: Settings,
    database: Database,
    storage: Storage,
    tenant: Tenant,
    tracer: Tracer,
    receiver: Receiver,
) -> None:
    with database.transaction() as session:
        make_base(session)
        file = make_file(session, tenant.project_id)
    app = create_app(settings, database=database, storage=storage, tracer=tracer)
    with TestClient(app, base_url="http://testserver/v1") as client:
        body = {"model": BASE_ID, "training_file": file.id}
        answer = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers)
        assert answer.status_code == 200, answer.text
    job = get_job(database, answer.json()["id"])
    span = sent(tracer, receiver)["POST /v1/fine_tuning/jobs"]
    assert job.request_id == answer.headers["x-request-id"]
    assert job.traceparent is not None
    assert job.traceparent.split("-")[1:3] == [span.trace_id, span.span_id]
    with database.snapshot() as session:
        assert [message.traceparent for message in session.query(OutboxMessage)] == [job.traceparent]
    assert "traceparent" not in answer.json()


def test_without_an_endpoint_nothing_is_made(
    settings: Settings, database: Database, storage: Storage, tenant: Tenant
) -> None:
    tracer = tracer_to(None, service="tests")
    with tracer.span("x", attributes={"a": 1}) as span:
        span.rename("y")
        span.set({"b": 2})
        span.fail("z")
        assert current_traceparent() is None
    tracer.record("z", parent=None, began_at=0, ended_at=1)
    tracer.close()
    with database.transaction() as session:
        make_base(session)
        file = make_file(session, tenant.project_id)
    with TestClient(create_app(settings, database=database, storage=storage)) as client:
        body = {"model": BASE_ID, "training_file": file.id}
        client.post("/v1/fine_tuning/jobs", json=body, headers=tenant.headers)
    with database.snapshot() as session:
        [job] = session.query(Job)
    assert job.traceparent is None
    assert job.request_id is not None


def test_an_endpoint_without_the_package_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with structlog.testing.capture_logs() as log:
        tracer = tracer_to("http://127.0.0.1:1", service="tests")
    assert [line["event"] for line in log] == ["traces are off: install autoclave[otel]"]
    with tracer.span("x"):
        assert current_traceparent() is None


def test_everything_starts_where_the_sdk_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; sys.modules['opentelemetry.exporter'] = None\n"
        "import service.app, workers.worker\nfrom service.tracing import tracer_to\n"
        "with tracer_to('http://127.0.0.1:9', service='x').span('y'): print('served')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "traces are off: install autoclave[otel]" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "served"


def test_a_collector_that_is_down_stops_nobody() -> None:
    tracer = tracer_to("http://127.0.0.1:9", service="tests")
    with tracer.span("x"):
        pass
    tracer.close()
