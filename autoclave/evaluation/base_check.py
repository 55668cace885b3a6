"""Whether a base can do what jobs need of it, found out by loading it once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoclave.data.messages import Conversation, Message
from autoclave.data.templates import render
from autoclave.defences.methods import METHODS
from autoclave.errors import ModelError
from autoclave.evaluation.generate import end_of_sequence_ids
from autoclave.modelling.backbone import verify_backbone
from autoclave.modelling.base_files import BaseFiles, read_base_files
from autoclave.modelling.bases import LoadedBase, default_dtype, load_base, resolve_device
from autoclave.modelling.exactness import how_it_packs, verify_padding
from autoclave.modelling.layer_parts import layer_parts
from autoclave.modelling.packing import Separation
from autoclave.modelling.target_modules import resolve_target_modules
from autoclave.spec import ATTENTION_QKV, LoraSpec

_TAIL_TOKENS = 8


@dataclass(frozen=True)
class CheckedBase:
    """`defences` are the methods of the fine-tuning stage that the architecture allows; `packing` is how
    packed examples are kept apart, None if they are not (`modelling.packing`). `notes` say what works but
    differs from what one would expect."""

    base: LoadedBase
    files: BaseFiles
    linear_modules: tuple[str, ...]
    defences: tuple[str, ...]
    tied_embeddings: bool
    answers_end: bool
    packing: Separation | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.files),
            "ignored": list(self.files.ignored),
            "linear_modules": list(self.linear_modules),
            "defences": list(self.defences),
            "tied_embeddings": self.tied_embeddings,
            "answers_end": self.answers_end,
            "packing": self.packing,
            "notes": list(self.notes),
        }


def check_base(folder: Path, lora: LoraSpec, *, device: str | None = None) -> CheckedBase:
    """Loads the base and tries what a job would: target modules, the loss's way to the logits, answers in
    batches, packing, the chat template. Raises ModelError and its subclasses, naming what is missing."""
    files = read_base_files(folder)
    device = resolve_device(device)
    base = load_base(folder, dtype=default_dtype(device), device=device)
    linear = tuple(resolve_target_modules(base.model, "all-linear"))
    resolve_target_modules(base.model, lora.target_modules)
    verify_backbone(base.model)
    verify_padding(base.model)
    packing = how_it_packs(base.model)
    answers_end = _answers_end(base)
    return CheckedBase(
        base=base,
        files=files,
        linear_modules=linear,
        defences=possible_defences(base.model),
        tied_embeddings=bool(getattr(base.model.config, "tie_word_embeddings", False)),
        answers_end=answers_end,
        packing=packing,
        notes=tuple(_notes(base.model, files, linear, answers_end, packing)),
    )


def possible_defences(model: Any) -> tuple[str, ...]:
    """Names of the methods that can be trained on an architecture: ldifs compares the outputs of its MLPs."""
    try:
        layer_parts(model, "mlp")
    except ModelError:
        return tuple(name for name in METHODS["finetune"] if name != "ldifs")
    return METHODS["finetune"]


def _answers_end(base: LoadedBase) -> bool:
    """Whether a trained answer ends with a token that ends a generation: else the model learns never to stop.
    Raises ModelError if the template is missing, refuses a plain exchange or is not prefix-consistent."""
    exchange = Conversation([Message("user", "2+2?"), Message("assistant", "4")])
    two = Conversation([*exchange.messages, Message("user", "3+3?"), Message("assistant", "6")])
    render(base.tokenizer, two)
    text, [(start, end)] = render(base.tokenizer, exchange)
    ids = base.tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
    return bool(end_of_sequence_ids(base.model, base.tokenizer) & set(ids[-_TAIL_TOKENS:]))


def _notes(
    model: Any, files: BaseFiles, linear: tuple[str, ...], answers_end: bool, packing: Separation | None
) -> list[str]:
    notes = []
    if files.ignored:
        notes.append(f"never loaded, and not part of the hash: {', '.join(files.ignored)}")
    if not answers_end:
        notes.append(
            "the chat template writes no end-of-sequence token after an answer, so that answers never end by "
            "themselves; set eos_token, or eos_token_id in generation_config.json, to what ends a turn"
        )
    if not set(ATTENTION_QKV) <= set(linear):
        notes.append(
            f"there is no {', '.join(sorted(set(ATTENTION_QKV) - set(linear)))}: the paper's target modules "
            f"do not fit. Choose from {', '.join(linear)}, or attention, or all-linear"
        )
    if any("experts" in name.split(".") for name, _ in model.named_modules()):
        notes.append(
            "it is a mixture of experts: routers and experts are left as they are, so adapters change "
            f"{', '.join(linear)} alone"
        )
    if packing is None:
        notes.append("packed examples would see each other: jobs with packing are refused")
    return notes
