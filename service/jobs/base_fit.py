"""What the files of a base say against a job, before it waits for a worker that would say the same.

Only where this server has those files: otherwise the worker finds out (stage `prepare`).
"""

from __future__ import annotations

from pathlib import Path

from autoclave.errors import ModelError
from autoclave.spec import LoraSpec
from service.catalog.base_files import linear_modules, unsupported
from service.errors import invalid
from service.models import AlignedBase


def refuse_unfit_base(base: AlignedBase, lora: LoraSpec) -> None:
    """Raises ApiError 400 for an architecture that no job can start from, and for target modules that this
    base does not have."""
    folder = Path(base.path)
    reason = unsupported(folder, base.sha256)
    if reason is not None:
        raise invalid(
            f"No job can start from {base.id!r}: {reason} Ask this server's operator.",
            param="model",
            code="unsupported_model",
        )
    if isinstance(lora.target_modules, str):
        return
    try:
        known = linear_modules(folder, base.sha256)
    except ModelError:
        return
    missing = [name for name in lora.target_modules if name not in known]
    if missing:
        raise invalid(
            f"Invalid value for 'lora.target_modules': {base.id!r} has no linear layer {missing[0]!r} that "
            f'can be adapted; it has {", ".join(known)}. Or say "all-linear" or "attention".',
            param="lora.target_modules",
        )
