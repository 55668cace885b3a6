"""What keys look like. Made of our own ids, never of anything a user wrote; no other prefixes exist."""

from __future__ import annotations


def file_key(file_id: str) -> str:
    return f"files/{file_id}"


def part_prefix(upload_id: str) -> str:
    return f"uploads/{upload_id}"


def part_key(upload_id: str, part_id: str) -> str:
    return f"{part_prefix(upload_id)}/{part_id}"


def private_prefix(job_id: str) -> str:
    """Checkpoints and unsanitised weights. No route reads below `private/`; deleted when the job ends."""
    return f"private/{job_id}"


def adapter_key(job_id: str, fencing_number: int) -> str:
    """The fencing number keeps a worker that lost its lease from replacing what another published."""
    return f"adapters/{job_id}/{fencing_number}.tar"
