"""The audit finds what it is there for: each rule on a state that was doctored to break it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chaos.audit import RULES, audit
from chaos.end_state import AdapterRow, Answer, AttemptRow, EndState, Event, StoredObject
from chaos.report import _RULES
from tests.chaos.end_states import CANCELLED, GOOD, REFUSED, TRAINED, events_of, healthy, job, started

Doctor = Callable[[EndState], None]


def _replace_job(state: EndState, id: str, **changes: object) -> None:
    state.jobs = [replace(each, **changes) if each.id == id else each for each in state.jobs]


def _still_running(state: EndState) -> None:
    state.jobs.append(job("ftjob-running", "running", "train", key="another"))
    state.acknowledged["another"] = {"ftjob-running"}
    state.events["ftjob-running"] = events_of(
        "ftjob-running", ("Fine-tuning job started", "prepare"), started("train")
    )


def _keeps_lease(state: EndState) -> None:
    _replace_job(state, GOOD, lease_owner="host:1:ab")


def _lost(state: EndState) -> None:
    state.acknowledged["a key whose job is gone"] = {"ftjob-gone"}


def _answered_with_two(state: EndState) -> None:
    state.acknowledged[f"key of {GOOD}"].add(REFUSED)


def _made_twice(state: EndState) -> None:
    _replace_job(state, CANCELLED, key=f"key of {GOOD}")


def _two_adapters(state: EndState) -> None:
    state.adapters.append(AdapterRow(GOOD, "ft:other", f"adapters/{GOOD}/1.tar", "e" * 64))


def _two_publishing_attempts(state: EndState) -> None:
    state.attempts.append(AttemptRow(GOOD, 2, "published"))


def _released_under_an_old_number(state: EndState) -> None:
    _replace_job(state, GOOD, fencing=2)


def _succeeded_without_adapter(state: EndState) -> None:
    state.adapters.clear()
    state.objects = [each for each in state.objects if not each.key.startswith("adapters/")]


def _never_released(state: EndState) -> None:
    state.objects.append(StoredObject(f"adapters/{REFUSED}/1.tar", "9" * 64))


def _unsanitised_in_a_package(state: EndState) -> None:
    leaked = {"adapter_model.safetensors": TRAINED[GOOD]}
    state.objects[0] = replace(state.objects[0], members=leaked)


def _unsanitised_as_a_file(state: EndState) -> None:
    state.objects.append(StoredObject("files/file-2", TRAINED[REFUSED]))


def _gate_not_passed(state: EndState) -> None:
    _replace_job(state, GOOD, gate_passed=False)


def _without_sanitising(state: EndState) -> None:
    _replace_job(state, GOOD, finished_stages=frozenset({"prepare", "train", "evaluate"}))


def _other_bytes(state: EndState) -> None:
    state.objects[0] = replace(state.objects[0], sha256="8" * 64)


def _bytes_gone(state: EndState) -> None:
    del state.objects[0]


def _private_left_behind(state: EndState) -> None:
    state.objects.append(StoredObject(f"private/{GOOD}/1/train-checkpoint-3/optimizer", "7" * 64))


def _a_route_gives_a_failed_jobs_weights(state: EndState) -> None:
    state.answers.append(Answer(REFUSED, "GET /models/x/adapter", 200, "6" * 64))


def _a_route_gives_unsanitised_weights(state: EndState) -> None:
    state.answers.append(Answer(GOOD, "GET /models/x/adapter", 200, TRAINED[GOOD]))


def _a_link_works(state: EndState) -> None:
    state.answers.append(Answer(CANCELLED, "a signed link to cccc", 200, "6" * 64))


def _a_route_fails(state: EndState) -> None:
    state.answers.append(Answer(REFUSED, "GET /models/x/adapter", 500))


def _process_left(state: EndState) -> None:
    state.processes.append("4711 python -m workers.runner")


def _no_events(state: EndState) -> None:
    del state.events[GOOD]


def _events_skip_sanitising(state: EndState) -> None:
    state.events[GOOD] = [event for event in state.events[GOOD] if event.data.get("stage") != "sanitize"]


def _events_end_elsewhere(state: EndState) -> None:
    state.events[GOOD] = state.events[GOOD][:-1]


def _events_after_the_end(state: EndState) -> None:
    state.events[CANCELLED].append(Event("Fine-tuning job started", {"stage": "prepare"}))


def _row_skips_sanitising(state: EndState) -> None:
    at = next(i for i, e in enumerate(state.journal) if e.old_stage == "sanitize" and e.job_id == GOOD)
    state.journal[at] = replace(state.journal[at], old_stage="train")


def _row_from_the_dead(state: EndState) -> None:
    last = next(e for e in state.journal if e.status == "cancelled" and e.source == "jobs")
    state.journal.append(replace(last, old_status="cancelled", status="queued"))


def _inserted_running(state: EndState) -> None:
    state.journal[0] = replace(state.journal[0], status="queued")


def _stopped_worker_writes_on(state: EndState) -> None:
    """Another worker claimed the job meanwhile."""
    at = next(i for i, e in enumerate(state.journal) if e.stage == "evaluate" and e.job_id == GOOD)
    state.journal.insert(at + 2, replace(state.journal[at + 1], app="worker-1.1", transaction=999))


def _writes_after_the_end(state: EndState) -> None:
    last = [e for e in state.journal if e.job_id == GOOD][-1]
    state.journal.append(replace(last, source="job_events", transaction=999))


def _claims_what_runs(state: EndState) -> None:
    at = next(i for i, e in enumerate(state.journal) if e.is_claim)
    state.journal[at] = replace(state.journal[at], old_status="running")


def _cancel_forgotten(state: EndState) -> None:
    state.cancelled.add(GOOD)


def _seen(state: EndState) -> None:
    state.observed.append("2 children outlived worker-1 by 5 s")


DOCTORED: list[tuple[str, Doctor]] = [
    ("every_job_has_ended", _still_running),
    ("every_job_has_ended", _keeps_lease),
    ("no_job_is_lost_or_doubled", _lost),
    ("no_job_is_lost_or_doubled", _answered_with_two),
    ("no_job_is_lost_or_doubled", _made_twice),
    ("none_is_published_twice", _two_adapters),
    ("none_is_published_twice", _two_publishing_attempts),
    ("none_is_published_twice", _released_under_an_old_number),
    ("none_is_published_twice", _succeeded_without_adapter),
    ("only_sanitised_adapters_are_public", _never_released),
    ("only_sanitised_adapters_are_public", _unsanitised_in_a_package),
    ("only_sanitised_adapters_are_public", _unsanitised_as_a_file),
    ("only_sanitised_adapters_are_public", _gate_not_passed),
    ("only_sanitised_adapters_are_public", _without_sanitising),
    ("only_sanitised_adapters_are_public", _other_bytes),
    ("only_sanitised_adapters_are_public", _bytes_gone),
    ("only_sanitised_adapters_are_public", _private_left_behind),
    ("no_route_gives_what_was_not_released", _a_route_gives_a_failed_jobs_weights),
    ("no_route_gives_what_was_not_released", _a_route_gives_unsanitised_weights),
    ("no_route_gives_what_was_not_released", _a_link_works),
    ("no_route_gives_what_was_not_released", _a_route_fails),
    ("no_process_is_left", _process_left),
    ("events_are_paths_of_the_table", _no_events),
    ("events_are_paths_of_the_table", _events_skip_sanitising),
    ("events_are_paths_of_the_table", _events_end_elsewhere),
    ("events_are_paths_of_the_table", _events_after_the_end),
    ("rows_follow_the_table", _row_skips_sanitising),
    ("rows_follow_the_table", _row_from_the_dead),
    ("rows_follow_the_table", _inserted_running),
    ("a_lost_lease_writes_nothing", _stopped_worker_writes_on),
    ("a_lost_lease_writes_nothing", _writes_after_the_end),
    ("a_lost_lease_writes_nothing", _claims_what_runs),
    ("an_accepted_cancel_holds", _cancel_forgotten),
    ("faults_saw_nothing_wrong", _seen),
]


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert not any(audit(healthy()).values()), audit(healthy())


@pytest.mark.parametrize(("rule", "doctor"), DOCTORED, ids=lambda value: getattr(value, "__name__", value))
def test_each_rule_finds_what_breaks_it_and_no_other_does(rule: str, doctor: Doctor) -> None:
    state = healthy()
    doctor(state)
    broken = {name for name, found in audit(state).items() if found}
    assert broken == {rule}, audit(state)


def test_every_rule_is_tested_and_has_words() -> None:
    names = {rule.__name__ for rule in RULES}
    assert {rule for rule, _ in DOCTORED} == names
    assert set(_RULES) == names
