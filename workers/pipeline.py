"""The five stages of a job, in order, in the child process.

A stage stores its output before it says so, and the supervisor's fenced write makes it count. A resumed
attempt begins at the first stage without such a marker and finds the outputs of those before it.
"""

from __future__ import annotations

from collections.abc import Callable

from service.jobs.states import STAGES, Stage
from workers.attempt import Attempt
from workers.messages import Published, StageFinished
from workers.stages.evaluate import evaluate
from workers.stages.prepare import prepare
from workers.stages.publish import publish
from workers.stages.sanitize import sanitize
from workers.stages.train import train

STAGE_FUNCTIONS: dict[Stage, Callable[[Attempt], StageFinished | Published]] = {
    Stage.PREPARE: prepare,
    Stage.TRAIN: train,
    Stage.SANITIZE: sanitize,
    Stage.EVALUATE: evaluate,
    Stage.PUBLISH: publish,
}


def run_pipeline(attempt: Attempt) -> None:
    """Raises CancelledError when told to stop, StageError and the library's errors when the job cannot
    succeed."""
    for stage in STAGES[STAGES.index(attempt.order.stage) :]:
        attempt.reporter.check()
        message = STAGE_FUNCTIONS[stage](attempt)
        if isinstance(message, StageFinished):
            attempt.outputs[stage.value] = message.output
        attempt.reporter.say(message)
