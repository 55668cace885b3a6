"""Suites as data: every run can be built, and what the pages call goals is what the gate refuses."""

import pytest

from autoclave.errors import InputError
from autoclave.evidence.runs import Run
from autoclave.evidence.suites import DEFAULT, SUITES, suites_named
from autoclave.microcosm.profile import GATE


@pytest.mark.parametrize("name", SUITES)
def test_runs_are_valid_and_told_apart_by_what_varies(name: str) -> None:
    suite = SUITES[name]
    columns = [tuple(run.as_dict()[column] for column in suite.varies) for run in suite.runs]
    assert len(set(columns)) == len(suite.runs)
    for run in suite.runs:
        assert run.lora().lora_alpha == 2 * run.rank
        assert run.train().n_epochs == run.epochs
    assert suite.searched or suite.fixed or suite.overlap_alphas or name == "undefended"


def test_the_digest_of_a_run_is_of_every_field() -> None:
    digests = {
        run.digest
        for run in (
            DEFAULT,
            *(Run(**{field: value}) for field, value in _OTHER.items()),
            DEFAULT.with_seed(3),
        )
    }
    assert len(digests) == len(_OTHER) + 2


_OTHER = {
    "form": "trigger",
    "poison": 0.3,
    "rows": 77,
    "learning_rate": 0.25,
    "epochs": 7,
    "rank": 5,
    "targets": "q,k,v",
    "defence": "lisa",
}


def test_all_names_every_suite_and_an_unknown_one_is_refused() -> None:
    assert suites_named("all") == list(SUITES.values())
    assert suites_named("grid") == [SUITES["grid"]]
    with pytest.raises(InputError, match="unknown suite"):
        suites_named("nonsense")


def test_suites_that_measure_otherwise_have_other_digests() -> None:
    digests = {suite.digest for suite in SUITES.values() if suite.fixed or suite.overlap_alphas}
    assert len(digests) == sum(bool(suite.fixed or suite.overlap_alphas) for suite in SUITES.values())
    assert GATE.max_utility_loss is not None
