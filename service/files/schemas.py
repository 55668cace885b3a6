"""Files on the wire, as OpenAI's client types them; `num_examples` and `sha256` are ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from service.models import File

PURPOSE = "fine-tune"
MIN_EXPIRES_SECONDS = 3600
MAX_EXPIRES_SECONDS = 30 * 24 * 3600


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    expires_at: int | None
    num_examples: int | None
    sha256: str

    @classmethod
    def of(cls, file: File) -> FileObject:
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at),
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
            expires_at=None if file.expires_at is None else int(file.expires_at),
            num_examples=file.num_examples,
            sha256=file.sha256,
        )


class FileList(BaseModel):
    """`first_id` and `last_id` are strings in OpenAI's specification, so empty for an empty page."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str
    last_id: str
    has_more: bool

    @classmethod
    def of(cls, files: list[File], *, has_more: bool) -> FileList:
        data = [FileObject.of(file) for file in files]
        return cls(
            data=data,
            first_id=data[0].id if data else "",
            last_id=data[-1].id if data else "",
            has_more=has_more,
        )


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
