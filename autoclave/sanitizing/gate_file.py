"""The operator's file of what an adapter must meet and on what it is measured. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from autoclave.errors import InputError
from autoclave.evaluation.judges.names import absolute_judge
from autoclave.spec import EvaluateSpec, GateSpec, SanitizeSpec, ScreenSpec, Spec


class GateFile(Spec):
    """A `spec.SafetyProfile` in which `version` and `realign` may be missing, so that one file serves the
    service and the command line. `control` and `second_judge` are the service's alone."""

    harmful_eval: str
    judge: str
    utility_eval: str | None = None
    alignment: str | None = None
    gate: GateSpec = GateSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    sanitize: SanitizeSpec = SanitizeSpec()
    screen: ScreenSpec = ScreenSpec()
    realign: str | None = None
    version: str | None = None
    control: str | None = None
    second_judge: str | None = None


def read_gate_file(file: str | Path) -> GateFile:
    """The file with its paths made absolute: they are relative to its folder, that of a judge
    ("exact:PATH") too. Whether they exist is not looked at.

    Raises InputError naming every unknown key and every value that is not allowed.
    """
    path = Path(file)
    try:
        gate = GateFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        issues = "; ".join(f"{_where(issue['loc'])}{issue['msg']}" for issue in error.errors())
        raise InputError(f"{path} is not a gate file: {issues}.") from error
    folder = path.resolve().parent

    def absolute(name: str | None) -> str | None:
        return None if name is None else str(folder / name)

    return gate.model_copy(
        update={
            "harmful_eval": absolute(gate.harmful_eval),
            "utility_eval": absolute(gate.utility_eval),
            "alignment": absolute(gate.alignment),
            "realign": absolute(gate.realign),
            "control": absolute(gate.control),
            "judge": absolute_judge(gate.judge, folder),
            "second_judge": gate.second_judge and absolute_judge(gate.second_judge, folder),
        }
    )


def _where(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""
