"""Every operation of the API, by who may call it and whose it is; `test_tenancy.py` misses none."""

from __future__ import annotations

from typing import Any

ID_OPERATIONS = [
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/uploads/{upload_id}"),
    ("POST", "/v1/uploads/{upload_id}/parts"),
    ("POST", "/v1/uploads/{upload_id}/complete"),
    ("POST", "/v1/uploads/{upload_id}/cancel"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/retry"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/metrics"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/checkpoints/{checkpoint_id}/release"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/safety_report"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/report"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/adapter"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/adapter/files"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/adapter/files/{name}"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/adapter/signing_key"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/adapter/links"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/models/{model}/adapter"),
    ("DELETE", "/v1/models/{model}"),
    ("POST", "/v1/models/{model}/expiry"),
    ("GET", "/v1/webhooks/{webhook_id}"),
    ("POST", "/v1/webhooks/{webhook_id}"),
    ("DELETE", "/v1/webhooks/{webhook_id}"),
    ("POST", "/v1/webhooks/{webhook_id}/rotate"),
    ("POST", "/v1/webhooks/{webhook_id}/test"),
    ("GET", "/v1/webhooks/{webhook_id}/deliveries"),
    ("POST", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry"),
]
CURSORS = [
    ("/v1/files", "file_id"),
    ("/v1/fine_tuning/jobs", "job_id"),
    ("/v1/webhooks", "webhook_id"),
]
COLLECTIONS = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/models"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/fine_tuning/model_limits"),
    ("POST", "/v1/fine_tuning/validate"),
    ("POST", "/v1/fine_tuning/preview"),
    ("POST", "/v1/fine_tuning/estimate"),
    ("POST", "/v1/webhooks"),
    ("GET", "/v1/webhooks"),
]

# Nobody's: the path itself is the permission (tests/service/adapters/test_links.py).
PUBLIC = [("GET", "/v1/downloads/{token}")]
# For admin keys alone. An admin of another organization finds none of these:
ADMIN_ID_OPERATIONS = [
    ("GET", "/v1/fine_tuning/checkpoints/{ckpt}/permissions"),
    ("POST", "/v1/fine_tuning/checkpoints/{ckpt}/permissions"),
    ("DELETE", "/v1/fine_tuning/checkpoints/{ckpt}/permissions/{permission_id}"),
    ("GET", "/v1/organization/projects/{project_id}"),
    ("GET", "/v1/organization/projects/{project_id}/api_keys"),
    ("POST", "/v1/organization/projects/{project_id}/api_keys"),
    ("GET", "/v1/organization/projects/{project_id}/api_keys/{key_id}"),
    ("DELETE", "/v1/organization/projects/{project_id}/api_keys/{key_id}"),
]
ADMIN_COLLECTIONS = [
    ("GET", "/v1/organization/projects"),
    ("POST", "/v1/organization/projects"),
    ("GET", "/v1/organization/audit_logs"),
]
# The server's, and no organization's: for admin keys with the role `catalog`, whoever's they are.
CATALOG_OPERATIONS = [
    ("GET", "/v1/organization/bases"),
    ("GET", "/v1/organization/bases/{base}"),
    ("POST", "/v1/organization/bases/{base}/retire"),
    ("POST", "/v1/organization/bases/{base}/restore"),
    ("GET", "/v1/organization/base_registrations"),
    ("POST", "/v1/organization/base_registrations"),
    ("GET", "/v1/organization/base_registrations/{registration_id}"),
    ("POST", "/v1/organization/base_registrations/{registration_id}/cancel"),
]

# What an operation needs to be understood at all.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/models/{model}/expiry": {"json": {"expires_at": None}},
    "/v1/fine_tuning/checkpoints/{ckpt}/permissions": {"json": {"project_ids": ["proj_x"]}},
    "/v1/organization/projects/{project_id}/api_keys": {"json": {"name": "k"}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": b"data"}},
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": []}},
    "/v1/webhooks/{webhook_id}": {"json": {"name": "other"}},
}
# What its owner is told: 200, or that it has ended, or that a part is missing.
REFUSED_TO_OWNER = (
    "/v1/fine_tuning/jobs/{job_id}/cancel",
    "/v1/fine_tuning/jobs/{job_id}/pause",
    "/v1/fine_tuning/jobs/{job_id}/resume",
    "/v1/uploads/{upload_id}/complete",
)
