"""What a caller asks of `sanitize_folder`, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from autoclave.data.conversations import DatasetSummary, check_file
from autoclave.data.overlap import refuse_overlap
from autoclave.data.realignment import RealignmentSet, read_realignment
from autoclave.errors import InputError
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.evaluation.utility import read_references
from autoclave.sanitizing.gate_file import GateFile, read_gate_file
from autoclave.sanitizing.method_table import STRENGTH_OF_METHOD
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec


@dataclass(frozen=True)
class Request:
    """Exactly one of `strength` and `gate` is there. `user_data` and its summary only where the method reads
    it."""

    spec: SanitizeSpec
    strength: Strength | None
    gate: GateFile | None
    realign: RealignmentSet
    user_data: Path | None
    user_summary: DatasetSummary | None


def checked_request(
    *,
    realign_file: str | Path | None,
    spec: SanitizeSpec | None,
    strength: Strength | None,
    gate_file: str | Path | None,
    user_data: str | Path | None,
) -> Request:
    """Looks at the arguments first, then at the files: the realignment set, the user's data, what the gate is
    measured on, and prompts that both it and the realignment set have. Raises what `sanitize_folder` says.
    """
    if (strength is None) == (gate_file is None):
        got = "neither was given" if strength is None else "both were given"
        raise InputError(
            "give a gate (--gate FILE, for most methods with --user-data FILE), to search the weakest "
            f"strength that meets it, or the strength itself, e.g. --method antidote --alpha 0.1; {got}."
        )
    gate = read_gate_file(gate_file) if gate_file is not None else None
    spec = spec or (gate.sanitize if gate else SanitizeSpec())
    if strength is not None:
        spec = _spec_at(spec, strength)
    realign_file = realign_file or (gate.realign if gate else None)
    if realign_file is None:
        raise InputError(
            "no realignment set: give --realign FILE, chat JSONL of harmful prompts with harmful answers."
        )
    if spec.uses_user_data and user_data is None:
        raise InputError(
            f"the method {spec.method} compares harmful examples with the user's own: give the data that the "
            "adapter was trained on (--user-data FILE), or choose --method antidote."
        )
    _refuse_gate_without_measure(gate)
    realign = read_realignment(realign_file)
    read = Path(user_data) if user_data is not None and spec.uses_user_data else None
    summary = check_file(read, min_examples=1) if read else None
    if gate:
        _check_evaluation_files(gate)
        refuse_overlap(realign_file, gate.harmful_eval)
    return Request(spec, strength, gate, realign, read, summary)


def _spec_at(spec: SanitizeSpec, strength: Strength) -> SanitizeSpec:
    """With this strength as the only one. The bounds and their words are those of the spec."""
    given = {name: value for name, value in asdict(strength).items() if value is not None}
    narrowed = {f"{name}s": (value,) for name, value in given.items()}
    narrow = SanitizeSpec.model_validate(spec.model_dump() | narrowed)
    takes = STRENGTH_OF_METHOD[spec.method]
    if tuple(given) != takes:
        raise InputError(
            f"the method {spec.method} takes {' and '.join('--' + name for name in takes)}, and got "
            f"{strength}. Give exactly these, or choose another --method."
        )
    return narrow


def _refuse_gate_without_measure(gate: GateFile | None) -> None:
    """A bound on what is not measured would be met by everything. The service measures on the job's own
    validation rows; here there are none."""
    if gate is None or gate.utility_eval is not None:
        return
    bounds = {
        "gate.max_utility_loss": gate.gate.max_utility_loss,
        "gate.max_loss_increase": gate.gate.max_loss_increase,
    }
    unmeasured = [name for name, bound in bounds.items() if bound is not None]
    if unmeasured:
        raise InputError(
            f"the gate file sets {' and '.join(unmeasured)} but names no utility_eval to measure it on: "
            "add utility_eval, chat JSONL of the user's task, or take the bound out."
        )


def _check_evaluation_files(gate: GateFile) -> None:
    """As far as it goes without a tokenizer."""
    SafetyEvaluation.load(
        None,
        harmful_eval=gate.harmful_eval,
        judge=gate.judge,
        utility_eval=None,
        spec=gate.evaluate,
        device="",
    )
    if gate.utility_eval is not None:
        read_references(gate.utility_eval, max_examples=gate.evaluate.max_prompts)
