"""What a key must be allowed for each route: the one table, enforced in `deps` before a body is read.

Every route under /v1 stands in NEEDED, by method and path without the /v1; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Scope(StrEnum):
    """What a project's key may be limited to. A key without a list may do all of it."""

    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    ADAPTERS_READ = "adapters:read"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"


class AdminScope(StrEnum):
    """What an admin key's role lets it do. No project's key has these, nor an admin key those above."""

    READ = "admin:read"
    WRITE = "admin:write"
    BASES_READ = "bases:read"
    """Bases are the server's and no organization's; what is said of them names folders of the workers."""
    BASES_WRITE = "bases:write"


class Role(StrEnum):
    OWNER = "owner"
    READER = "reader"
    CATALOG = "catalog"
    """An owner who also looks after the bases of the whole server."""


SCOPES_OF_ROLE: Mapping[Role, frozenset[AdminScope]] = {
    Role.OWNER: frozenset({AdminScope.READ, AdminScope.WRITE}),
    Role.READER: frozenset({AdminScope.READ}),
    Role.CATALOG: frozenset(AdminScope),
}

PERMISSIONS = "/fine_tuning/checkpoints/{ckpt}/permissions"
PROJECTS = "/organization/projects"
BASES = "/organization/bases"
REGISTRATIONS = "/organization/base_registrations"

NEEDED: Mapping[tuple[str, str], Scope | AdminScope] = {
    ("GET", "/files"): Scope.FILES_READ,
    ("POST", "/files"): Scope.FILES_WRITE,
    ("GET", "/files/{file_id}"): Scope.FILES_READ,
    ("GET", "/files/{file_id}/content"): Scope.FILES_READ,
    ("DELETE", "/files/{file_id}"): Scope.FILES_WRITE,
    ("POST", "/uploads"): Scope.FILES_WRITE,
    ("GET", "/uploads/{upload_id}"): Scope.FILES_READ,
    ("POST", "/uploads/{upload_id}/parts"): Scope.FILES_WRITE,
    ("POST", "/uploads/{upload_id}/complete"): Scope.FILES_WRITE,
    ("POST", "/uploads/{upload_id}/cancel"): Scope.FILES_WRITE,
    # They start nothing, and show what is in a file.
    ("POST", "/fine_tuning/validate"): Scope.FILES_READ,
    ("POST", "/fine_tuning/preview"): Scope.FILES_READ,
    ("POST", "/fine_tuning/estimate"): Scope.FILES_READ,
    ("GET", "/fine_tuning/jobs"): Scope.JOBS_READ,
    ("POST", "/fine_tuning/jobs"): Scope.JOBS_WRITE,
    ("GET", "/fine_tuning/jobs/{job_id}"): Scope.JOBS_READ,
    ("POST", "/fine_tuning/jobs/{job_id}/cancel"): Scope.JOBS_WRITE,
    ("POST", "/fine_tuning/jobs/{job_id}/retry"): Scope.JOBS_WRITE,
    ("POST", "/fine_tuning/jobs/{job_id}/pause"): Scope.JOBS_WRITE,
    ("POST", "/fine_tuning/jobs/{job_id}/resume"): Scope.JOBS_WRITE,
    ("GET", "/fine_tuning/jobs/{job_id}/events"): Scope.JOBS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/metrics"): Scope.JOBS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/safety_report"): Scope.JOBS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/report"): Scope.JOBS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/checkpoints"): Scope.JOBS_READ,
    ("POST", "/fine_tuning/jobs/{job_id}/checkpoints/{checkpoint_id}/release"): Scope.JOBS_WRITE,
    ("GET", "/fine_tuning/jobs/{job_id}/adapter"): Scope.ADAPTERS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/adapter/files"): Scope.ADAPTERS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/adapter/files/{name}"): Scope.ADAPTERS_READ,
    ("GET", "/fine_tuning/jobs/{job_id}/adapter/signing_key"): Scope.ADAPTERS_READ,
    ("POST", "/fine_tuning/jobs/{job_id}/adapter/links"): Scope.ADAPTERS_READ,
    ("GET", "/fine_tuning/model_limits"): Scope.MODELS_READ,
    ("GET", "/models"): Scope.MODELS_READ,
    ("GET", "/models/{model}"): Scope.MODELS_READ,
    ("GET", "/models/{model}/adapter"): Scope.ADAPTERS_READ,
    ("DELETE", "/models/{model}"): Scope.MODELS_WRITE,
    ("POST", "/models/{model}/expiry"): Scope.MODELS_WRITE,
    ("GET", "/webhooks"): Scope.WEBHOOKS_READ,
    ("POST", "/webhooks"): Scope.WEBHOOKS_WRITE,
    ("GET", "/webhooks/{webhook_id}"): Scope.WEBHOOKS_READ,
    ("POST", "/webhooks/{webhook_id}"): Scope.WEBHOOKS_WRITE,
    ("DELETE", "/webhooks/{webhook_id}"): Scope.WEBHOOKS_WRITE,
    ("POST", "/webhooks/{webhook_id}/rotate"): Scope.WEBHOOKS_WRITE,
    ("POST", "/webhooks/{webhook_id}/test"): Scope.WEBHOOKS_WRITE,
    ("GET", "/webhooks/{webhook_id}/deliveries"): Scope.WEBHOOKS_READ,
    ("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/retry"): Scope.WEBHOOKS_WRITE,
    ("GET", "/usage"): Scope.JOBS_READ,
    # Admin keys.
    ("GET", PERMISSIONS): AdminScope.READ,
    ("POST", PERMISSIONS): AdminScope.WRITE,
    ("DELETE", PERMISSIONS + "/{permission_id}"): AdminScope.WRITE,
    ("GET", "/organization/audit_logs"): AdminScope.READ,
    ("GET", PROJECTS): AdminScope.READ,
    ("POST", PROJECTS): AdminScope.WRITE,
    ("GET", PROJECTS + "/{project_id}"): AdminScope.READ,
    ("GET", PROJECTS + "/{project_id}/api_keys"): AdminScope.READ,
    ("POST", PROJECTS + "/{project_id}/api_keys"): AdminScope.WRITE,
    ("GET", PROJECTS + "/{project_id}/api_keys/{key_id}"): AdminScope.READ,
    ("DELETE", PROJECTS + "/{project_id}/api_keys/{key_id}"): AdminScope.WRITE,
    # Admin keys with the role `catalog`.
    ("GET", BASES): AdminScope.BASES_READ,
    ("GET", BASES + "/{base}"): AdminScope.BASES_READ,
    ("POST", BASES + "/{base}/retire"): AdminScope.BASES_WRITE,
    ("POST", BASES + "/{base}/restore"): AdminScope.BASES_WRITE,
    ("GET", REGISTRATIONS): AdminScope.BASES_READ,
    ("POST", REGISTRATIONS): AdminScope.BASES_WRITE,
    ("GET", REGISTRATIONS + "/{registration_id}"): AdminScope.BASES_READ,
    ("POST", REGISTRATIONS + "/{registration_id}/cancel"): AdminScope.BASES_WRITE,
}


def needed(method: str, path: str) -> Scope | AdminScope:
    """`path` is a route's template, with or without /v1."""
    # Whoever may read a thing may ask how large it is.
    scope = NEEDED.get(("GET" if method == "HEAD" else method, path.removeprefix("/v1")))
    assert scope is not None, f"{method} {path} stands in no line of service/scopes.py"
    return scope
