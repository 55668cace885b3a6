"""The transition table, read as a graph: what it promises holds on every path through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from openai.types.fine_tuning import FineTuningJob

from service.jobs.states import FIRST, STAGES, TERMINAL, TRANSITIONS, Stage, State, Status, next_stage


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


def test_statuses_are_openais() -> None:
    assert {status.value for status in Status} == set(
        get_args(FineTuningJob.model_fields["status"].annotation)
    )
