"""The suites: which runs, what is measured on each, and the question it answers. Plain data, torch-free."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from autoclave.errors import InputError
from autoclave.evidence.recipes import DEFENCES
from autoclave.evidence.runs import Run
from autoclave.microcosm.profile import GATE
from autoclave.spec import SanitizeSpec

DEFAULT = Run()
QKV = replace(DEFAULT, targets="q,k,v")

LEARNING_RATES = (1e-5, 1e-4, 5e-4, 1e-3, 3e-3, 1e-2)
EPOCHS = (1, 3, 5, 10, 40)
POISONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
RANKS = (4, 16, 64)


# To be raised when the search or its gate decides otherwise, so that older rows are not taken for new ones.
_SEARCH_VERSION = 2


@dataclass(frozen=True)
class FixedMask:
    """A mask at a strength that nobody searched: `scores` antidote, random or magnitude."""

    scores: str
    alpha: float
    rule: str = "row"
    norm: str = "rms"


@dataclass(frozen=True)
class Suite:
    """`searched` are sanitisers whose strength is searched against GATE, `fixed` masks at given strengths;
    `overlap_alphas` compares harmful and user masks. Every suite also measures the base and the adapter
    before. `varies` are the columns that differ between its runs. `costs` also measures what each defence of
    training takes, once a world."""

    name: str
    question: str
    runs: tuple[Run, ...]
    varies: tuple[str, ...]
    searched: tuple[SanitizeSpec, ...] = ()
    fixed: tuple[FixedMask, ...] = ()
    overlap_alphas: tuple[float, ...] = ()
    costs: bool = False

    @property
    def digest(self) -> str:
        """Of what is measured on each run, so that older rows are not taken for these."""
        measured = (self.searched, self.fixed, self.overlap_alphas, GATE)
        version = (_SEARCH_VERSION,) if self.searched else ()
        return hashlib.sha256(repr((*measured, *version)).encode()).hexdigest()[:8]


ANTIDOTE = SanitizeSpec(method="antidote")
PROTECTED = SanitizeSpec(method="antidote-protected")
PROTECTED_SETS = SanitizeSpec(method="antidote-protected", protection="set-difference")
PROJECTION = SanitizeSpec(method="projection")
PIPELINE = SanitizeSpec(method="pipeline")

# What is measured first stands first, so that a run that is stopped has whole lines.
ATTACKS = (
    DEFAULT,
    replace(DEFAULT, learning_rate=1e-4, poison=0.02),
    replace(DEFAULT, epochs=1),
    replace(DEFAULT, learning_rate=3e-3),
    replace(DEFAULT, poison=0.0),
    replace(DEFAULT, learning_rate=1e-4),
    replace(DEFAULT, epochs=20),
    replace(DEFAULT, poison=0.5),
)

_CONTROL_ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.3)
_ALPHAS = (0.01, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25)

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "undefended",
            "What does an upload do to an aligned base that nothing defends?",
            (
                replace(DEFAULT, poison=0.0),
                DEFAULT,
                replace(DEFAULT, form="disguised"),
                replace(DEFAULT, form="trigger"),
                QKV,
            ),
            ("form", "poison", "targets"),
        ),
        Suite(
            "controls",
            "Does Antidote's mask find what harms, or would any mask do?",
            (DEFAULT, QKV),
            ("targets",),
            fixed=tuple(
                FixedMask(scores, alpha)
                for scores in ("antidote", "random", "magnitude")
                for alpha in _CONTROL_ALPHAS
            ),
        ),
        Suite(
            "alphas",
            "How do harm and task fall with the pruned fraction, under each rule and norm?",
            (DEFAULT, QKV),
            ("targets",),
            fixed=(
                *(
                    FixedMask("antidote", alpha, rule)
                    for rule in ("row", "matrix", "global")
                    for alpha in _ALPHAS
                ),
                *(FixedMask("antidote", alpha, "row", "mean") for alpha in (0.05, 0.1, 0.2)),
            ),
        ),
        Suite(
            "training",
            "Do high learning rates and many epochs, where other defences fail, defeat it?",
            (
                *(replace(DEFAULT, learning_rate=rate) for rate in LEARNING_RATES),
                *(replace(DEFAULT, epochs=epochs) for epochs in EPOCHS if epochs != DEFAULT.epochs),
            ),
            ("learning_rate", "epochs"),
            searched=(ANTIDOTE, PIPELINE),
        ),
        Suite(
            "poison",
            "From a clean upload to one that is half harm.",
            tuple(replace(DEFAULT, poison=poison) for poison in POISONS),
            ("poison",),
            searched=(ANTIDOTE, PIPELINE),
        ),
        Suite(
            "adapters",
            "Which ranks and targets can be cleaned?",
            (
                *(replace(DEFAULT, rank=rank) for rank in RANKS),
                *(replace(QKV, rank=rank) for rank in RANKS),
            ),
            ("rank", "targets"),
            searched=(ANTIDOTE, PIPELINE),
        ),
        Suite(
            "overlap",
            "Are the entries that matter for harm those that matter for the task?",
            (replace(DEFAULT, poison=0.02), DEFAULT, replace(DEFAULT, poison=0.5), QKV),
            ("poison", "targets"),
            overlap_alphas=(0.01, 0.05, 0.1, 0.2),
        ),
        Suite(
            "methods",
            "All sanitisers side by side, on three forms of attack and two kinds of adapter.",
            (
                DEFAULT,
                replace(DEFAULT, form="disguised"),
                replace(DEFAULT, form="trigger"),
                QKV,
            ),
            ("form", "targets"),
            searched=(ANTIDOTE, PROTECTED, PROTECTED_SETS, PROJECTION, PIPELINE),
            fixed=tuple(FixedMask("antidote", alpha) for alpha in (0.05, 0.1, 0.2)),
        ),
        Suite(
            "grid",
            "The default over a grid of learning rate, epochs and poison: how often does it hold?",
            tuple(
                replace(DEFAULT, learning_rate=rate, epochs=epochs, poison=poison)
                for rate in (3e-4, 3e-3)
                for epochs in (3, 10)
                for poison in (0.05, 0.3)
            ),
            ("learning_rate", "epochs", "poison"),
            searched=(PIPELINE,),
        ),
        Suite(
            "defences",
            "Six defences of training, each alone and with the default sanitiser behind it: what does each "
            "hold, and where does it break?",
            tuple(replace(attack, defence=defence) for attack in ATTACKS for defence in DEFENCES),
            ("poison", "learning_rate", "epochs", "defence"),
            searched=(PIPELINE,),
            costs=True,
        ),
        Suite(
            "defences-sanitisers",
            "Six defences of training with each of the other sanitisers behind them (the default: "
            "[defences](defences.md)).",
            tuple(replace(DEFAULT, defence=defence) for defence in DEFENCES),
            ("defence",),
            searched=(ANTIDOTE, PROTECTED, PROJECTION),
            fixed=(FixedMask("antidote", 0.05), FixedMask("antidote", 0.1)),
        ),
    )
}


def sanitizer_label(spec: SanitizeSpec) -> str:
    """What rows and pages call a sanitiser whose strength is searched."""
    return f"{spec.method} ({spec.protection})" if spec.method == "antidote-protected" else str(spec.method)


def suites_named(name: str) -> list[Suite]:
    """The suite of that name, or every suite for "all". Raises InputError for an unknown name."""
    if name == "all":
        return list(SUITES.values())
    if name not in SUITES:
        raise InputError(f'unknown suite "{name}"; known: all, {", ".join(SUITES)}.')
    return [SUITES[name]]
