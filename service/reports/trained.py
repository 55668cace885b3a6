"""What was trained, in words: base, data, settings, course, dates, lineage. Lines of a term and its words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.reports.facts import FileFacts, JobFacts
from service.reports.reading import entries, mapping, moment, number, text, whole
from service.reports.words import bound, count, duration, listed, loss, plain, size, when

_SCHEDULES = {
    "constant": "stayed there",
    "linear": "fell along a straight line to zero",
    "cosine": "fell along a cosine to zero",
}
_ALIGNMENTS = {
    "sft": "supervised examples of refusals",
    "vaccine": "Vaccine",
    "repnoise": "RepNoise",
    "booster": "Booster",
}


@dataclass(frozen=True)
class Line:
    """`code` is shown in a fixed-width face (hashes, ids), `name` was chosen by the job's owner."""

    term: str
    words: str = ""
    code: str | None = None
    name: str | None = None


def base_lines(report: Mapping[str, Any], facts: JobFacts) -> list[Line]:
    base = mapping(report.get("base"))
    revision, method = text(base.get("revision")), text(base.get("alignment_method"))
    known = _ALIGNMENTS.get(re.split(r"[ ,(]", method or "", maxsplit=1)[0])
    aligned = f"{known} ({method})" if known else method
    registered = "not recorded" if aligned is None else f"{aligned}, as its operator registered it"
    return [
        Line(
            "Base model",
            f"revision {revision}" if revision else "",
            name=text(base.get("id")) or facts.base_id,
        ),
        Line("SHA-256 of the base", code=text(base.get("sha256")) or facts.base_sha256),
        Line("How the base was aligned", registered),
    ]


def data_lines(report: Mapping[str, Any], facts: JobFacts) -> list[Line]:
    data = mapping(report.get("data"))
    lines = [
        *_file_lines("Training file", facts.training_file, mapping(data.get("training_file"))),
        Line("What was in it", _counted(facts)),
    ]
    if facts.validation_file is None and not mapping(data.get("validation_file")):
        return [*lines, Line("Validation file", "none: the job brought no examples of its own")]
    file = facts.validation_file or FileFacts("not recorded")
    return lines + _file_lines("Validation file", file, mapping(data.get("validation_file")))


def _file_lines(what: str, file: FileFacts, reported: Mapping[str, Any]) -> list[Line]:
    sha256 = text(reported.get("sha256")) or file.sha256
    about = [] if file.num_bytes is None else [size(file.num_bytes)]
    if file.num_examples is not None:
        about.append(f"{count(file.num_examples)} conversations")
    return [
        Line(what, ", ".join(about), name=file.name, code=text(reported.get("id")) or file.id),
        Line(f"SHA-256 of the {what.lower()}", code=sha256 or "not recorded"),
    ]


def _counted(facts: JobFacts) -> str:
    prepared = facts.prepared
    num_examples, num_tokens = whole(prepared.get("num_examples")), whole(prepared.get("num_tokens"))
    if num_examples is None:
        return "not measured"
    said = f"{count(num_examples)} conversations to train on"
    if num_tokens is not None:
        said += f", {count(num_tokens)} tokens"
    cut, dropped = whole(prepared.get("num_truncated")), whole(prepared.get("num_dropped"))
    if not cut and not dropped:
        return f"{said}; none had to be cut or left out"
    return f"{said}; {count(cut)} cut because they were too long, {count(dropped)} left out"


def setting_lines(facts: JobFacts) -> list[Line]:
    lora, train = mapping(facts.spec.get("lora")), mapping(facts.spec.get("train"))
    lines = [Line("Adapter", _adapter(lora))] if lora else []
    if not train:
        return [*lines, Line("Settings", "not recorded")]
    return [
        *lines,
        Line("Passes and batches", _passes(train)),
        Line("Learning rate", _learning_rate(train)),
        Line("What was learned", _learned(train)),
        Line("Defence in training", _defence(mapping(facts.spec.get("defence")))),
        Line("Limits", _limits(train)),
        Line("Chance", f"seed {train.get('seed', facts.seed)}: the same job gives the same draws"),
    ]


def _adapter(lora: Mapping[str, Any]) -> str:
    targets = lora.get("target_modules")
    on = {
        "all-linear": "every linear layer but the output head",
        "attention": "the linear layers of attention",
    }.get(str(targets)) or (
        listed([str(target) for target in entries(targets)]) or "layers that are not recorded"
    )
    rank, scale = _figure(lora, "r"), _figure(lora, "lora_alpha")
    said = f"a low-rank adapter (LoRA) of rank {rank} and scale {scale} on {on}"
    dropout = number(lora.get("lora_dropout"))
    return said + (f", dropout {plain(dropout)}" if dropout else ", without dropout")


