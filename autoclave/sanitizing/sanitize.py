"""Sanitising an adapter folder into another one, with the record of what was done.

At a given strength, or at the weakest that meets a gate; then as the service does it: one half of the
harmful prompts chooses, the other judges, and an adapter that does not meet the gate is not written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoclave.data.conversations import Conversation, read_conversations
from autoclave.data.tokens import Encoded, encode
from autoclave.errors import InputError
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.hashing import file_sha256
from autoclave.modelling.adapter_shape import adapter_shape
from autoclave.modelling.adapters import (
    WEIGHTS_FILE,
    load_adapter,
    read_base_name,
    read_config,
    read_provenance,
    save_adapter,
)
from autoclave.modelling.bases import default_dtype, load_base, resolve_device
from autoclave.modelling.continued import aligned_factors, continued_from
from autoclave.modelling.export_gate import check_export, last_logits
from autoclave.outputs import output_folder
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.activations import factor_layers
from autoclave.sanitizing.judged import sanitize_judged
from autoclave.sanitizing.methods import build_sanitizer
from autoclave.sanitizing.record import RECORD_FILE, sanitization_record, write_masks
from autoclave.sanitizing.request import Request, checked_request
from autoclave.sanitizing.rewind import REWIND
from autoclave.sanitizing.sanitizer import MatrixChange
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec

_NUM_PROBES = 8


def sanitize_folder(
    base_dir: str | Path,
    adapter_dir: str | Path,
    realign_file: str | Path | None,
    out_dir: str | Path,
    *,
    spec: SanitizeSpec | None = None,
    strength: Strength | None = None,
    gate_file: str | Path | None = None,
    user_data: str | Path | None = None,
    aligned_adapter: str | Path | None = None,
    max_seq_length: int = 2048,
    batch_tokens: int = 8192,
    device: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Writes a PEFT adapter of unchanged rank, `sanitization.json` and the files of masks (`record`) to
    `out_dir`; returns that record.

    Exactly one of `strength`, which is applied and not judged, and `gate_file`: the weakest strength of
    `spec` (default: that of the file) that meets its gate is searched (`judged`). `realign_file` and
    `user_data` are chat JSONL, of which all tokens count (longer examples are cut at `max_seq_length`); the
    gate file may name the former instead, antidote does not read the latter. `device` is CUDA where there
    is one unless given; the base is float32 on CPU and bfloat16 on CUDA (near-ties can then fall
    otherwise).

    An adapter that was continued from an aligned one (`modelling.continued`) needs that as
    `aligned_adapter`, and the method antidote: masked entries are set back to it (`rewind`), and the record
    and `autoclave.json` say so.

    Raises InputError, its subclasses and pydantic's ValidationError for what cannot be sanitised, as far as
    possible before anything is loaded, and SafetyGateError with the frontier if the gate is missed.
    `out_dir` appears when everything in it is complete, or not at all.
    """
    device = resolve_device(device)
    request = checked_request(
        realign_file=realign_file, spec=spec, strength=strength, gate_file=gate_file, user_data=user_data
    )
    read_config(Path(adapter_dir))  # what is wrong here need not wait for the base
    aligned = _aligned_factors(adapter_dir, aligned_adapter, request.spec)
    with output_folder(out_dir) as out:
        base = load_base(base_dir, dtype=default_dtype(device), device=device)
        model = load_adapter(base, adapter_dir)
        _refuse_without_update(model, f"the adapter in {adapter_dir} changes nothing. Train it first.")

        def encoded(rows: Iterable[Conversation]) -> Encoded:
            return encode(base.tokenizer, rows, max_seq_length=max_seq_length, keep_untrained=True)

        harmful = encoded(request.realign.conversations)
        user = encoded(read_conversations(request.user_data)) if request.user_data else None
        sanitizer = build_sanitizer(
            model,
            request.spec,
            harmful=harmful.examples,
            user=user.examples if user else None,
            device=device,
            aligned=aligned,
            batch_tokens=batch_tokens,
            on_progress=on_progress,
        )
        figures = None
        if request.gate:
            evaluation = SafetyEvaluation.load(
                base.tokenizer,
                harmful_eval=request.gate.harmful_eval,
                judge=request.gate.judge,
                utility_eval=request.gate.utility_eval,
                spec=request.gate.evaluate,
                device=device,
            )
            chosen, figures = sanitize_judged(
                model,
                sanitizer,
                request.spec,
                evaluation,
                request.gate.gate,
                harmful=harmful.examples,
                batch_tokens=batch_tokens,
                on_progress=on_progress,
            )
            probes = evaluation.probes(_NUM_PROBES)
        else:
            assert request.strength is not None
            chosen = request.strength
            probes = [example.input_ids.tolist() for example in harmful.examples[:_NUM_PROBES]]
        changes = sanitizer.apply(chosen)
        _refuse_unpruned(chosen, changes)
        _refuse_without_update(model, f"at {chosen} nothing is left of the adapter. Use a weaker strength.")
        name, revision = read_base_name(adapter_dir)
        name = name or Path(base_dir).resolve().name
        began = continued_from(adapter_dir)
        trained_in = {k: v for k, v in read_provenance(Path(adapter_dir)).items() if k == "trained_in"}
        rewound = {} if began is None else began.as_provenance() | {"sanitised_by": REWIND}
        save_adapter(
            model,
            out,
            base_name=name,
            base_revision=revision,
            base_sha256=base.sha256,
            provenance=trained_in | rewound,
        )
        check_export(
            out,
            base_dir=str(base_dir),
            device=device,
            probes=probes,
            scored=last_logits(model, probes),
            expected=adapter_shape(model),
            base_name=(name, revision),
        )
        # After the check, which knows the files of an adapter only.
        write_masks(sanitizer, chosen, out)
        user_examples = user.examples if user else None
        record = sanitization_record(
            request.spec, chosen, changes, harmful=harmful.examples, user=user_examples
        ) | {
            **trained_in,
            **rewound,
            "device": device,
            "dtype": str(base.model.dtype).removeprefix("torch."),
            "realign_truncated": harmful.num_truncated,
            "user_truncated": user.num_truncated if user else None,
            "gate": request.gate.gate.model_dump() if request.gate else None,
            "evaluate": request.gate.evaluate.model_dump() if request.gate else None,
            "figures": figures,
            "sha256": {
                "base": base.sha256,
                "adapter_in": file_sha256(Path(adapter_dir) / WEIGHTS_FILE),
                "adapter_out": file_sha256(out / WEIGHTS_FILE),
                "realign_data": request.realign.summary.sha256,
                "user_data": request.user_summary.sha256 if request.user_summary else None,
                **_digests_of_gate(request, gate_file),
            },
        }
        (out / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _aligned_factors(
    adapter: str | Path, aligned: str | Path | None, spec: SanitizeSpec
) -> dict[str, Tensor] | None:
    """Raises InputError where rewinding is needed and was not asked for, or the other way round."""
    began = continued_from(adapter)
    if began is None and aligned is None:
        return None
    if aligned is None:
        assert began is not None
        raise InputError(
            f"the adapter in {adapter} was continued from one that was aligned by {began.alignment_method}: "
            "pruned as it is, it would lose its alignment. Give that one (--aligned-adapter DIR) with "
            "--method antidote: entries are then set back to it instead of to zero."
        )
    if spec.method != "antidote":
        raise InputError(
            f"--aligned-adapter is for the method antidote, whose entries can be set back; {spec.method} has "
            "nothing to set back. Give --method antidote."
        )
    return aligned_factors(adapter, aligned)


def _digests_of_gate(request: Request, gate_file: str | Path | None) -> dict[str, str | None]:
    gate = request.gate
    files = {
        "gate_file": gate_file,
        "harmful_eval": gate.harmful_eval if gate else None,
        "utility_eval": gate.utility_eval if gate else None,
    }
    return {name: file_sha256(file) if file is not None else None for name, file in files.items()}


def _refuse_unpruned(strength: Strength, changes: dict[str, MatrixChange]) -> None:
    """A mask that changes no entry would give the adapter back as it came, and call it sanitised."""
    if strength.alpha is not None and all(c.pruned == c.already_zero for c in changes.values()):
        raise InputError(
            f"at {strength} nothing is pruned: every entry is protected or zero already. Use a larger alpha "
            "or a smaller protected_fraction."
        )


@torch.no_grad()
def _refuse_without_update(peft_model: Any, message: str) -> None:
    layers = factor_layers(peft_model)
    pairs = (
        (layer.weight, layers[f"{name.removesuffix('lora_A')}lora_B"].weight)
        for name, layer in layers.items()
        if name.endswith("lora_A")
    )
    if not any((b.float() @ a.float()).any() for a, b in pairs):
        raise InputError(message)
