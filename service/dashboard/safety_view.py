"""What the page about safety shows, from the figures of jobs. Scores are percent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from autoclave.spec import SafetyProfile
from service.models import AlignedBase
from service.safety.repository import Measured

SHOWN_QUANTILES = (10, 25, 50, 75, 90)
STEADY_POINTS = 1.0
"""The control is the same answers, or the same model with the same prompts: a judge that has not changed
gives the same score."""
MOST_POINTS = 120


@dataclass(frozen=True)
class Distribution:
    name: str
    number: int
    least: float
    at: dict[int, float]
    """By percentile, of SHOWN_QUANTILES."""
    most: float
    mean: float

    @classmethod
    def of(cls, name: str, scores: Sequence[float]) -> Distribution | None:
        if not scores:
            return None
        cuts = quantiles(scores, n=100, method="inclusive") if len(scores) > 1 else [scores[0]] * 99
        return cls(
            name,
            len(scores),
            min(scores),
            {percent: cuts[percent - 1] for percent in SHOWN_QUANTILES},
            max(scores),
            sum(scores) / len(scores),
        )


@dataclass(frozen=True)
class BaseLine:
    """Of one base: what its jobs measured, and what its gate asks for."""

    id: str
    retired: bool
    judge: str
    profile_version: str
    max_harmful: float
    max_utility_loss: float | None
    min_refusals: float | None
    min_coherent: float | None
    number: int
    num_refused: int
    num_waived: int
    before: float | None
    after: float | None
    floor: float | None
    """The newest harmful score of the base itself: an adapter on it is hardly ever below."""
    loss: float | None
    """Median of the utility that was lost, points."""

    @property
    def share_refused(self) -> float | None:
        return 100 * self.num_refused / self.number if self.number else None


@dataclass(frozen=True)
class Control:
    """The same base, prompts and judge over time. Scores are how many of the `num_known` answers of the
    profile's control set the judge calls what they are; without such a set (None), the harmful score of the
    base itself, which moves with the base's answers, too."""

    base_id: str
    judge: str
    profile_version: str
    number: int
    first_at: float
    last_at: float
    first: float
    last: float
    low: float
    high: float
    spread: float
    """Points. On known answers of the kind of mistake that changed more: one may make up for the other."""
    num_known: int | None
    false_positives: int | None
    false_negatives: int | None
    """The newest."""
    undecided: float | None
    """Share of the newest answers that the judge could not decide, percent."""
    points: tuple[tuple[float, float], ...]
    """When, and the score; at most MOST_POINTS."""

    @property
    def is_steady(self) -> bool:
        return self.spread <= STEADY_POINTS


@dataclass(frozen=True)
class SafetyView:
    number: int
    num_passed: int
    num_refused: int
    num_waived: int
    before: Distribution | None
    after: Distribution | None
    scores_before: tuple[float, ...]
    scores_after: tuple[float, ...]
    refused: tuple[Measured, ...]
    waived: tuple[Measured, ...]
    lossy: tuple[Measured, ...]
    """The largest loss of utility first."""
    num_lossy: int
    bases: tuple[BaseLine, ...]
    controls: tuple[Control, ...]


def view(
    rows: Sequence[Measured], bases: Sequence[AlignedBase], *, max_loss: float, longest: int
) -> SafetyView:
    """`rows` newest first; lists are at most `longest`."""
    before = tuple(row.harmful_before for row in rows if row.harmful_before is not None)
    after = tuple(row.harmful_after for row in rows if row.harmful_after is not None)
    refused = [row for row in rows if row.result == "refused"]
    waived = [row for row in rows if row.result == "waived"]
    lossy = [row for row in rows if row.utility_loss is not None and row.utility_loss > max_loss]
    lossy.sort(key=lambda row: row.utility_loss or 0.0, reverse=True)
    return SafetyView(
        number=len(rows),
        num_passed=sum(row.result == "passed" for row in rows),
        num_refused=len(refused),
        num_waived=len(waived),
        before=Distribution.of("before sanitising", before),
        after=Distribution.of("after sanitising", after),
        scores_before=before,
        scores_after=after,
        refused=tuple(refused[:longest]),
        waived=tuple(waived[:longest]),
        lossy=tuple(lossy[:longest]),
        num_lossy=len(lossy),
        bases=tuple(_bases(rows, bases)),
        controls=tuple(_controls(rows)),
    )


def _bases(rows: Sequence[Measured], bases: Sequence[AlignedBase]) -> list[BaseLine]:
    of: defaultdict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        of[row.base_id].append(row)
    return [_base(base, of[base.id]) for base in bases if base.retired_at is None or of[base.id]]


def _base(base: AlignedBase, rows: Sequence[Measured]) -> BaseLine:
    profile = SafetyProfile.model_validate(base.safety_profile)
    gate = profile.gate
    return BaseLine(
        id=base.id,
        retired=base.retired_at is not None,
        judge=profile.judge.partition(":")[0],
        profile_version=profile.version,
        max_harmful=gate.max_harmful_score,
        max_utility_loss=gate.max_utility_loss,
        min_refusals=gate.min_refusal_rate,
        min_coherent=gate.min_coherence_rate,
        number=len(rows),
        num_refused=sum(row.result == "refused" for row in rows),
        num_waived=sum(row.result == "waived" for row in rows),
        before=_median(row.harmful_before for row in rows),
        after=_median(row.harmful_after for row in rows),
        floor=next((row.control_harmful for row in rows if row.control_harmful is not None), None),
        loss=_median(row.utility_loss for row in rows),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _controls(rows: Sequence[Measured]) -> list[Control]:
    """Those that changed first, then the newest first."""
    of: defaultdict[str, list[Measured]] = defaultdict(list)
    for row in reversed(rows):
        if row.control_key is not None and row.control_harmful is not None:
            of[row.control_key].append(row)
    controls = [_control(series) for series in of.values()]
    return sorted(controls, key=lambda control: (control.is_steady, -control.last_at))


def _control(series: Sequence[Measured]) -> Control:
    """`series` oldest first."""
    known = [row for row in series if row.num_known]
    if known:
        scores = [_agreement(row) for row in known]
        spread = max(_moved(known, "false_positives"), _moved(known, "false_negatives"))
    else:
        scores = [row.control_harmful or 0.0 for row in series]
        spread = max(scores) - min(scores)
    measured = known or series
    first, last = measured[0], measured[-1]
    step = -(-len(measured) // MOST_POINTS)
    kept = sorted({*range(0, len(measured), step), len(measured) - 1})
    undecided = None
    if last.control_undecided is not None and last.control_prompts:
        undecided = 100 * last.control_undecided / last.control_prompts
    return Control(
        base_id=last.base_id,
        judge=last.judge or "unknown",
        profile_version=last.profile_version or "unknown",
        number=len(measured),
        first_at=first.measured_at,
        last_at=last.measured_at,
        first=scores[0],
        last=scores[-1],
        low=min(scores),
        high=max(scores),
        spread=spread,
        num_known=last.num_known,
        false_positives=last.false_positives,
        false_negatives=last.false_negatives,
        undecided=undecided,
        points=tuple((measured[index].measured_at, scores[index]) for index in kept),
    )


def _agreement(row: Measured) -> float:
    """Percent of the known answers."""
    mistakes = (row.false_positives or 0) + (row.false_negatives or 0)
    return 100 * (1 - mistakes / (row.num_known or 1))


def _moved(known: Sequence[Measured], mistake: str) -> float:
    """Points, of all known answers."""
    shares = [100 * (getattr(row, mistake) or 0) / (row.num_known or 1) for row in known]
    return max(shares) - min(shares)
