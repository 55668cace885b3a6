"""How fast finished jobs were: plain numbers of a base, over all projects, with nobody's name on them."""

from __future__ import annotations

import math

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoclave.defences.cost import relative_cost
from autoclave.spec import JobSpec
from service.jobs.states import Status
from service.models import Job

MAX_JOBS = 20


def measured_seconds_per_token(session: Session, base_id: str, base_sha256: str) -> list[float]:
    """Of training in the latest jobs on exactly this base: seconds in the loop per token gone through, as
    plain training would: what a job's defence cost beside that is taken off by its passes."""
    query = (
        select(Job.stage_outputs, Job.hyperparameters, Job.spec)
        .where(
            Job.base_id == base_id,
            Job.base_sha256 == base_sha256,
            Job.status == Status.SUCCEEDED.value,
            Job.starts_from.is_(None),  # whose figures are of another job
        )
        .order_by(Job.finished_at.desc(), Job.id)
        .limit(MAX_JOBS)
    )
    speeds: list[float] = []
    for outputs, hyperparameters, stored in session.execute(query):
        prepare, train = outputs.get("prepare", {}), outputs.get("train", {})
        num_tokens = prepare.get("num_tokens", 0) * hyperparameters.get("n_epochs", 0)
        if train.get("planned_steps"):  # fewer steps were taken if it stopped early
            num_tokens *= train["steps"] / train["planned_steps"]
        spec = JobSpec.model_validate(stored)
        user_steps = spec.train.n_epochs * math.ceil(prepare.get("num_examples", 0) / spec.train.batch_size)
        if user_steps:
            num_tokens *= relative_cost(spec.defence, user_steps)
        if num_tokens and train.get("seconds"):
            speeds.append(train["seconds"] / num_tokens)
    return speeds
