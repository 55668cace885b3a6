"""The rows that a job needs: a base whose files are nowhere, and a file without content."""

from __future__ import annotations

from sqlalchemy.orm import Session

from autoclave.spec import JobSpec, SafetyProfile
from service.catalog import register_base
from service.models import File

BASE_ID = "autoclave/benchmark-base"
BASE_SHA256 = "b" * 64


def add_base(session: Session, *, now: float) -> None:
    register_base(
        session,
        id=BASE_ID,
        revision="1",
        path="/nowhere",
        sha256=BASE_SHA256,
        alignment_method="sft",
        default_spec=JobSpec(),
        safety_profile=SafetyProfile(version="1", realign="/r", harmful_eval="/e", judge="refusal"),
        now=now,
    )


def add_file(session: Session, file_id: str, project_id: str, *, now: float) -> None:
    session.add(
        File(
            id=file_id,
            project_id=project_id,
            filename="train.jsonl",
            purpose="fine-tune",
            bytes=100,
            sha256="a" * 64,
            storage_key=f"files/{file_id}",
            status="processed",
            num_examples=10,
            created_at=now,
        )
    )
    session.flush()
