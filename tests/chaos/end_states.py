"""A run in which all went right: of three jobs one succeeded, one missed the gate, one was cancelled."""

from __future__ import annotations

from chaos.end_state import (
    WEIGHTS,
    AdapterRow,
    Answer,
    AttemptRow,
    EndState,
    Event,
    JobRow,
    StoredObject,
)
from chaos.journal import Entry
from service.jobs.states import STAGES

GOOD, REFUSED, CANCELLED = "ftjob-good", "ftjob-refused", "ftjob-cancelled"
TRAINED = {GOOD: "a" * 64, REFUSED: "b" * 64}
DONE = "The job has successfully completed"
_STAGES = [stage.value for stage in STAGES]


def job(id: str, status: str, stage: str, **changes: object) -> JobRow:
    values = {
        "id": id,
        "project_id": "proj",
        "status": status,
        "stage": stage,
        "fencing": 1,
        "lease_owner": None,
        "error_code": None,
        "key": f"key of {id}",
        "model_id": f"ft:{id}",
        "finished_stages": frozenset(_STAGES[: _STAGES.index(stage)]),
        "gate_passed": False,
        "unsanitised": frozenset({TRAINED[id]} if id in TRAINED else ()),
        **changes,
    }
    return JobRow(**values)  # type: ignore[arg-type]


class _Writer:
    """Writes the journal as triggers would."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._transaction = 0
        self._state: dict[str, tuple[str, str, int]] = {}

    def move(self, job_id: str, app: str, status: str, stage: str, *, claim: bool = False) -> None:
        self._transaction += 1
        old = self._state.get(job_id)
        fencing = (old[2] if old else 0) + claim
        self._state[job_id] = (status, stage, fencing)
        self._add(job_id, app, "jobs", *(old or (None, None, None)))
        self.beside(job_id, app, "job_events", same_transaction=True)

    def beside(self, job_id: str, app: str, source: str, *, same_transaction: bool = False) -> None:
        self._transaction += not same_transaction
        self._add(job_id, app, source, None, None, None)

    def _add(
        self,
        job_id: str,
        app: str,
        source: str,
        old_status: str | None,
        old_stage: str | None,
        old_fencing: int | None,
    ) -> None:
        status, stage, fencing = self._state[job_id]
        self.entries.append(
            Entry(
                at=float(len(self.entries)),
                transaction=self._transaction,
                app=app,
                source=source,
                job_id=job_id,
                old_status=old_status,
                old_stage=old_stage,
                old_fencing=old_fencing,
                status=status,
                stage=stage,
                fencing=fencing,
            )
        )


def _journal() -> list[Entry]:
    writer = _Writer()
    for job_id in (GOOD, REFUSED, CANCELLED):
        writer.move(job_id, "api.1", "validating_files", "prepare")
        writer.move(job_id, "api.1", "queued", "prepare")
    for job_id, app in ((GOOD, "worker-0.1"), (REFUSED, "worker-1.1")):
        writer.move(job_id, app, "running", "prepare", claim=True)
        writer.beside(job_id, app, "job_metrics")
        for stage in _STAGES[1:] if job_id == GOOD else _STAGES[1:3]:
            writer.move(job_id, app, "running", stage)
    writer.move(GOOD, "worker-0.1", "succeeded", "publish")
    writer.beside(GOOD, "worker-0.1", "adapters", same_transaction=True)
    writer.move(REFUSED, "worker-1.1", "failed", "sanitize")
    writer.move(CANCELLED, "api.2", "cancelled", "prepare")
    return writer.entries


def events_of(job_id: str, *texts: str | tuple[str, str]) -> list[Event]:
    events = [Event(f"Created fine-tuning job: {job_id}", {})]
    events.append(Event("Files validated, moving job to queued state", {}))
    for text in texts:
        message, stage = (text, "") if isinstance(text, str) else text
        events.append(Event(message, {"stage": stage} if stage else {}))
    return events


def started(stage: str) -> tuple[str, str]:
    return f"Stage x finished, {stage} started", stage


def healthy() -> EndState:
    start = ("Fine-tuning job started", "prepare")
    whole = [started(stage) for stage in _STAGES[1:]]
    sanitised = {WEIGHTS: "c" * 64, "README.md": "d" * 64}
    key = f"adapters/{GOOD}/1.tar"
    routes = [f"GET /fine_tuning/jobs/{GOOD}/adapter", f"GET /models/ft:{GOOD}/adapter"]
    return EndState(
        jobs=[
            job(GOOD, "succeeded", "publish", gate_passed=True),
            job(REFUSED, "failed", "sanitize", error_code="safety_gate_failed"),
            job(CANCELLED, "cancelled", "prepare", fencing=0),
        ],
        events={
            GOOD: events_of(GOOD, start, "Checkpoint created at step 8", *whole, DONE),
            REFUSED: events_of(REFUSED, start, *whole[:2], "The job failed: harmful"),
            CANCELLED: events_of(CANCELLED, "The job was cancelled"),
        },
        journal=_journal(),
        adapters=[AdapterRow(GOOD, f"ft:{GOOD}", key, "e" * 64)],
        attempts=[AttemptRow(GOOD, 1, "published"), AttemptRow(REFUSED, 1, "failed")],
        objects=[
            StoredObject(key, "e" * 64, sanitised),
            StoredObject("files/file-1", "f" * 64),
            StoredObject(f"private/{REFUSED}/1/train/{WEIGHTS}", TRAINED[REFUSED]),
        ],
        kept_prefixes=frozenset({f"private/{REFUSED}/1/train"}),
        answers=[
            *(Answer(GOOD, route, 200, "e" * 64) for route in routes),
            Answer(GOOD, "a signed link to aaaa", 404, "0" * 64),
            Answer(REFUSED, f"GET /fine_tuning/jobs/{REFUSED}/adapter", 404),
            Answer(REFUSED, "a signed link to bbbb", 404, "0" * 64),
            Answer(CANCELLED, f"POST /fine_tuning/jobs/{CANCELLED}/adapter/links", 404),
        ],
        acknowledged={f"key of {id}": {id} for id in (GOOD, REFUSED, CANCELLED)},
        cancelled={CANCELLED},
    )
