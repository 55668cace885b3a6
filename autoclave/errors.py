"""The exceptions of the library, all under one root.

    AutoclaveError
    ├── InputError (also ValueError)      the caller gave something that cannot work
    │   ├── DataError                     a dataset broke a rule; carries every issue with its line
    │   ├── RealignmentError              a realignment set that nothing can be learned from
    │   ├── OverlapError                  two sets that must be disjoint share prompts; carries where
    │   ├── ModelError                    a base or adapter folder is missing something or unsupported
    │   │   ├── BaseMismatchError         the adapter belongs to another base
    │   │   ├── NonFiniteWeightsError     a weight is NaN or infinite; names it
    │   │   └── UnsupportedAdapterError   an adapter type whose pruning is not defined
    │   ├── JudgeError                    an unknown judge, or one that cannot judge this prompt
    │   │   └── JudgeAwayError            one behind an endpoint that does not answer; it may later
    │   └── EndpointError                 an endpoint that should answer prompts and does not
    ├── NonFiniteLossError                training diverged; carries the step
    ├── OutOfMemoryError                  training does not fit, also with one conversation at a time
    ├── SafetyGateError                   no strength met the gate; carries the frontier
    ├── RankLostError                     a process of a run over several ended by itself
    ├── OtherRankError                    another process of the run failed, and says why
    └── CancelledError                    the caller asked to stop

`code` is the stable name that the service puts on the wire and the CLI prints. Every exception can be
made again from its `args`, which are plain data, because it may cross a process border (`error_records`).
"""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


class AutoclaveError(Exception):
    code: ClassVar[str] = "internal_error"


class InputError(AutoclaveError, ValueError):
    code: ClassVar[str] = "invalid_input"


@dataclass(frozen=True)
class DataIssue:
    """One broken rule in one line of a dataset.

    `line` counts from 1 as editors do; 0 means the file as a whole. `pointer` is an RFC 6901
    JSON pointer into that line ("" is the whole line).
    """

    line: int
    pointer: str
    rule: str
    message: str
    fix: str

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line else "file"
        at = f" at {self.pointer}" if self.pointer else ""
        return f"{where}{at}: {self.message} [{self.rule}] {self.fix}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class DataError(InputError):
    """A dataset broke one or more rules. `issues` holds the first ones, `num_issues` counts all."""

    code: ClassVar[str] = "invalid_training_file"

    def __init__(self, issues: list[DataIssue], num_issues: int | None = None, source: str = "") -> None:
        assert issues, "a DataError needs at least one issue"
        super().__init__(issues, num_issues, source)
        self.issues = issues
        self.num_issues = len(issues) if num_issues is None else num_issues
        self.source = source

    def __str__(self) -> str:
        shown = "; ".join(str(issue) for issue in self.issues[:3])
        more = f" (and {self.num_issues - 3} more)" if self.num_issues > 3 else ""
        prefix = f"{self.source}: " if self.source else ""
        return f"{prefix}{shown}{more}"


class RealignmentError(InputError):
    code: ClassVar[str] = "invalid_realignment_set"


class OverlapError(InputError):
    """`pairs` holds (line in the first set, line in the second set) of the first prompts they share."""

    code: ClassVar[str] = "overlapping_sets"

    def __init__(self, message: str, pairs: list[tuple[int, int]]) -> None:
        super().__init__(message, pairs)
        self.pairs = pairs

    def __str__(self) -> str:
        return str(self.args[0])


class ModelError(InputError):
    code: ClassVar[str] = "invalid_model"


class BaseMismatchError(ModelError):
    code: ClassVar[str] = "base_mismatch"


class NonFiniteWeightsError(ModelError):
    code: ClassVar[str] = "non_finite_weights"


class UnsupportedAdapterError(ModelError):
    code: ClassVar[str] = "unsupported_adapter"


class JudgeError(InputError):
    code: ClassVar[str] = "invalid_judge"


class JudgeAwayError(JudgeError):
    code: ClassVar[str] = "judge_unavailable"


class EndpointError(InputError):
    code: ClassVar[str] = "endpoint_failed"


class NonFiniteLossError(AutoclaveError):
    """The loss or gradient norm became NaN or infinite at `step` (counted from 1), on the examples with these
    places in what was trained on (counted from 1; examples that were left out do not count). No places where
    it was the validation loss, or the step was on other data."""

    code: ClassVar[str] = "non_finite_loss"

    def __init__(self, step: int, loss: float, examples: tuple[int, ...] = ()) -> None:
        super().__init__(step, loss, examples)
        self.step = step
        self.loss = loss
        self.examples = examples

    def __str__(self) -> str:
        return (
            f"the loss became {self.loss} at step {self.step}{self._where()}; nothing was saved from that "
            "step on. Lower the learning rate, or check the data for broken rows."
        )

    def _where(self) -> str:
        shown = ", ".join(map(str, sorted(self.examples)[:16]))
        more = ", ..." if len(self.examples) > 16 else ""
        return f" (examples {shown}{more})" if self.examples else ""


class OutOfMemoryError(AutoclaveError):
    """Step `step` (from 1) does not fit into the memory of the device, however little is done at a time.
    `estimate` says in words what training needs, if that is known; `longest_row` is the longest conversation
    of the step in tokens, None where it is not known."""

    code: ClassVar[str] = "out_of_memory"

    def __init__(self, step: int, longest_row: int | None = None, estimate: str | None = None) -> None:
        super().__init__(step, longest_row, estimate)
        self.step = step
        self.longest_row = longest_row
        self.estimate = estimate

    def __str__(self) -> str:
        longest = "" if self.longest_row is None else f" (the longest has {self.longest_row} tokens)"
        needs = "" if self.estimate is None else f" {self.estimate}"
        return (
            f"out of memory in step {self.step}, also with one conversation at a time{longest}.{needs} "
            "Lower max_seq_length or the rank of the adapter, adapt fewer modules, or take a device with "
            "more memory."
        )


class SafetyGateError(AutoclaveError):
    """No candidate strength met the gate. `frontier` lists what each candidate measured."""

    code: ClassVar[str] = "safety_gate_failed"

    def __init__(self, reason: str, frontier: list[dict[str, Any]]) -> None:
        super().__init__(reason, frontier)
        self.reason = reason
        self.frontier = frontier

    def __str__(self) -> str:
        return self.reason


class RankLostError(AutoclaveError):
    """Of `size` processes that train together, `rank` is gone. `exit_code` as of a child process: negative is
    a signal; None if nothing is known of it. The run itself is sound: it can go on from its checkpoint."""

    code: ClassVar[str] = "rank_lost"

    def __init__(self, rank: int, size: int, exit_code: int | None = None) -> None:
        super().__init__(rank, size, exit_code)
        self.rank = rank
        self.size = size
        self.exit_code = exit_code

    def __str__(self) -> str:
        how = "ended" if self.exit_code is None else f"ended with exit code {self.exit_code}"
        if self.exit_code is not None and self.exit_code < 0:
            how = f"was ended by {signal.Signals(-self.exit_code).name}"
        return f"process {self.rank} of {self.size} that trained together {how}; the others were stopped."


class OtherRankError(AutoclaveError):
    code: ClassVar[str] = "other_rank_failed"

    def __str__(self) -> str:
        return "another process of this run failed or was stopped."


class CancelledError(AutoclaveError):
    code: ClassVar[str] = "cancelled"
