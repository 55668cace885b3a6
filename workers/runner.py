"""The child process: runs one attempt at one job. `python -m workers.runner ORDER.json DESCRIPTOR`.

It knows no database; what it has to say goes to the descriptor. Exit status 0: it said how it ended, or was
told to stop. 42: the accelerator's memory was not enough. 43: the storage failed. 44: one of its training
processes is gone. 45: the judge did not answer. Anything else: the attempt died.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from autoclave.errors import (
    AutoclaveError,
    CancelledError,
    JudgeAwayError,
    JudgeError,
    NonFiniteLossError,
    OutOfMemoryError,
    RankLostError,
)
from autoclave.modelling.bases import LoadedBase
from service import log
from service.storage import StorageCorruptError, StorageUnavailableError, storage_from_url
from workers.attempt import Attempt, StageError
from workers.messages import Failed
from workers.order import (
    JUDGE_AWAY_EXIT,
    OUT_OF_MEMORY_EXIT,
    RANK_LOST_EXIT,
    STORAGE_DOWN_EXIT,
    log_fields,
    read_order,
)
from workers.pipeline import run_pipeline
from workers.reporter import Reporter
from workers.tracking import Tracking

logger = logging.getLogger(__name__)


def verdict_of(error: AutoclaveError) -> Failed:
    """What the job's owner reads. Errors about the base, the judge or the operator's files name paths of
    this machine: their text stays in the log."""
    match error:
        case StageError():
            return Failed(
                code=error.code,
                message=error.message,
                param=error.param,
                safety_report=error.safety_report,
            )
        case NonFiniteLossError() | OutOfMemoryError():
            return Failed(code=error.code, message=str(error))
        case JudgeError():
            text = "the judge of the base model gave no verdict; ask the operator of this server"
            return Failed(code="invalid_safety_profile", message=text)
        case _:
            text = "the server cannot run this job as its base model is set up; ask its operator"
            return Failed(code=error.code, message=text)


def main(
    order_path: Path, descriptor: int, *, base: LoadedBase | None = None, num_threads: int | None = None
) -> int:
    """The exit status. `base`: in host memory already, of a process that was forked; `num_threads`: how many
    a fresh process would use."""
    order = read_order(order_path)
    log.configure(json=True, fields=log_fields(order))
    # Said aloud also where it changes nothing: MKL then always uses that many, and a fresh process gives the
    # same bits as a forked one.
    torch.set_num_threads(num_threads or torch.get_num_threads())
    transformers_logging.disable_progress_bar()
    reporter = Reporter(descriptor, order.stop_flag)
    began_at = time.monotonic()
    with Tracking(order, lambda text: reporter.note(text, level="warn")) as tracking:
        reporter.listener = tracking.hear
        try:
            run_pipeline(Attempt(order, storage_from_url(order.storage_url), reporter, base=base))
        except CancelledError:
            logger.info("stopped as asked")
        except RankLostError as error:
            logger.error("%s", error)
            return RANK_LOST_EXIT
        except JudgeAwayError as error:
            logger.error("%s", error)
            return JUDGE_AWAY_EXIT
        except AutoclaveError as error:
            logger.exception("the job cannot succeed")
            reporter.say(verdict_of(error))
        except StorageCorruptError:
            raise  # no retry mends it, so this attempt counts
        except StorageUnavailableError:
            logger.exception("the storage fails")
            return STORAGE_DOWN_EXIT
        except (torch.OutOfMemoryError, MemoryError):
            logger.exception("out of memory")
            return OUT_OF_MEMORY_EXIT
    logger.info("ended after %.1f s", time.monotonic() - began_at)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
