"""Everything that can be refused before training is paid for: base, files, the operator's profile."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

from autoclave.data.conversations import check_file
from autoclave.data.overlap import refuse_overlap
from autoclave.errors import ModelError
from autoclave.evaluation.base_check import possible_defences
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.screening import screen_file
from autoclave.evaluation.utility import encode_references, read_references
from autoclave.hashing import file_sha256
from autoclave.memory import estimate_memory, weight_shapes
from autoclave.modelling.exactness import how_it_packs, verify_padding
from autoclave.modelling.target_modules import resolve_target_modules
from autoclave.spec import MAX_LOSS_TOKENS
from service.jobs.states import Stage
from workers.attempt import Attempt, StageError, data_errors_of
from workers.judging import calibrated
from workers.messages import MemoryEstimated, StageFinished
from workers.profile_files import alignment, check_evaluation, profile_errors, realignment, unusable_profile
from workers.together import num_processes

logger = logging.getLogger(__name__)


def prepare(attempt: Attempt) -> StageFinished:
    """Raises StageError with code base_mismatch, invalid_lora, unsupported_defence, packing_unsupported,
    invalid_training_file, invalid_validation_file, harmful_training_file or invalid_safety_profile;
    ModelError for an architecture whose answers in batches would not be its own."""
    order, reporter = attempt.order, attempt.reporter
    say_memory(attempt, longest_row=1)  # before the base is loaded: it alone may be too large
    base = attempt.bare_base()
    verify_padding(base.model)
    if attempt.spec.train.packing and how_it_packs(base.model) is None:
        text = f"packed conversations would see each other on {order.base.id}; leave packing out"
        raise StageError("packing_unsupported", text, param="training.packing")
    try:
        resolve_target_modules(base.model, attempt.spec.lora.target_modules)
    except ModelError as error:
        raise StageError("invalid_lora", str(error), param="lora.target_modules") from error
    name = attempt.spec.defence.name
    if order.starts_from is None and name not in possible_defences(base.model):
        text = f"{name} is not possible with {order.base.id}, which has none of the layers that it compares"
        raise StageError("unsupported_defence", text, param="defence.name")
    reporter.check()
    hashes, longest_row = _check_profile(attempt)
    output: dict[str, Any] = {"profile_sha256": hashes, "judging": calibrated(attempt)}
    output["answers_key"] = secrets.token_hex(32)
    if order.starts_from is None or attempt.profile.sanitize.uses_user_data:
        output |= _check_training_file(attempt, longest_row)
    if order.starts_from is None and attempt.profile.screen.policy != "off":
        output["screen"] = _screen(attempt)
    if order.validation_file is not None:
        most = attempt.profile.evaluate.max_prompts
        with data_errors_of(order.validation_file, "validation_file"):
            file = attempt.dataset(order.validation_file)
            read_references(file, max_examples=most)
            encode_references(attempt.tokenizer, file, max_examples=most, max_seq_length=MAX_LOSS_TOKENS)
    return StageFinished(stage=Stage.PREPARE, output=output)


def _check_training_file(attempt: Attempt, longest_row: int) -> dict[str, Any]:
    """Of a job that starts from a kept adapter only if the sanitiser looks at the file: it may be gone.
    `longest_row` is of what else is trained on."""
    order, reporter = attempt.order, attempt.reporter
    with data_errors_of(order.training_file, "training_file"):
        summary = check_file(
            attempt.dataset(order.training_file),
            min_examples=order.min_examples,
            max_line_bytes=order.max_line_bytes,
        )
    encoded = attempt.training_set()
    if not encoded.examples:
        text = f"no example of {order.training_file.id} has a trained token within the longest allowed length"
        raise StageError("invalid_training_file", text, param="training_file")
    validation = attempt.validation_set()  # what is too long, if that is refused, shows here
    if attempt.spec.train.early_stopping and not validation.examples:
        text = f"no example of {order.validation_file and order.validation_file.id} has a trained token"
        raise StageError("invalid_validation_file", text, param="validation_file")
    num_bytes = None
    if order.starts_from is None:
        num_bytes = say_memory(attempt, longest_row=max(longest_row, *map(len, encoded.examples)))
    num_tokens = sum(len(example) for example in encoded.examples)
    if order.starts_from is None:
        reporter.note(f"Training on {len(encoded.examples)} conversations, {num_tokens} tokens per epoch")
    if encoded.num_truncated:
        longest = attempt.spec.train.max_seq_length
        reporter.note(f"{encoded.num_truncated} conversations were cut at {longest} tokens")
    if encoded.num_dropped:
        reporter.note(f"{encoded.num_dropped} conversations were left out: nothing to train after the cut")
    return {
        "num_conversations": summary.num_examples,
        "num_examples": len(encoded.examples),
        "num_tokens": num_tokens,
        "num_truncated": encoded.num_truncated,
        "num_dropped": encoded.num_dropped,
        "memory_bytes": num_bytes,
    }


def say_memory(attempt: Attempt, *, longest_row: int) -> int | None:
    """What training needs of the device, to the supervisor, who knows how much there is. Nothing is said of a
    base whose weights are in another format: it is tried. Returns the bytes.

    With activation checkpointing left to us, that without it is said if this worker may use so much; else
    what it needs at least."""
    spec, allowed = attempt.spec, attempt.order.memory_bytes
    # A GPU holds one of the processes that train together; a machine's memory holds all of them.
    together = 1 if str(attempt.device).startswith("cuda") else num_processes(attempt.order, attempt.device)

    def needed(checkpointing: bool | None) -> int:
        estimate = estimate_memory(
            shapes,
            spec.lora,
            spec.train,
            longest_row=longest_row,
            method=spec.defence,
            device="cuda" if str(attempt.device).startswith("cuda") else "cpu",
            checkpointing=checkpointing,
        )
        return estimate.total * together

    try:
        shapes = weight_shapes(Path(attempt.order.base.path))
        num_bytes = needed(None)
        if spec.train.activation_checkpointing == "auto" and 0 < allowed < num_bytes:
            num_bytes = needed(True)
    except ModelError as error:
        logger.info("memory cannot be estimated: %s", error)
        return None
    attempt.reporter.say(MemoryEstimated(num_bytes=num_bytes))
    return num_bytes


def _screen(attempt: Attempt) -> dict[str, Any]:
    """The profile's judge over the upload's answers. Neither the owner nor a log is told which are harmful:
    whoever tries what passes should not be helped."""
    policy, reporter = attempt.profile.screen, attempt.reporter
    file = attempt.dataset(attempt.order.training_file)

    def between_batches(done: int, total: int) -> None:  # noqa: ARG001
        reporter.check()

    with profile_errors():
        judge = load_judge(attempt.profile.judge, device=attempt.device)
        found = screen_file(file, judge, max_answers=policy.max_answers, between_batches=between_batches)
    share = f"{found.harmful_share:.1f} % of {found.num_judged} answers"
    if policy.policy == "refuse" and found.harmful_share > policy.max_harmful:
        text = (
            f"{share} in {attempt.order.training_file.id} are harmful by the judge of this server, and it "
            f"trains on {policy.max_harmful:g} % at most"
        )
        raise StageError("harmful_training_file", text, param="training_file")
    reporter.note(f"The judge of this server calls {share} in the training file harmful")
    return {"policy": policy.policy, "max_harmful": policy.max_harmful, **found.as_dict()}


def _check_profile(attempt: Attempt) -> tuple[dict[str, Any], int]:
    """Hashes of the operator's files, read as they will be later, and the longest row of those that the job
    is trained on (0: none)."""
    profile = attempt.profile
    files = {
        "realign": profile.realign,
        "harmful_eval": profile.harmful_eval,
        "utility_eval": profile.utility_eval,
        "alignment": profile.alignment if attempt.trains_on_alignment else None,
        "control": profile.control,
    }
    longest_row = 0
    try:
        hashes = {name: file_sha256(file) for name, file in files.items() if file is not None}
        realignment(attempt)
        if attempt.trains_on_alignment:
            longest_row = max(map(len, alignment(attempt).examples))
        check_evaluation(attempt)
        with profile_errors():
            refuse_overlap(profile.realign, profile.harmful_eval)
            if files["alignment"] is not None:
                refuse_overlap(files["alignment"], profile.harmful_eval)
    except OSError as error:
        logger.error("the safety profile cannot be used: %s", error)
        raise unusable_profile() from error
    return hashes, longest_row
