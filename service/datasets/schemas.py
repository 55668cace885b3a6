"""Datasets looked at before a job: requests and answers of /v1/fine_tuning/validate, /preview, /estimate.

All of it is ours; OpenAI has no such routes. Figures mean what `autoclave.data.inspection` says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from service.jobs.training import Training
from service.wire import WHOLE, Request, Text

MAX_PREVIEW_ROWS = 20
RowNumber = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True), WHOLE]


_ONE_SOURCE: list[JsonValue] = [
    {"required": [given], "properties": {given: {"type": "string"}, other: {"type": "null"}}}
    for given, other in (("training_file", "content"), ("content", "training_file"))
]


class ValidateRequest(Request):
    """A file by its id, or the lines themselves as `content` (the whole body may have 1 MiB)."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _ONE_SOURCE})

    training_file: Text | None = None
    content: str | None = None
    validation_file: Text | None = None
    model: Text | None = None
    """Whose tokenizer counts; without it nothing is counted in tokens."""
    training: Training | None = None
    """As for creating a job: `max_seq_length` and `train_on_inputs` change what is counted."""

    @model_validator(mode="after")
    def _one_source(self) -> ValidateRequest:
        if (self.training_file is None) == (self.content is None):
            raise ValueError("give either 'training_file' or 'content'")
        return self


class PreviewRequest(Request):
    """`rows` are line numbers of the file; without them the first `limit` rows are shown."""

    training_file: Text
    model: Text
    rows: Annotated[list[RowNumber], Field(min_length=1, max_length=MAX_PREVIEW_ROWS)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PREVIEW_ROWS, strict=True), WHOLE] = 5
    training: Training | None = None
    """As for creating a job: `max_seq_length` and `train_on_inputs` change what is trained."""


class Issue(BaseModel):
    line: int
    pointer: str
    rule: str
    message: str
    fix: str


class Quantiles(BaseModel):
    min: int
    median: float
    p95: int
    max: int
    total: int


class LinePair(BaseModel):
    line: int
    first_line: int


class Repeats(BaseModel):
    num_rows: int
    first: list[LinePair]
    complete: bool


class TokenCounts(BaseModel):
    num_rows: int
    complete: bool
    per_row: Quantiles
    max_seq_length: int
    num_over_max_seq_length: int
    trained_tokens: int
    num_untrained: int
    cut_total: int


class DatasetReport(BaseModel):
    valid: bool
    bytes: int
    num_examples: int
    num_messages: int
    num_issues: int
    issues: list[Issue]
    warnings: list[Issue]
    duplicates: Repeats
    roles: dict[str, int]
    characters: Quantiles | None
    tokens: TokenCounts | None
    tokens_unavailable: str | None


class ValidationReport(BaseModel):
    """`valid`: a job could be created with these files. `overlap`: rows of the validation file that the
    training file has too; it does not make a file invalid."""

    object: Literal["fine_tuning.validation"] = "fine_tuning.validation"
    valid: bool
    training: DatasetReport
    validation: DatasetReport | None
    overlap: Repeats | None


class PreviewRow(BaseModel):
    """`trained_spans` are [start, end) in characters (Unicode code points) of `text`. `truncated`: only the
    first `max_seq_length` tokens are trained on; `num_trained_tokens` is after that cut."""

    row: int
    text: str
    trained_spans: list[tuple[int, int]]
    num_tokens: int
    num_trained_tokens: int
    truncated: bool


class Preview(BaseModel):
    object: Literal["fine_tuning.preview"] = "fine_tuning.preview"
    model: str
    training_file: str
    max_seq_length: int
    data: list[PreviewRow]


class Memory(BaseModel):
    base: int
    adapter: int
    optimizer: int
    activations: int
    defence: int
    total: int


class MemoryByDevice(BaseModel):
    cpu: Memory
    cuda: Memory


class WorkerGroup(BaseModel):
    """`memory_bytes` (to three digits) is what training may take of one GPU, or of the machine;
    `needed_bytes` what it would take there."""

    device: str
    memory_bytes: int | None
    needed_bytes: int | None
    num_workers: int
    fits: bool | None


class MemoryFit(BaseModel):
    """On the workers that are there now and may take the project's jobs. `fits` is null where nobody can
    tell; `reason` and `message` say why."""

    fits: bool | None
    reason: Literal["fits", "too_large", "unknown_size", "no_worker", "worker_class", "no_estimate"]
    message: str
    num_workers: int
    num_fitting: int
    workers: list[WorkerGroup]


class Seconds(BaseModel):
    """At the median, fastest and slowest speed of `num_jobs` finished jobs on this base."""

    median: float
    fastest: float
    slowest: float
    num_jobs: int


class Estimate(BaseModel):
    """Null is what cannot be known here; `tokens_unavailable` and `memory_unavailable` say why. Not
    `complete`: tokens are extrapolated from the first rows of a long file. `relative_cost` of the defence is
    in passes, 1 for plain training; `steps` and `train_seconds` have it in them."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    model: str
    training_file: str
    num_examples: int
    n_epochs: int
    batch_size: int
    steps: int
    defence: str
    relative_cost: float
    tokens_per_epoch: int | None
    trained_tokens: int | None
    num_cut: int | None
    num_left_out: int | None
    complete: bool
    tokens_unavailable: str | None
    memory_bytes: MemoryByDevice | None
    memory_unavailable: str | None
    memory_fit: MemoryFit
    train_seconds: Seconds | None
