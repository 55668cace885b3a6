"""The tables, a file per noun. Queries live in each noun's `repository.py`; nothing here has behaviour.

Times are seconds since the epoch as floats: the same on SQLite and PostgreSQL, and what OpenAI's
wire format wants.
"""

from service.models.adapters import Adapter, AdapterFile, CheckpointPermission, ServerSecret
from service.models.attempts import JobAttempt
from service.models.audit import AuditEntry
from service.models.base import Table
from service.models.bases import BaseRegistration
from service.models.catalog import AlignedBase
from service.models.files import File, FirstAnswer, Upload, UploadPart
from service.models.jobs import Job, JobCheckpoint, JobEvent, JobMetrics, OutboxMessage
from service.models.safety import SafetyFigures
from service.models.scheduling import KnownWorker, ProjectQueue
from service.models.sessions import OperatorKey, WebSession
from service.models.tenants import AdminKey, ApiKey, GpuUsage, Organization, Project, ProjectQuota
from service.models.webhooks import Webhook, WebhookDelivery
from service.models.workers import Worker

__all__ = [
    "Adapter",
    "AdapterFile",
    "AdminKey",
    "AlignedBase",
    "ApiKey",
    "AuditEntry",
    "BaseRegistration",
    "CheckpointPermission",
    "File",
    "FirstAnswer",
    "GpuUsage",
    "Job",
    "JobAttempt",
    "JobCheckpoint",
    "JobEvent",
    "JobMetrics",
    "KnownWorker",
    "OperatorKey",
    "Organization",
    "OutboxMessage",
    "Project",
    "ProjectQueue",
    "ProjectQuota",
    "SafetyFigures",
    "ServerSecret",
    "Table",
    "Upload",
    "UploadPart",
    "WebSession",
    "Webhook",
    "WebhookDelivery",
    "Worker",
]
