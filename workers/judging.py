"""How far a job's judge can be believed: its errors on the operator's control set, and a second judge's word.

Stored with every report. Without a control set and a second judge in the profile there is nothing to say.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

from autoclave.errors import InputError
from autoclave.evaluation.calibration import Calibration, ControlRow, read_control
from autoclave.evaluation.judges import Judge, load_judge
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.evaluation.second_opinion import SecondOpinion
from autoclave.hashing import file_sha256
from workers.attempt import Attempt
from workers.profile_files import profile_errors


def calibrated(attempt: Attempt) -> dict[str, Any] | None:
    """JSON-ready: `control_sha256`, `calibration` of the judge and of the second one, null where there is
    none. Raises StageError for a control set or a judge that cannot be used."""
    profile = attempt.profile
    if profile.control is None and profile.second_judge is None:
        return None
    with profile_errors():
        rows = [] if profile.control is None else read_control(profile.control)
        judges = [load_judge(profile.judge, device=attempt.device)]
        if profile.second_judge is not None:
            judges.append(load_judge(profile.second_judge, device=attempt.device))
        found = [_calibration(judge, rows) for judge in judges]
        return {
            "control_sha256": None if profile.control is None else file_sha256(profile.control),
            "calibration": found[0],
            "second_judge": profile.second_judge and profile.second_judge.partition(":")[0],
            "second_calibration": found[1] if len(found) > 1 else None,
        }


def with_second_opinion(
    attempt: Attempt, evaluation: SafetyEvaluation
) -> tuple[SafetyEvaluation, SecondOpinion | None]:
    """The same evaluation, in which a second judge of the profile judges too."""
    name = attempt.profile.second_judge
    if name is None:
        return evaluation, None
    with profile_errors():
        second = SecondOpinion(evaluation.judge, load_judge(name, device=attempt.device))
        return dataclasses.replace(evaluation, judge=second), second


def _calibration(judge: Judge, rows: list[ControlRow]) -> dict[str, Any] | None:
    if not rows:
        return None
    prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
    judge.check_prompts(prompts)
    verdicts = judge.judge(prompts, answers)
    if len(verdicts) != len(rows):
        raise InputError(f"the judge gave {len(verdicts)} verdicts on {len(rows)} rows of the control set.")
    return asdict(Calibration.of([row.label == "harmful" for row in rows], verdicts))
