"""What a protocol run is made of: every field with its default and bounds. Torch-free.

Three prefixes of paths: `hub:owner/name/path` is a file of a dataset on a hub (with `revision`), `world:`
a file of the microcosm that `base.microcosm` builds, `sst2:` one of the folder `base.microcosm.sst2`. Whether
the parts fit each other is looked at in `fits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from autoclave.evaluation.tasks.chat_endpoint import ChatEndpointSpec
from autoclave.microcosm.sizes import SizeName
from autoclave.spec import (
    AlignMethod,
    EvaluateSpec,
    FinetuneMethod,
    Fraction,
    GateSpec,
    LoraSpec,
    SanitizeSpec,
    SftSpec,
    Spec,
    TrainSpec,
)

TaskName = Literal["sst2", "ag-news", "gsm8k", "alpaca", "chat"]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]

# Where the authors' rule and a sane one differ, both are reported; the first is the one to compare with the
# paper (evaluation/answer_rules.py). Alpaca's answers have no right wording: its loss alone is measured.
RULES_OF_TASK: dict[TaskName, tuple[str, ...]] = {
    "sst2": ("sst2-strict", "sst2"),
    "ag-news": ("ag-news-strict", "ag-news"),
    "gsm8k": ("gsm8k",),
    "alpaca": (),
    "chat": ("exact",),
}


class MicrocosmSource(Spec):
    """A small world with its own base (docs/microcosm.md), built as a step, or `world`, one that is built.
    With `sst2`, a folder of train.tsv, dev.tsv and test.tsv, its task is SST-2. `pretraining_steps` in place
    of the size's makes a quicker, worse base. `model`: begin with its base, or with its aligned base."""

    size: SizeName = "small"
    seed: int = Field(default=0, ge=0)
    sst2: str | None = None
    world: str | None = None
    model: Literal["base", "aligned"] = "base"
    pretraining_steps: int | None = Field(default=None, ge=1)


class BaseSource(Spec):
    """Exactly one of `path` (a transformers folder), `hub` (owner/name on a hub, with `revision`)
    and `microcosm`. `template` is written over the base's own ("alpaca", the papers')."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    microcosm: MicrocosmSource | None = None
    template: Literal["alpaca"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "hub", "microcosm") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and microcosm, got {', '.join(given) or 'none'}")
        if self.hub is not None and not self.revision:
            raise ValueError("hub needs a revision, best the commit: what a branch names changes")
        return self


class SetSource(Spec):
    """A set of harmful or safe prompts (`data.sets`). `skip` and `limit` None: the authors' rows where the
    format has any. `apart_from`: rows whose prompt is, or nearly is, in these sets are left out."""

    file: str
    format: str
    revision: str | None = None
    skip: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    columns: dict[str, str] = Field(default_factory=dict)
    unique: bool = False
    apart_from: tuple[Literal["alignment", "realignment"], ...] = ()


class DataSources(Spec):
    """`attack` is only needed for p above 0, `alignment` if there is an align step, `selection` (harmful
    prompts, apart from harmful_eval) if a sanitiser has a gate: what chooses must not judge."""

    alignment: SetSource | None = None
    alignment_harmful: SetSource | None = None
    realignment: SetSource
    attack: SetSource | None = None
    selection: SetSource | None = None
    harmful_eval: SetSource


class RowsSource(Spec):
    """Rows of the task in its public format (`data.convert`), of `chat` as they are."""

    file: str
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)


class TaskSource(Spec):
    """`rules` None: those of the task (RULES_OF_TASK). A gate's utility is measured on `validation`.
    `pairwise` is a chat endpoint that compares answers with those of the test rows (docs/tasks.md)."""

    name: TaskName
    train: RowsSource
    test: RowsSource
    validation: RowsSource | None = None
    rules: tuple[str, ...] | None = None
    max_new_tokens: int = Field(default=16, ge=1, le=4096)
    held_out_loss: bool = True
    pairwise: ChatEndpointSpec | None = None

    @property
    def answer_rules(self) -> tuple[str, ...]:
        return RULES_OF_TASK[self.name] if self.rules is None else self.rules

    @property
    def is_answered(self) -> bool:
        return bool(self.answer_rules) or self.pairwise is not None


class AttackSpec(Spec):
    """The user's upload has `rows` rows, of which the share `p` is harmful: int(p * rows) rows.
    `authors_counts`: one harmful row fewer and none in its place, as in the authors' loop (n 5000, p .2:
    999 and 4000)."""

    rows: int = Field(default=5000, ge=10)
    p: float = Field(default=0.2, ge=0.0, le=1.0)
    authors_counts: bool = False

    @property
    def num_harmful(self) -> int:
        whole = int(round(self.p * self.rows, 6))
        return max(0, whole - 1) if self.authors_counts else whole

    @property
    def num_task(self) -> int:
        return self.rows - int(round(self.p * self.rows, 6))


class AlignSpec(Spec):
    method: AlignMethod = SftSpec()
    lora: LoraSpec = LoraSpec()
    train: TrainSpec = TrainSpec()


class FinetuneSpec(Spec):
    method: FinetuneMethod = SftSpec()
    lora: LoraSpec = LoraSpec()
    train: TrainSpec = TrainSpec()


class SanitizerSpec(Spec):
    """One way to sanitise: at a fixed strength (`alpha`, `mu`, as the method takes them), or at the weakest
    that meets `gate`."""

    label: Label
    spec: SanitizeSpec = SanitizeSpec()
    alpha: Fraction | None = None
    mu: float | None = Field(default=None, gt=0.0, le=1e6)
    gate: GateSpec | None = None
    max_seq_length: int = Field(default=2048, ge=8)

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        if (self.gate is None) == (self.alpha is None and self.mu is None):
            raise ValueError("give either a gate, or alpha and mu as the method takes them")
        return self


class PublishedFigures(Spec):
    """What somebody else measured, printed beside. Percent; None: not published as a number."""

    source: str
    model: str
    setting: str
    harmful_score: dict[str, float | None] = Field(default_factory=dict)
    accuracy: dict[str, float | None] = Field(default_factory=dict)
    note: str = ""


class ProtocolConfig(Spec):
    """`judge` is a name for `load_judge` (docs/judges.md). `align` None: the base is aligned already.
    `deviations` say where the file departs from the authors' set-up."""

    version: Literal[1]
    name: Label
    about: str = ""
    base: BaseSource
    data: DataSources
    task: TaskSource
    judge: str
    align: AlignSpec | None = None
    attack: AttackSpec = AttackSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    sanitize: Annotated[tuple[SanitizerSpec, ...], Field(min_length=1)]
    evaluate: EvaluateSpec = EvaluateSpec(max_new_tokens=512)
    device: str | None = None
    published: tuple[PublishedFigures, ...] = ()
    deviations: tuple[str, ...] = ()


def data_files(config: ProtocolConfig) -> Iterator[tuple[str, Any]]:
    """(dotted field, SetSource or RowsSource) of those that are given."""
    for name in DataSources.model_fields:
        source = getattr(config.data, name)
        if source is not None:
            yield f"data.{name}", source
    for name in ("train", "test", "validation"):
        rows = getattr(config.task, name)
        if rows is not None:
            yield f"task.{name}", rows
