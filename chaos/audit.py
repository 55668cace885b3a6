"""What must be true when everything is over. Pure: an end state in, what is wrong with it out.

Each rule is a function from the end state to violations in words; `RULES` names them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from chaos.end_state import WEIGHTS, AdapterRow, EndState, JobRow, StoredObject
from chaos.event_path import states_of, wrong_steps
from chaos.journal import Entry
from service.jobs.states import FIRST, STAGES, TERMINAL, TRANSITIONS, Stage, Status

Rule = Callable[[EndState], Iterator[str]]
_TERMINAL = {status.value for status in TERMINAL}
_BEFORE_PUBLISH = {stage.value for stage in STAGES if stage is not Stage.PUBLISH}


def every_job_has_ended(state: EndState) -> Iterator[str]:
    for job in state.jobs:
        if job.status not in _TERMINAL:
            yield f"{job.id} is {job.status} at {job.stage}"
        elif job.lease_owner is not None:
            yield f"{job.id} is {job.status} and {job.lease_owner} still holds its lease"


def no_job_is_lost_or_doubled(state: EndState) -> Iterator[str]:
    """Whatever was acknowledged is there, once; whatever is there has one maker."""
    known = {job.id for job in state.jobs}
    for key, ids in state.acknowledged.items():
        if len(ids) > 1:
            yield f"{key} was answered with {len(ids)} jobs: {sorted(ids)}"
        for id in sorted(ids - known):
            yield f"{key} was answered with {id}, which is not there"
    makers = Counter(job.key for job in state.jobs)
    for maker, count in makers.items():
        if maker is None or count > 1:
            yield f"{count} jobs were made for {maker}"


def none_is_published_twice(state: EndState) -> Iterator[str]:
    adapters = Counter(adapter.job_id for adapter in state.adapters)
    published = Counter(a.job_id for a in state.attempts if a.exit_reason == "published")
    succeeded = Counter(
        e.job_id
        for e in state.journal
        if e.source == "jobs" and e.changes_state and e.status == Status.SUCCEEDED.value
    )
    found = {"adapters": adapters, "publishing attempts": published, "releases": succeeded}
    for job in state.jobs:
        expected = 1 if job.status == Status.SUCCEEDED.value else 0
        for what, count in found.items():
            if count[job.id] != expected:
                yield f"{job.id} is {job.status} and has {count[job.id]} {what}"
    jobs = {job.id: job for job in state.jobs}
    for adapter in state.adapters:
        owner = jobs.get(adapter.job_id)
        if owner is not None and adapter.storage_key != f"adapters/{owner.id}/{owner.fencing}.tar":
            yield f"{owner.id} released {adapter.storage_key}, but its last number is {owner.fencing}"


def only_sanitised_adapters_are_public(state: EndState) -> Iterator[str]:
    """By what is stored: below `adapters/` the released ones alone, and nothing unsanitised outside
    `private/`; below `private/` only what may be sanitised later."""
    jobs = {job.id: job for job in state.jobs}
    released = {adapter.storage_key: adapter for adapter in state.adapters}
    unsanitised = {sha256: job.id for job in state.jobs for sha256 in job.unsanitised}
    for stored in state.objects:
        if stored.key.startswith("private/"):
            if stored.key.rpartition("/")[0] not in state.kept_prefixes:
                yield f"{stored.key} was left behind"
            continue
        for name, sha256 in {"it": stored.sha256, **stored.members}.items():
            if sha256 in unsanitised:
                yield f"{stored.key}: {name} is the unsanitised adapter of {unsanitised[sha256]}"
        if stored.key.startswith("adapters/"):
            yield from _public(stored, released, jobs)
    stored_keys = {stored.key for stored in state.objects}
    for adapter in state.adapters:
        if adapter.storage_key not in stored_keys:
            yield f"{adapter.job_id} was released, but {adapter.storage_key} is not there"


def _public(stored: StoredObject, released: dict[str, AdapterRow], jobs: dict[str, JobRow]) -> Iterator[str]:
    adapter = released.get(stored.key)
    if adapter is None:
        yield f"{stored.key} is public and was never released"
        return
    job = jobs.get(adapter.job_id)
    if job is None or job.status != Status.SUCCEEDED.value:
        yield f"{stored.key} is public, but its job is {job.status if job else 'not there'}"
        return
    if not job.finished_stages >= _BEFORE_PUBLISH:
        yield f"{stored.key} is public without {sorted(_BEFORE_PUBLISH - job.finished_stages)}"
    if not job.gate_passed:
        yield f"{stored.key} is public, but did not pass the gate"
    if adapter.sha256 != stored.sha256 or WEIGHTS not in stored.members:
        yield f"{stored.key} is not the package that was released"


def no_route_gives_what_was_not_released(state: EndState) -> Iterator[str]:
    jobs = {job.id: job for job in state.jobs}
    for answer in state.answers:
        job = jobs[answer.job_id]
        released = job.status == Status.SUCCEEDED.value
        if answer.sha256 in job.unsanitised:
            yield f"{answer.route} gives the unsanitised weights of {job.id}"
        elif answer.route.startswith("a signed link"):
            if answer.status != 404:
                yield f"{answer.route} of {job.id} ({job.status}) was answered with {answer.status}"
        elif answer.status != (200 if released else 404):
            yield f"{answer.route} of {job.id} ({job.status}) was answered with {answer.status}"


def no_process_is_left(state: EndState) -> Iterator[str]:
    for process in state.processes:
        yield f"still runs: {process}"


def events_are_paths_of_the_table(state: EndState) -> Iterator[str]:
    for job in state.jobs:
        states = states_of(state.events.get(job.id, []))
        for step in wrong_steps(states):
            yield f"{job.id}: its events say {step}"
        if states and (states[-1][0].value, states[-1][1].value) != (job.status, job.stage):
            yield f"{job.id} is {job.status}/{job.stage}, but its events end with {states[-1]}"


def rows_follow_the_table(state: EndState) -> Iterator[str]:
    """The same by the journal: every change of a row, whoever wrote it."""
    for entry in state.journal:
        if entry.source != "jobs":
            continue
        after = (Status(entry.status), Stage(entry.stage))
        if entry.old_status is None or entry.old_stage is None:
            if after != FIRST:
                yield f"{entry.job_id} was inserted as {after}"
        elif entry.changes_state:
            before = (Status(entry.old_status), Stage(entry.old_stage))
            if after not in TRANSITIONS.get(before, frozenset()):
                yield f"{entry.app} moved {entry.job_id} from {before} to {after}"


def a_lost_lease_writes_nothing(state: EndState) -> Iterator[str]:
    """Fencing, by the journal: a worker writes about a job only while the job's number is the one it
    claimed with, and only while the job runs (or in the transaction that ends that)."""
    for job_id, entries in _by_job(state.journal).items():
        claimed_by: dict[int, str] = {}
        runs, ended_in = False, -1
        for entry in entries:
            if entry.source == "jobs":
                if entry.is_claim:
                    yield from _wrong_claim(entry)
                    claimed_by[entry.fencing] = entry.app
                was_running = runs
                runs = entry.status == Status.RUNNING.value
                if was_running and not runs:
                    ended_in = entry.transaction
            if not entry.app.startswith("worker"):
                continue
            holder = claimed_by.get(entry.fencing)
            if holder != entry.app:
                yield f"{entry.app} wrote {entry.source} of {job_id} under {entry.fencing}, held by {holder}"
            elif not runs and entry.transaction != ended_in:
                yield f"{entry.app} wrote {entry.source} of {job_id}, which is {entry.status}"


def _wrong_claim(entry: Entry) -> Iterator[str]:
    assert entry.old_fencing is not None
    if entry.fencing != entry.old_fencing + 1 or entry.old_status != Status.QUEUED.value:
        yield (
            f"{entry.app} claimed {entry.job_id}, which was {entry.old_status}, "
            f"and moved its number from {entry.old_fencing} to {entry.fencing}"
        )


def _by_job(journal: list[Entry]) -> dict[str, list[Entry]]:
    entries: dict[str, list[Entry]] = defaultdict(list)
    for entry in journal:
        entries[entry.job_id].append(entry)
    return entries


def an_accepted_cancel_holds(state: EndState) -> Iterator[str]:
    for job in state.jobs:
        if job.id in state.cancelled and job.status != Status.CANCELLED.value:
            yield f"the cancel of {job.id} was accepted, and it {job.status}"


def faults_saw_nothing_wrong(state: EndState) -> Iterator[str]:
    yield from state.observed


RULES: tuple[Rule, ...] = (
    every_job_has_ended,
    no_job_is_lost_or_doubled,
    none_is_published_twice,
    only_sanitised_adapters_are_public,
    no_route_gives_what_was_not_released,
    no_process_is_left,
    events_are_paths_of_the_table,
    rows_follow_the_table,
    a_lost_lease_writes_nothing,
    an_accepted_cancel_holds,
    faults_saw_nothing_wrong,
)


def audit(state: EndState) -> dict[str, list[str]]:
    """What is wrong, by the name of the rule; a rule that holds has an empty list."""
    return {rule.__name__: list(rule(state)) for rule in RULES}
