"""Everything that can be refused before training is paid for: base, files, the operator's profile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from autoclave.data.conversations import check_file
from autoclave.errors import AutoclaveError, ModelError
from autoclave.evaluation.harmfulness import read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.utility import read_references
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import resolve_target_modules
from service.jobs.states import Stage
from workers.attempt import Attempt, StageError, data_errors_of
from workers.messages import StageFinished

logger = logging.getLogger(__name__)


def prepare(attempt: Attempt) -> StageFinished:
    """Raises StageError with code base_mismatch, invalid_lora, invalid_training_file, invalid_validation_file
    or invalid_safety_profile."""
    order, reporter = attempt.order, attempt.reporter
    base = attempt.bare_base()
    try:
        resolve_target_modules(base.model, attempt.spec.lora.target_modules)
    except ModelError as error:
        raise StageError("invalid_lora", str(error), param="lora.target_modules") from error
    reporter.check()
    profile_hashes = _check_profile(attempt)
    with data_errors_of(order.training_file, "training_file"):
        summary = check_file(
            attempt.dataset(order.training_file),
            min_examples=order.min_examples,
            max_line_bytes=order.max_line_bytes,
        )
    if order.validation_file is not None:
        with data_errors_of(order.validation_file, "validation_file"):
            read_references(
                attempt.dataset(order.validation_file), max_examples=attempt.profile.evaluate.max_prompts
            )
    reporter.check()
    encoded = attempt.training_set()
    if not encoded.examples:
        text = f"no example of {order.training_file.id} has a trained token within the longest allowed length"
        raise StageError("invalid_training_file", text, param="training_file")
    num_tokens = sum(len(example) for example in encoded.examples)
    reporter.note(f"Training on {len(encoded.examples)} conversations, {num_tokens} tokens per epoch")
    if encoded.num_truncated:
        longest = attempt.spec.train.max_seq_length
        reporter.note(f"{encoded.num_truncated} conversations were cut at {longest} tokens")
    if encoded.num_dropped:
        reporter.note(f"{encoded.num_dropped} conversations were left out: nothing to train after the cut")
    output = {
        "num_conversations": summary.num_examples,
        "num_examples": len(encoded.examples),
        "num_tokens": num_tokens,
        "num_truncated": encoded.num_truncated,
        "num_dropped": encoded.num_dropped,
        "profile_sha256": profile_hashes,
    }
    return StageFinished(stage=Stage.PREPARE, output=output)


def _check_profile(attempt: Attempt) -> dict[str, Any]:
    """Hashes of the operator's files, read as they will be later."""
    profile = attempt.profile
    hashes: dict[str, Any] = {}
    try:
        load_judge(profile.judge)
        check_file(profile.realign, min_examples=1)
        hashes["realign"] = file_sha256(profile.realign)
        prompts = read_prompts(profile.harmful_eval, max_prompts=2)
        hashes["harmful_eval"] = file_sha256(profile.harmful_eval)
        if profile.utility_eval is not None:
            read_references(Path(profile.utility_eval), max_examples=1)
            hashes["utility_eval"] = file_sha256(profile.utility_eval)
    except (AutoclaveError, OSError) as error:
        logger.exception("the safety profile cannot be used")
        text = "the safety profile of the base model cannot be used; ask the operator of this server"
        raise StageError("invalid_safety_profile", text) from error
    if len(prompts) < 2:
        text = "the safety profile needs at least two harmful prompts: one to choose with, one to judge with"
        raise StageError("invalid_safety_profile", text)
    return hashes
