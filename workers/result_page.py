"""The safety report to read, as a job that succeeds leaves it among its result files."""

from __future__ import annotations

import structlog
from sqlalchemy.orm import Session

from service.models import Job
from service.reports.rendering import render_released
from workers.messages import Published
from workers.watch import DATABASE_OUTAGE

log = structlog.get_logger(__name__)


def result_page(session: Session, job: Job, published: Published) -> str | None:
    """None if it cannot be drawn: that must not cost a job that is done. Raises what a database does that
    does not answer."""
    try:
        return render_released(
            session,
            job,
            published.safety_report,
            package_sha256=published.sha256,
            signed=published.signing_public_key is not None,
        )
    except DATABASE_OUTAGE:
        raise
    except Exception:
        log.exception("the page of the safety report could not be drawn", job_id=job.id)
        return None
