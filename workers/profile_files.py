"""The operator's files as the stages use them. What is wrong with one ends the job as invalid_safety_profile.

The files hold prompts that must not spread: neither the job's owner nor a log gets a word of them, so the
library's errors, some of which quote what they refuse, end here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.realignment import read_realignment
from autoclave.data.tokens import Encoded, encode
from autoclave.errors import InputError, JudgeAwayError, JudgeError, ModelError
from autoclave.evaluation.base_measures import device_name
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.generation.answers import Generator
from autoclave.modelling.weights_digest import worn_digest
from autoclave.spec import MAX_LOSS_TOKENS
from service.bases.wording import without_text
from service.jobs.states import Stage
from service.storage import private_prefix
from workers.attempt import Attempt, StageError
from workers.kept_answers import StoredAnswers

logger = logging.getLogger(__name__)


@contextmanager
def profile_errors() -> Iterator[None]:
    """Turn what the library says about the operator's files into a StageError; the log names the files and
    the lines. A ModelError is about the base and passes through, and so does a judge that is away."""
    try:
        yield
    except (ModelError, JudgeAwayError):
        raise
    except InputError as error:
        logger.error("the safety profile cannot be used: %s", without_text(error))
        # Not "from error": the runner logs causes, and this one may quote a prompt.
        raise unusable_profile() from None


def unusable_profile() -> StageError:
    text = "the safety profile of the base model cannot be used; ask the operator of this server"
    return StageError("invalid_safety_profile", text)


def safety_evaluation(attempt: Attempt) -> SafetyEvaluation:
    """Measures utility on the job's validation file, else on the operator's, else not at all. What was
    answered in an earlier attempt is not answered again."""
    evaluation = _evaluation(attempt, utility_of_job=True)
    key = attempt.outputs[Stage.PREPARE.value].get("answers_key")  # not in what an older version wrote
    if key is None:
        return evaluation

    def stored(generator: Generator, model: Any) -> Generator:
        of = {
            "base": attempt.order.base.sha256,
            "adapter": worn_digest(model),
            "device": device_name(attempt.device),
            "batch_tokens": evaluation.spec.batch_tokens,
        }
        prefix = f"{private_prefix(attempt.order.job_id)}/answers"
        return StoredAnswers(generator, attempt.storage, prefix, key=bytes.fromhex(key), of=of)

    return replace(evaluation, generators=evaluation.generators.kept_by(stored))


def check_evaluation(attempt: Attempt) -> None:
    """Raises StageError for whatever about the profile's prompts, judge or utility file would fail later."""
    _evaluation(attempt, utility_of_job=False)


def realignment(attempt: Attempt) -> Encoded:
    """The realignment set as tokens; all of them count, also those of prompts. Where it is cut is not for the
    job's owner to say: a short `training.max_seq_length` must not hide where harm lies."""
    with profile_errors():
        realign = read_realignment(attempt.profile.realign)
        return encode(
            attempt.tokenizer,
            realign.conversations,
            max_seq_length=max(attempt.spec.train.max_seq_length, MAX_LOSS_TOKENS),
            keep_untrained=True,
        )


def alignment(attempt: Attempt) -> Encoded:
    """Safe answers, on which a job with the defence lisa is trained in turn. Cut where the operator says, as
    `realignment` is."""
    file = attempt.profile.alignment
    with profile_errors():
        if file is None:
            raise InputError("a job is to be trained with lisa, but the profile names no alignment file")
        check_file(file, min_examples=1)
        encoded = encode(
            attempt.tokenizer,
            read_conversations(file),
            max_seq_length=max(attempt.spec.train.max_seq_length, MAX_LOSS_TOKENS),
        )
        if not encoded.examples:
            raise InputError(f"{file} has no conversation with a trained token")
        return encoded


def _evaluation(attempt: Attempt, *, utility_of_job: bool) -> SafetyEvaluation:
    profile = attempt.profile
    utility_eval = attempt.utility_file() if utility_of_job else profile.utility_eval
    with profile_errors():
        try:
            load_judge(profile.judge)
        except JudgeError as error:  # of its name alone, so its words may be logged
            raise InputError(str(error)) from error
        return SafetyEvaluation.load(
            attempt.tokenizer,
            harmful_eval=profile.harmful_eval,
            judge=profile.judge,
            utility_eval=utility_eval,
            spec=profile.evaluate,
            device=attempt.device,
        )
