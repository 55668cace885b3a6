"""The transition table, read as a graph: what it promises holds on every path through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from openai.types.fine_tuning import FineTuningJob

from service.jobs.states import (
    FIRST,
    STAGES,
    TERMINAL,
    TRANSITIONS,
    Stage,
    State,
    Status,
    next_stage,
    on_the_wire,
)


def paths_to_success(state: State = FIRST, seen: tuple[State, ...] = ()) -> Iterator[tuple[State, ...]]:
    """Every path without a repeated state from the first state into `succeeded`."""
    path = (*seen, state)
    if state[0] is Status.SUCCEEDED:
        yield path
    for following in TRANSITIONS.get(state, ()):
        if following not in path:
            yield from paths_to_success(following, path)


def test_every_path_to_success_runs_every_stage_in_order() -> None:
    paths = list(paths_to_success())
    assert paths
    for path in paths:
        run = [stage for status, stage in path if status is Status.RUNNING]
        assert run == list(STAGES), f"{path} does not run every stage once and in order"


def test_nothing_succeeds_but_from_publish() -> None:
    sources = [
        state for state, targets in TRANSITIONS.items() if any(t[0] is Status.SUCCEEDED for t in targets)
    ]
    assert sources == [(Status.RUNNING, Stage.PUBLISH)]


def test_a_stage_is_run_only_after_the_one_before_or_from_the_queue_at_that_stage() -> None:
    for source, targets in TRANSITIONS.items():
        for status, stage in targets:
            if status is Status.RUNNING:
                assert source == (Status.QUEUED, stage) or (
                    source[0] is Status.RUNNING and next_stage(source[1]) is stage
                )


def test_no_stage_is_left_backwards() -> None:
    for (_, source), targets in TRANSITIONS.items():
        for _, stage in targets:
            assert STAGES.index(stage) in (STAGES.index(source), STAGES.index(source) + 1)


def test_an_end_is_an_end() -> None:
    assert all(status not in TERMINAL for status, _ in TRANSITIONS)


def test_from_every_live_state_a_job_can_fail_and_be_cancelled_where_it_stands() -> None:
    for state, targets in TRANSITIONS.items():
        assert {(Status.FAILED, state[1]), (Status.CANCELLED, state[1])} <= targets


def test_every_live_state_is_reachable() -> None:
    reached, frontier = {FIRST}, [FIRST]
    while frontier:
        for state in TRANSITIONS.get(frontier.pop(), ()):
            if state not in reached:
                reached.add(state)
                frontier.append(state)
    assert set(TRANSITIONS) <= reached


def test_statuses_on_the_wire_are_openais() -> None:
    shown = {on_the_wire(status, stage)[0] for status in Status for stage in Stage}
    assert shown == set(get_args(FineTuningJob.model_fields["status"].annotation))
    for stage in Stage:
        assert on_the_wire(Status.PAUSED, stage) == ("queued", "paused")
        assert on_the_wire(Status.RUNNING, stage) == ("running", stage)


def test_a_pause_leads_back_into_the_queue_at_the_same_stage_and_to_no_worker() -> None:
    for stage in Stage:
        before = {source for source, targets in TRANSITIONS.items() if (Status.PAUSED, stage) in targets}
        assert before == {(Status.QUEUED, stage), (Status.RUNNING, stage)}
        assert TRANSITIONS[Status.PAUSED, stage] == {
            (Status.QUEUED, stage),
            (Status.FAILED, stage),
            (Status.CANCELLED, stage),
        }


@given(choices=st.lists(st.integers(0, 1000), max_size=60))
def test_no_walk_succeeds_without_having_run_sanitize_and_evaluate(choices: list[int]) -> None:
    """Also with pauses, lost workers and resumptions in any order."""
    state, run = FIRST, []
    for choice in choices:
        if state[0] in TERMINAL:
            break
        following = sorted(TRANSITIONS[state])
        state = following[choice % len(following)]
        if state[0] is Status.RUNNING:
            run.append(state[1])
    if state[0] is Status.SUCCEEDED:
        assert sorted(set(run), key=STAGES.index) == list(STAGES)
    assert run == sorted(run, key=STAGES.index), "a stage was left backwards"
