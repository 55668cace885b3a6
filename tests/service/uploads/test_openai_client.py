"""Uploads in parts with the unmodified `openai` client in strict mode, over a real socket."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Upload

from service.db import Database
from service.storage import Storage
from tests.builders import BASE_ID, Tenant, dataset, make_base


def test_a_file_in_parts(openai_client: OpenAI, database: Database, storage: Storage, tmp_path: Path) -> None:
    client = openai_client
    with database.transaction() as session:
        make_base(session)
    path = tmp_path / "große Datei.jsonl"
    path.write_bytes(dataset(1000))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=10_000, md5=md5
    )
    assert done.file is not None
    assert (done.status, done.file.filename, done.file.bytes) == ("completed", path.name, len(dataset(1000)))
    assert client.files.content(done.file.id).read() == dataset(1000)
    assert client.fine_tuning.jobs.create(model=BASE_ID, training_file=done.file.id).status == "queued"
    from_memory = client.uploads.upload_file_chunked(
        file=dataset(10),
        filename="x",
        bytes=len(dataset(10)),
        mime_type="application/jsonl",
        purpose="fine-tune",
    )
    assert from_memory.file is not None

    upload = client.uploads.create(
        bytes=len(dataset(20)),
        filename="x.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3600)
    half = len(dataset(20)) // 2
    part = client.uploads.parts.create(upload.id, data=dataset(20)[:half])
    assert part.upload_id == upload.id
    with pytest.raises(openai.BadRequestError, match="upload was created with bytes") as too_few:
        client.uploads.complete(upload.id, part_ids=[part.id])
    assert (too_few.value.code, too_few.value.param) == ("size_mismatch", "part_ids")
    # After a crash: which parts came?
    found = client.get(f"/uploads/{upload.id}", cast_to=Upload)
    assert [known["id"] for known in (found.model_extra or {})["parts"]] == [part.id]
    rest = client.uploads.parts.create(upload.id, data=("part", dataset(20)[half:]))
    done = client.uploads.complete(upload.id, part_ids=[part.id, rest.id])
    assert done.file is not None
    assert done.file.expires_at in (done.file.created_at + 7200, done.file.created_at + 7201)

    upload = client.uploads.create(bytes=1, filename="x", mime_type="x", purpose="user_data")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already cancelled"):
        client.uploads.parts.create(upload.id, data=b"x")
    assert len(storage.keys("uploads")) == 0


def test_a_file_in_parts_asynchronously(
    api_url: str, database: Database, tenant: Tenant, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(dataset(1000))

    async def run() -> None:
        async with AsyncOpenAI(
            base_url=api_url, api_key=tenant.key, max_retries=0, _strict_response_validation=True
        ) as client:
            done = await client.uploads.upload_file_chunked(
                file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=10_000
            )
            assert done.file is not None
            assert (await client.files.content(done.file.id)).read() == dataset(1000)
            content = dataset(500)
            upload = await client.uploads.create(
                bytes=len(content), filename="x", mime_type="application/jsonl", purpose="fine-tune"
            )
            pieces = [content[start : start + 5000] for start in range(0, len(content), 5000)]
            parts = await asyncio.gather(
                *(client.uploads.parts.create(upload.id, data=piece) for piece in pieces)
            )
            md5 = hashlib.md5(content).hexdigest()
            part_ids = [part.id for part in parts]
            done = await client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
            assert done == await client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
            assert done.file is not None
            assert (await client.files.content(done.file.id)).read() == content
            upload = await client.uploads.create(bytes=1, filename="x", mime_type="x", purpose="user_data")
            assert (await client.uploads.cancel(upload.id)).status == "cancelled"

    asyncio.run(run())


def test_files_that_expire(openai_client: OpenAI) -> None:
    client = openai_client
    file = client.files.create(
        file=dataset(10), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at in (file.created_at + 3600, file.created_at + 3601)
    notes = client.files.create(file=("notes.txt", b"\xff notes"), purpose="user_data")
    assert (notes.purpose, notes.status, notes.expires_at) == ("user_data", "processed", None)
    assert [found.id for found in client.files.list(purpose="user_data")] == [notes.id]
