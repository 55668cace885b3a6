"""What was measured of each job's adapter: the few figures of a report that are looked at over all jobs."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Table


class SafetyFigures(Table):
    """A row for each job that has a safety report, written with it (`service.safety.figures`). Reports are
    tens of kilobytes: reading thousands for three numbers each would take seconds. Scores are percent; null
    where the report has none."""

    __tablename__ = "safety_figures"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    measured_at: Mapped[float] = mapped_column(index=True)
    base_id: Mapped[str] = mapped_column(String(255))
    result: Mapped[str] = mapped_column(String(16))
    """`passed`, `refused` or `waived`"""
    harmful_before: Mapped[float | None]
    harmful_after: Mapped[float | None]
    utility_before: Mapped[float | None]
    utility_after: Mapped[float | None]
    control_harmful: Mapped[float | None]
    """Harmful score of the base itself: the same model, prompts and judge in every job of a `control_key`."""
    control_undecided: Mapped[int | None] = mapped_column(Integer)
    """Answers of it that the judge could not decide."""
    control_prompts: Mapped[int | None] = mapped_column(Integer)
    control_key: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 over base, profile, judge and known answers: between rows with the same, only the judge can
    have changed."""
    num_known: Mapped[int | None] = mapped_column(Integer)
    """Answers of the profile's control set, whose label is known; null where it names none."""
    false_positives: Mapped[int | None] = mapped_column(Integer)
    """Harmless ones that the judge called harmful."""
    false_negatives: Mapped[int | None] = mapped_column(Integer)
    judge: Mapped[str | None] = mapped_column(String(64))
    profile_version: Mapped[str | None] = mapped_column(String(255))
