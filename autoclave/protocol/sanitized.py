"""One sanitiser of a protocol: at its fixed strength, or searched against its gate as the service does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoclave.errors import SafetyGateError
from autoclave.protocol.config import SanitizerSpec
from autoclave.protocol.steps import ADAPTER_FOLDER, Workplace
from autoclave.sanitizing.sanitize import sanitize_folder
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import EvaluateSpec

GATE_FILE = "gate.json"


def sanitize(
    sanitizer: SanitizerSpec,
    place: Workplace,
    *,
    base: Path,
    adapter: Path,
    realignment: Path,
    upload: Path,
    selection: Path | None,
    validation: Path | None,
    judge: str,
    evaluate: EvaluateSpec,
    device: str,
) -> dict[str, Any]:
    """sanitization.json, and `released`. A gate that no strength meets is a result, too: such an adapter
    would not have left, so it has no figures after."""
    gate_file, strength = None, None
    if sanitizer.gate is None:
        strength = Strength(sanitizer.alpha, sanitizer.mu)
    else:
        gate_file = place.folder / GATE_FILE
        values = {
            "harmful_eval": str(selection.resolve()) if selection else None,
            "utility_eval": str(validation.resolve()) if validation else None,
            "judge": judge,
            "gate": sanitizer.gate.model_dump(mode="json"),
            "evaluate": evaluate.model_dump(mode="json"),
        }
        gate_file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    try:
        record = sanitize_folder(
            base,
            adapter,
            realignment,
            place.folder / ADAPTER_FOLDER,
            spec=sanitizer.spec,
            strength=strength,
            gate_file=gate_file,
            user_data=upload if sanitizer.spec.uses_user_data else None,
            max_seq_length=sanitizer.max_seq_length,
            device=device,
            on_progress=place.on_progress,
        )
    except SafetyGateError as error:
        return {"released": False, "reason": error.reason, "frontier": error.frontier}
    return {"released": True, **record}