def _passes(train: Mapping[str, Any]) -> str:
    epochs, batch_size = _figure(train, "n_epochs"), _figure(train, "batch_size")
    said = f"{epochs} passes over the data, {batch_size} conversations per step"
    stopping = mapping(train.get("early_stopping"))
    if not stopping:
        return f"{said}; no early stop was asked for"
    patience, least = _figure(stopping, "patience"), _figure(stopping, "min_delta")
    return (
        f"{said}; to stop early after {patience} evaluations in a row without an improvement of "
        f"{least} nats per token"
    )


def _learning_rate(train: Mapping[str, Any]) -> str:
    warmup = number(train.get("warmup_ratio"))
    said = f"{_figure(train, 'learning_rate')}"
    if warmup:
        said += f", reached over the first {bound(100 * warmup)} of the steps"
    course = _SCHEDULES.get(str(train.get("schedule")))
    said += f", then it {course}" if course else ""
    said += f"; gradients of a norm above {_figure(train, 'max_grad_norm')} were shortened"
    decay = number(train.get("weight_decay"))
    return said + (f"; weight decay {plain(decay)}" if decay else "; no weight decay")


def _learned(train: Mapping[str, Any]) -> str:
    if train.get("train_on_inputs") is True:
        return "every token of a conversation"
    return "the assistant's answers alone; prompts were read, not learned"


def _defence(defence: Mapping[str, Any]) -> str:
    name = text(defence.get("name")) or "sft"
    shown = {key.replace("_", " "): _figure(defence, key) for key in defence if key != "name"}
    settings = ", ".join(f"{key} {value}" for key, value in shown.items())
    if name == "lisa":
        return f"Lisa, in turn with the operator's safe answers ({settings})"
    return f"LDIFS, held near the features of the base ({settings})" if name == "ldifs" else "none"


def _limits(train: Mapping[str, Any]) -> str:
    refused = train.get("too_long") == "refuse"
    said = f"conversations of more than {count(whole(train.get('max_seq_length')))} tokens were "
    said += "refused" if refused else "cut"
    return said + ("; short ones were packed together" if train.get("packing") is True else "")


def _figure(values: Mapping[str, Any], name: str) -> str:
    value = number(values.get(name))
    return "(not recorded)" if value is None else plain(value)


def course_lines(report: Mapping[str, Any], facts: JobFacts) -> list[Line]:
    trained = {**facts.trained, **mapping(report.get("training"))}
    steps, planned = whole(trained.get("steps")), whole(trained.get("planned_steps"))
    early = trained.get("early_stopped") is True
    said = f"{count(steps)} steps" + (
        f" of {count(planned)} planned, stopped early" if early and planned else ""
    )
    tokens, seconds = whole(trained.get("trained_tokens")), number(trained.get("seconds"))
    first, final = number(trained.get("first_loss")), number(trained.get("final_loss"))
    known = first is not None and final is not None
    lines = [
        Line("Steps", "not recorded" if steps is None else said),
        Line("Trained tokens", "not recorded" if tokens is None else count(tokens)),
        Line(
            "Training loss",
            f"from {loss(first)} to {loss(final)} nats per token" if known else "not recorded",
        ),
        Line("Time spent training", duration(seconds)),
    ]
    best = number(trained.get("best_valid_loss"))
    if best is not None:
        at = count(whole(trained.get("best_step")))
        lines.append(Line("Lowest validation loss", f"{loss(best)} nats per token, after step {at}"))
    return lines


def date_lines(facts: JobFacts) -> list[Line]:
    attempts = facts.attempts
    lines = [
        Line("Asked for", when(moment(facts.created_at))),
        Line("Begun", when(moment(facts.started_at))),
        Line("Finished", when(moment(facts.finished_at))),
    ]
    if attempts:
        again = (
            ""
            if attempts == 1
            else "; an interrupted attempt is taken up again where its work was last saved"
        )
        lines.append(Line("Attempts", f"{count(attempts)}{again}"))
    return lines


def lineage_lines(report: Mapping[str, Any], facts: JobFacts) -> list[Line]:
    """Empty for a job that began from nothing but its base."""
    lines = []
    if facts.cloned_from:
        lines.append(Line("Made from the inputs of job", code=facts.cloned_from))
    if facts.from_checkpoint:
        lines.append(Line("Releases the checkpoint", code=facts.from_checkpoint))
    start = mapping(report.get("started_from")) or mapping(facts.starts_from)
    if start:
        source = text(start.get("job_id")) or "not recorded"
        lines.append(Line("Trained by another job", "this one trained nothing of its own", code=source))
    return lines
