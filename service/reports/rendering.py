"""The page as HTML: one file that needs no other, the same bytes for the same job."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy.orm import Session

from service.models import Job
from service.reports import reading, words
from service.reports.facts import JobFacts, facts_of
from service.reports.page import MOST_MATRICES, Fragments, fragments_of, page_of

_FILTERS = ("rate", "share", "loss", "count", "when")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in _FILTERS}
    return environment


_ENVIRONMENT = _environment()
STYLE = _ENVIRONMENT.get_template("style.css").render()
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)
"""Allows this one style sheet and nothing else. It stands in the page too, for when it is read as a file."""


def render_report(session: Session, job: Job) -> str:
    """The page of a job that has a safety report. Raises ValueError for one that has none."""
    if job.safety_report is None:
        raise ValueError(f"job {job.id} has no safety report yet")
    return render_page(job.safety_report, facts_of(session, job))


def render_released(
    session: Session, job: Job, report: Mapping[str, Any], *, package_sha256: str, signed: bool
) -> str:
    """As `render_report` will be once the job has ended, whose adapter is about to be released with this
    report."""
    facts = replace(
        facts_of(session, job),
        status="succeeded",
        finished_at=time.time(),
        released=True,
        model_id=reading.text(report.get("model_id")) or job.model_id,
        package_sha256=package_sha256,
        signed=signed,
    )
    return render_page(report, facts)


def render_page(report: Mapping[str, Any], facts: JobFacts) -> str:
    """Encodes as UTF-8, whatever a name holds."""
    html = _ENVIRONMENT.get_template("report.html.j2").render(
        page=page_of(report, facts),
        style=Markup(STYLE),  # noqa: S704  # ours
        policy=CONTENT_SECURITY_POLICY,
        most_matrices=MOST_MATRICES,
    )
    return html.encode("utf-8", errors="replace").decode()


def report_fragments(job: Job) -> Fragments:
    """The drawings alone, to stand in another page. All None for a job without a report."""
    return fragments_of(job.safety_report or {})
