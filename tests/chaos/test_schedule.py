"""The plan is the seed's, and it brings every fault in every stage."""

from __future__ import annotations

from typing import Any

import pytest

from chaos import faults_of_servers
from chaos.faults import _GROUPS, Done, Faults
from chaos.schedule import KINDS, STAGES, WAITING, Fault, plan
from service.jobs.states import Stage

NUM_IN_A_ROUND = sum(len(stages) for stages, _ in KINDS.values())


def test_the_same_seed_gives_the_same_plan() -> None:
    assert plan(seed=7, num_faults=90, num_jobs=50) == plan(seed=7, num_faults=90, num_jobs=50)
    assert plan(seed=7, num_faults=90, num_jobs=50) != plan(seed=8, num_faults=90, num_jobs=50)


def test_a_round_brings_every_kind_in_each_of_its_stages() -> None:
    faults = plan(seed=1, num_faults=2 * NUM_IN_A_ROUND, num_jobs=100)
    for half in (faults[:NUM_IN_A_ROUND], faults[NUM_IN_A_ROUND:]):
        brought = sorted((fault.kind, fault.stage) for fault in half)
        assert brought == sorted((kind, stage) for kind, (stages, _) in KINDS.items() for stage in stages)
    for kind in ("cancel", "pause and resume"):
        assert KINDS[kind][0] == (WAITING, *STAGES)
    assert tuple(stage.value for stage in Stage) == STAGES


def test_faults_are_spread_over_the_jobs() -> None:
    faults = plan(seed=1, num_faults=150, num_jobs=200)
    after = [fault.after_jobs for fault in faults]
    assert after == sorted(after)
    assert after[0] == 0
    assert 180 <= after[-1] < 190
    for fault in faults:
        shortest, longest = KINDS[fault.kind][1]
        assert shortest <= fault.seconds <= longest


def test_there_is_no_more_than_asked_for() -> None:
    assert len(plan(seed=1, num_faults=3, num_jobs=10)) == 3
    assert plan(seed=1, num_faults=0, num_jobs=10) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_injected(kind: str) -> None:
    """By one of the two places that know how; the other one is not asked."""
    nothing: Any = None
    assert (kind in Faults(nothing, nothing, nothing)._by_kind) != (kind in _GROUPS)
    fault = Fault(0, kind, "", 0.0, 0, 0)
    if kind in _GROUPS:
        with pytest.raises(AttributeError):  # it got as far as the servers, which are not there
            faults_of_servers.inject(fault, nothing, nothing, Done(fault, hit=False, what="", at=0.0))


def test_an_unknown_kind_is_a_mistake() -> None:
    nothing: Any = None
    fault = Fault(0, "earthquake", "", 0.0, 0, 0)
    with pytest.raises(AssertionError, match="earthquake"):
        faults_of_servers.inject(fault, nothing, nothing, Done(fault, hit=False, what="", at=0.0))
