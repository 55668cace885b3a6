"""The files that a job leaves for its owner: the training curve as CSV, the safety report as JSON and HTML.

The bytes are stored before the transaction that ends the job, the rows are written in it: a row always
has its bytes, and bytes without a row are swept up (`workers.sweep`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from service import ids
from service.jobs.metrics import Point
from service.models import File, Job
from service.storage import Storage, file_key

PURPOSE = "fine-tune-results"
CURVE_FILENAME = "step_metrics.csv"
CURVE_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "tokens_per_second": "tokens_per_second",
}
"""Of `step_metrics.csv`, and what of a point each holds."""
REPORT_FILENAME = "safety_report.json"
PAGE_FILENAME = "safety_report.html"


@dataclass(frozen=True)
class ResultFile:
    """Stored below `service.storage.file_key(id)`."""

    id: str
    filename: str
    num_bytes: int
    sha256: str


def results_csv(points: Sequence[Point], *, valid_loss: float | None) -> bytes:
    """One line per step: OpenAI's columns under their names, then ours. `valid_loss` is for jobs that did not
    measure it while they trained: it belongs to the last line."""
    if valid_loss is not None and points and all(point.valid_loss is None for point in points):
        points = [*points[:-1], replace(points[-1], valid_loss=valid_loss)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    for point in points:
        writer.writerow([getattr(point, field) for field in CURVE_COLUMNS.values()])
    return text.getvalue().encode()


def store_results(
    storage: Storage,
    *,
    points: Sequence[Point],
    report: dict[str, Any],
    valid_loss: float | None,
    page: str | None = None,
) -> list[ResultFile]:
    """No curve where no step was measured, no page where none is given."""
    contents = {REPORT_FILENAME: json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n"}
    if points:
        contents = {CURVE_FILENAME: results_csv(points, valid_loss=valid_loss), **contents}
    if page is not None:
        contents[PAGE_FILENAME] = page.encode()
    files: list[ResultFile] = []
    for filename, content in contents.items():
        file = ResultFile(ids.file_id(), filename, len(content), hashlib.sha256(content).hexdigest())
        storage.put(file_key(file.id), content)
        files.append(file)
    return files


def add_results(session: Session, job: Job, files: Sequence[ResultFile], *, now: float) -> list[str]:
    """Rows for stored files; their ids."""
    for file in files:
        session.add(
            File(
                id=file.id,
                project_id=job.project_id,
                filename=file.filename,
                purpose=PURPOSE,
                bytes=file.num_bytes,
                sha256=file.sha256,
                storage_key=file_key(file.id),
                status="processed",
                num_examples=None,
                created_at=now,
            )
        )
    return [file.id for file in files]


def validation_loss(job: Job, report: dict[str, Any]) -> float | None:
    """Of the fine-tuned adapter before it was sanitised, on the job's own validation file; None if it
    has none."""
    if job.validation_file_id is None:
        return None
    loss = report.get("measurements", {}).get("before", {}).get("held_out_loss")
    return float(loss) if isinstance(loss, int | float) else None
