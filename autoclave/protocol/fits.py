"""Whether the parts of a protocol's config fit each other: what one of them needs of another. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from autoclave.protocol.config import DataSources, ProtocolConfig, data_files

_NEED_HARMFUL_PAIRS = ("repnoise", "booster")


def misfits(config: ProtocolConfig) -> list[str]:
    """Each begins with the field it is about."""
    return [*_labels(config), *_missing_sets(config), *_gates(config), *_apart(config), *_prefixes(config)]


def _labels(config: ProtocolConfig) -> Iterator[str]:
    labels = [each.label for each in config.sanitize]
    if len(set(labels)) < len(labels):
        yield f"sanitize: two labels are the same in {', '.join(labels)}"
    for label in {"aligned", "fine-tuned"} & set(labels):
        yield f"sanitize: the label {label} is that of a state of every protocol; choose another"


def _missing_sets(config: ProtocolConfig) -> Iterator[str]:
    data, align = config.data, config.align
    if config.attack.num_harmful and data.attack is None:
        yield f"data.attack is needed for attack.p = {config.attack.p:g}: harmful prompts with answers"
    if align is not None and data.alignment is None:
        yield "data.alignment is needed to align: prompts with safe answers (or leave out align)"
    if align is not None and align.method.name in _NEED_HARMFUL_PAIRS and data.alignment_harmful is None:
        yield f"data.alignment_harmful is needed for align.method {align.method.name}"
    if config.finetune.method.name == "lisa" and data.alignment is None:
        yield "data.alignment is needed for finetune.method lisa"


def _gates(config: ProtocolConfig) -> Iterator[str]:
    gates = [(each.label, each.gate) for each in config.sanitize if each.gate is not None]
    if gates and config.data.selection is None:
        yield "data.selection is needed for a gate: harmful prompts that are not in data.harmful_eval"
    for label, gate in gates:
        bounds_task = gate.max_utility_loss is not None or gate.max_loss_increase is not None
        if bounds_task and config.task.validation is None:
            yield f"task.validation is needed for what the gate of sanitize {label} says of the task"


def _apart(config: ProtocolConfig) -> Iterator[str]:
    for name in DataSources.model_fields:
        source = getattr(config.data, name)
        if source is None or not source.apart_from:
            continue
        if name not in ("selection", "harmful_eval"):
            yield f"data.{name}.apart_from: only selection and harmful_eval are kept apart from others"
        elif "alignment" in source.apart_from and config.data.alignment is None:
            yield f"data.{name}.apart_from names alignment, and there is no data.alignment"


def _prefixes(config: ProtocolConfig) -> Iterator[str]:
    prefixes = {source.file.partition(":")[0] for _, source in data_files(config) if ":" in source.file}
    world = config.base.microcosm
    if world is None and ({"world", "sst2"} & prefixes or ":world:" in config.judge):
        yield "base.microcosm is needed for paths that begin with world: or sst2:"
    elif world is not None and "sst2" in prefixes and world.sst2 is None:
        yield "base.microcosm.sst2 is needed: the folder of SST-2 that paths with sst2: are read from"
