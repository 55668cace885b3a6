"""Everything an operator can set, with units and bounds. Read from the environment in entry points only.

Three URLs choose the deployment (docs/decisions/0004-one-code-two-deployments.md); nothing else
branches on it. Each field is the environment variable of the same name in capitals.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.bases.folders import parse_folders
from service.webhooks import egress

Seconds = Annotated[float, Field(gt=0)]

KEPT_ADAPTER_TTL_SECONDS = 7 * 24 * 3600.0


def _valid(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Text that `parse` takes, as it is."""

    def check(text: str) -> str:
        parse(text)
        return text

    return check


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=None, extra="ignore", frozen=True)

    # Where the truth, the doorbell and the bytes live.
    database_url: str = Field(
        description="sqlite:////absolute/path.db or postgresql://user:password@host/name"
    )
    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="redis://, rediss:// or redis+socket:// URL; the workers' doorbell, the API's counter",
    )
    storage_url: str = Field(
        description="file:///absolute/folder or s3://bucket/prefix; private files and released adapters"
    )

    # Uploads.
    max_file_bytes: int = Field(
        default=512 * 1024 * 1024, ge=1, description="largest upload (OpenAI's limit is 512 MB)"
    )
    max_upload_bytes: int = Field(
        default=8 * 1024**3, ge=1, description="largest file sent in parts (OpenAI's limit is 8 GB)"
    )
    max_part_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1, description="largest part of an upload; OpenAI's client sends 64 MB"
    )
    upload_ttl_seconds: Seconds = Field(
        default=3600.0, description="an upload in parts that is not completed by then expires"
    )
    max_line_bytes: int = Field(default=1_048_576, ge=1024, description="longest line of a dataset")
    min_examples: int = Field(default=10, ge=1, description="fewest conversations in a training file")

    # Requests per minute and project, counted in the broker.
    rate_reads_per_minute: int = Field(default=6000, ge=0, description="GET requests; 0 is unlimited")
    rate_writes_per_minute: int = Field(
        default=3000, ge=0, description="other requests than GET and those below; 0 is unlimited"
    )
    rate_uploads_per_minute: int = Field(
        default=1200,
        ge=0,
        description="uploads, parts, completions, and validate, preview, estimate; 0 is unlimited",
    )
    rate_failed_keys_per_minute: int = Field(
        default=100, ge=0, description="wrong API keys from one address; 0 is unlimited"
    )

    # What a project may use; `autoclave admin quota` sets other numbers for one project.
    quota_storage_bytes: int = Field(
        default=256 * 1024**3, ge=0, description="files, parts and adapters of a project; 0 is unlimited"
    )
    quota_concurrent_jobs: int = Field(
        default=8, ge=0, description="jobs of a project that run at once; 0 is unlimited"
    )
    quota_queued_jobs: int = Field(
        default=1000, ge=0, description="jobs of a project that wait, paused ones included; 0 is unlimited"
    )
    quota_jobs_per_day: int = Field(
        default=0, ge=0, description="jobs that a project may create in any 24 hours; 0 is unlimited"
    )
    quota_gpu_seconds: int = Field(
        default=0,
        ge=0,
        description="running time of a project's jobs in a calendar month (UTC); 0 is unlimited",
    )

    # Leases: how long a silent worker keeps its job, and how often a live one says so.
    lease_ttl_seconds: Seconds = Field(default=60.0, description="a lease not renewed for this long is lost")
    heartbeat_seconds: Seconds = Field(
        default=5.0, description="time between two renewals; a cancel is noticed within a second"
    )
    max_attempts: int = Field(
        default=3, ge=1, description="claims of one job before it fails with worker_lost"
    )

    # Ending a child process: flag, then SIGTERM, then SIGKILL to its group.
    cancel_grace_seconds: Seconds = Field(
        default=2.0, description="from the cancel flag to SIGTERM; the child stops at its next step"
    )
    pause_grace_seconds: Seconds = Field(
        default=300.0, description="from the pause flag to SIGTERM; a step and its checkpoint must fit"
    )
    drain_grace_seconds: Seconds = Field(
        default=15.0,
        description="from the SIGTERM of a worker to that of its child; a step and its checkpoint must fit",
    )
    terminate_grace_seconds: Seconds = Field(
        default=10.0, description="from SIGTERM to SIGKILL; after a cancel half a second at most"
    )
    stage_deadline_seconds: Seconds = Field(
        default=24 * 3600.0, description="a stage that takes longer fails with deadline_exceeded"
    )
    checkpoint_every_seconds: Seconds = Field(
        default=120.0, description="time between two resume checkpoints while training"
    )

    # Kept adapters: what a job can be released from later, sanitised then.
    kept_checkpoints: int = Field(
        default=3, ge=1, description="newest checkpoints of a job that are kept; older ones are deleted"
    )
    kept_adapter_ttl_seconds: Seconds = Field(
        default=KEPT_ADAPTER_TTL_SECONDS,
        description="from the end of a job until its checkpoints cannot be released any more",
    )

    # What a worker says of itself.
    worker_class: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        default="default",
        description="class of a worker, such as its GPU's model; projects can be bound to one",
    )
    worker_memory_bytes: int = Field(
        default=0,
        ge=0,
        description="device memory that a job on this worker may use; larger jobs go elsewhere; 0: take all",
    )
    worker_processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="processes that train a job together, one per GPU; 0: one for each GPU the worker sees",
    )

    # Bases over HTTP.
    base_folders: Annotated[str, AfterValidator(_valid(parse_folders))] = Field(
        default="none",
        description="folders of the workers, with commas between, that admin keys may name for bases, their "
        "copies and their profiles' files; none: model hub ids and profiles of other bases alone",
    )

    # Integrations.
    wandb_mode_of_jobs: Literal["disabled", "online", "offline"] = Field(
        default="disabled",
        description="whether jobs may send figures to Weights & Biases; offline: to a folder of the worker",
    )

    # Maintenance loop: outbox, reaper.
    maintenance_interval_seconds: Seconds = Field(default=1.0, description="pause between two rounds")
    resend_after_seconds: Seconds = Field(
        default=60.0, description="a queued job whose message brought no claim is rung again after this"
    )

    # Webhooks: how many, and where they may go.
    max_webhooks: int = Field(default=10, ge=1, description="webhooks that one project may have")
    webhook_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = Field(
        default=15.0, description="one attempt to deliver, from looking up the name to the answer's status"
    )
    webhook_ports: Annotated[str, AfterValidator(_valid(egress.parse_ports))] = Field(
        default="443,8443", description="ports that a webhook's URL may name"
    )
    webhook_allow_private: Annotated[str, AfterValidator(_valid(egress.parse_networks))] = Field(
        default="none",
        description="networks outside the public internet that webhooks may reach, also over http: "
        "none, or 10.0.0.0/8,fd00::/8",
    )
    webhook_ca_file: Path | None = Field(
        default=None, description="PEM file of authorities to trust for webhooks besides the public ones"
    )

    trusted_proxies: str = Field(
        default="none",
        description="addresses or networks, with commas between, of reverse proxies whose X-Forwarded-For "
        "and X-Forwarded-Proto are believed",
    )
    work_dir: Path = Field(
        default=Path("/tmp/autoclave-work"),  # noqa: S108 - overridden in every deployment we ship
        description="scratch space of a worker; safe to delete when no job runs",
    )
    token_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=2 * 2**30,
        description="tokens of datasets that a worker keeps in its scratch space for a day, for jobs that "
        "run again on the same data; 0: none",
    )
    resident_base_seconds: Annotated[float, Field(ge=0)] = Field(
        default=300.0,
        description="how long a process beside an idle worker keeps the base of its last job in host memory, "
        "for the next job of the same base; 0: each job loads its own",
    )
    # Adapters on their way out.
    adapter_ttl_seconds: Seconds | None = Field(
        default=None,
        description="a released adapter is deleted after this, unless its job asked for another time",
    )
    signing_key_file: Path | None = Field(
        default=None,
        description="PEM file with a private P-256 key that workers sign adapters with; without it none are",
    )
    link_secret: Annotated[SecretStr, Field(min_length=32)] | None = Field(
        default=None,
        description="signs download links, the same for every API process; without it the database keeps one",
    )
    public_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = Field(
        default=None,
        description="what download links begin with, such as https://api.example.org; default: as requested",
    )

    session_ttl_seconds: Seconds = Field(
        default=12 * 3600.0, description="after signing in to the pages, until one has to do so again"
    )

    # Watching.
    metrics_host: str = Field(
        default="127.0.0.1", description="address of /metrics; whoever reaches it reads it, without a key"
    )
    metrics_port: int = Field(
        default=0, ge=0, le=65533, description="port of /metrics in each API and worker process; 0: none"
    )
    otel_exporter_otlp_endpoint: Annotated[
        Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None,
        # As the standard has it, and as docker compose passes on what is not set.
        BeforeValidator(lambda text: text or None),
    ] = Field(
        default=None,
        description="where API and workers send traces (OTLP over HTTP), such as http://collector:4318",
    )
    worker_events: bool = Field(
        default=False, description="workers tell Celery's event listeners, such as Flower, what they do"
    )

    log_json: bool = Field(default=True, description="JSON lines; false for coloured text")
