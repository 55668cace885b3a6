"""One job, one trace: from the request over the doorbell and the broker to the stages of the child."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.models import AlignedBase
from service.tracing import Tracer, current_traceparent, tracer_to
from tests.builders import BASE_ID, Tenant, make_base, make_file
from tests.collector import SentSpan, spans_sent_to
from tests.receiver import Receiver, running_receiver
from tests.workers.conftest import Bench, QueuedJob
from tests.workers.test_worker import Workers, wait_for_status, workers
from workers.maintenance import Maintenance

__all__ = ["workers"]

STAGES = ("prepare", "train", "sanitize", "evaluate", "publish")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def tracer(receiver: Receiver) -> Iterator[Tracer]:
    tracer = tracer_to(f"http://127.0.0.1:{receiver.port}", service="tests")
    yield tracer
    tracer.close()


def created_job(bench: Bench, tracer: Tracer, tenant: Tenant) -> str:
    """Over the API."""
    with bench.database.transaction() as session:
        if session.get(AlignedBase, BASE_ID) is None:
            make_base(session)
        file = make_file(session, tenant.project_id)
    app = create_app(bench.settings, database=bench.database, storage=bench.storage, tracer=tracer)
    with TestClient(app, base_url="http://testserver/v1") as client:
        body = {"model": BASE_ID, "training_file": file.id}
        answer = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers)
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def by_name(spans: list[SentSpan]) -> dict[str, SentSpan]:
    return {span.name: span for span in spans}


def assert_joined(spans: list[SentSpan], job_id: str) -> None:
    found = by_name(spans)
    request, ring, run = (found[name] for name in ("POST /v1/fine_tuning/jobs", "ring", "run job"))
    assert len({span.trace_id for span in spans}) == 1
    assert (request.parent_id, ring.parent_id) == ("", request.span_id)
    # A worker may take the job before it hears this bell: after another one, or when it starts.
    assert run.parent_id in (ring.span_id, request.span_id)
    stages = [found[f"stage {stage}"] for stage in STAGES]
    assert {stage.parent_id for stage in stages} == {run.span_id}
    assert all(stage.began_at <= stage.ended_at for stage in stages)
    assert all(one.ended_at <= following.began_at + 1e-6 for one, following in pairwise(stages))
    assert {span.attributes["autoclave.job.id"] for span in (ring, run, *stages)} == {job_id}


def test_the_pieces_join_their_spans(
    bench: Bench, tracer: Tracer, receiver: Receiver, tenant: Tenant
) -> None:
    job_id = created_job(bench, tracer, tenant)
    sent: list[tuple[str, str | None]] = []
    maintenance = Maintenance(
        bench.database,
        bench.storage,
        lambda id: sent.append((id, current_traceparent())),
        max_attempts=2,
        resend_after_seconds=60,
        tracer=tracer,
    )
    maintenance.publish(1.0)
    supervisor = bench.supervisor("happy")
    supervisor._tracer = tracer
    supervisor.run_next(*sent[0])
    tracer.close()
    spans = spans_sent_to(receiver)
    assert len(spans) == 8
    assert_joined(spans, job_id)


def test_an_attempt_that_dies_fails_its_stage_and_the_next_one_stays_in_the_trace(
    bench: Bench, tracer: Tracer, receiver: Receiver, queued_job: QueuedJob
) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job_id = queued_job(traceparent=traceparent)
    for behaviour in ("crashes", "happy"):
        supervisor = bench.supervisor(behaviour)
        supervisor._tracer = tracer
        supervisor.run_next(job_id)  # a doorbell of an older version, without a header
    tracer.close()
    spans = spans_sent_to(receiver)
    assert {span.trace_id for span in spans} == {traceparent.split("-")[1]}
    runs = [span for span in spans if span.name == "run job"]
    assert [run.attributes["autoclave.job.attempt"] for run in runs] == ["1", "2"]
    trained = [span for span in spans if span.name == "stage train"]
    assert [span.error for span in trained] == ["died", ""]
    assert [span.parent_id for span in trained] == [run.span_id for run in runs]


@pytest.mark.slow
def test_a_real_worker_on_a_real_broker_joins_the_trace_of_the_request(
    bench: Bench, tracer: Tracer, receiver: Receiver, tenant: Tenant, workers: Workers
) -> None:
    job_id = created_job(bench, tracer, tenant)
    workers.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{receiver.port}"
    worker = workers.start("tests.workers.scripted_worker", "happy")
    wait_for_status(bench.database, job_id, "succeeded", workers)
    worker.terminate()
    assert worker.wait(20) == 0, workers.log()
    tracer.close()
    spans = spans_sent_to(receiver)
    assert_joined(spans, job_id)
    found = by_name(spans)
    assert found["run job"].service == found["stage train"].service == "autoclave-worker"
    log = [line for line in workers.log().splitlines() if '"claimed"' in line]
    assert f'"trace_id": "{found["run job"].trace_id}"' in log[0]
