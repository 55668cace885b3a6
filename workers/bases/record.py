"""What a supervisor writes about a registration. Every method is one transaction under the fencing number and
raises LeaseLostError, writing nothing, once the registration is not this worker's any more."""

from __future__ import annotations

from typing import Any

from autoclave.errors import InputError
from autoclave.spec import JobSpec, SafetyProfile
from service.audit.log import Actor
from service.bases import lease
from service.bases.lease import RegistrationClaim
from service.bases.states import RegistrationStatus
from service.catalog import register_base
from service.db import Database
from service.jobs.lease import StopRequest
from service.models import BaseRegistration
from workers.endings import (
    Cancelled,
    DeadlineExceeded,
    Died,
    Drained,
    Ending,
    Finished,
    OutOfMemory,
    ScratchFull,
)
from workers.messages import AnyMessage, BasePrepared, Failed, Noted, ProgressMade

MOST_NOTES = 50


class RegistrationRecord:
    def __init__(
        self, database: Database, claim: RegistrationClaim, *, lease_ttl_seconds: float, max_attempts: int
    ) -> None:
        self._database = database
        self._claim = claim
        self._ttl_seconds = lease_ttl_seconds
        self._max_attempts = max_attempts
        self._notes: list[str] = []

    def heartbeat(self, progress: ProgressMade | None = None) -> StopRequest | None:
        values: dict[str, Any] = {}
        if progress is not None:
            figures = {name: getattr(progress, name) for name in ("step", "total_steps", "seconds_remaining")}
            values["progress"] = {"doing": self._doing, **figures}
        return self._renew(**values)

    def asked(self) -> StopRequest | None:
        """Whether it is to be cancelled, without a write."""
        with self._database.glance() as session:
            return StopRequest.CANCEL if lease.cancel_asked(session, self._claim) else None

    def apply(self, message: AnyMessage) -> None:
        match message:
            case Noted(text=text):
                self._notes = [*self._notes, text][-MOST_NOTES:]
                self._renew(notes=self._notes, progress={"doing": text})
            case _:
                raise AssertionError(f"{type(message).__name__} is not said of a base")

    @property
    def _doing(self) -> str | None:
        return self._notes[-1] if self._notes else None

    def _renew(self, **values: Any) -> StopRequest | None:
        now = self._database.now()
        with self._database.transaction() as session:
            until = now + self._ttl_seconds
            lease.write(session, self._claim, lease_expires_at=until, heartbeat_at=now, **values)
            return StopRequest.CANCEL if lease.cancel_asked(session, self._claim) else None

    def conclude(self, ending: Ending, *, log_tail: str) -> RegistrationStatus:
        """Write how the attempt ended; where the registration stands then. The child is gone."""
        now = self._database.now()
        with self._database.transaction() as session:
            row = lease.owned(session, self._claim)
            match Cancelled() if row.cancel_requested_at is not None else ending:
                case Cancelled():
                    lease.end(row, RegistrationStatus.CANCELLED, now=now, log_tail=log_tail)
                case Finished(verdict=BasePrepared() as prepared):
                    try:
                        # Refuses before it changes anything.
                        register_base(session, **_of(row, prepared), now=now, actor=_actor(row))
                    except InputError as error:
                        _fail(row, error.code, str(error), now=now, log_tail=log_tail)
                    else:
                        lease.end(
                            row,
                            RegistrationStatus.SUCCEEDED,
                            now=now,
                            sha256=prepared.sha256,
                            profile=prepared.safety_profile,
                        )
                case Finished(verdict=Failed(code=code, message=message)):
                    _fail(row, code, message, now=now, log_tail=log_tail)
                case DeadlineExceeded():
                    text = "it took longer than this server allows (STAGE_DEADLINE_SECONDS)"
                    _fail(row, "deadline_exceeded", text, now=now, log_tail=log_tail)
                case OutOfMemory():
                    text = "its model does not fit into the memory of the worker's device"
                    _fail(row, "out_of_memory", text, now=now, log_tail=log_tail)
                case Died() as died if row.attempt_count >= self._max_attempts:
                    text = f"{died}, in the last of {row.attempt_count} attempts"
                    _fail(row, died.code, text, now=now, log_tail=log_tail)
                case Died():
                    lease.requeue(row, count_attempt=True, log_tail=log_tail)
                case Drained() | ScratchFull():
                    lease.requeue(row, count_attempt=False)
                case _:
                    raise AssertionError(f"{ending} is no ending of a registration")
            session.flush()
            return RegistrationStatus(row.status)


def _of(row: BaseRegistration, prepared: BasePrepared) -> dict[str, Any]:
    return {
        "id": row.name,
        "path": prepared.folder,
        "revision": prepared.revision,
        "sha256": prepared.sha256,
        "alignment_method": prepared.alignment_method,
        "default_spec": JobSpec.model_validate(row.spec),
        "safety_profile": SafetyProfile.model_validate(prepared.safety_profile),
        "measurements": prepared.measurements,
    }


def _actor(row: BaseRegistration) -> Actor:
    """Whose deed it is: the key that asked, by the request with which it asked."""
    return Actor(row.created_by, None, row.request_id)


def _fail(row: BaseRegistration, code: str, message: str, *, now: float, log_tail: str) -> None:
    lease.end(
        row,
        RegistrationStatus.FAILED,
        now=now,
        error_code=code[:64],
        error_message=message.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        log_tail=log_tail,
    )
