"""A client of the upload routes, as tests need it."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service.db import Database
from tests.builders import Tenant

REQUEST = {"bytes": 0, "filename": "train.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}


class Uploader:
    """A client that knows the routes."""

    def __init__(self, client: TestClient, tenant: Tenant) -> None:
        self._client = client
        self._headers = tenant.headers

    def create(self, num_bytes: int = 0, **fields: Any) -> httpx.Response:
        body = {**REQUEST, "bytes": num_bytes, **fields}
        return self._client.post("/uploads", json=body, headers=self._headers)

    def begin(self, num_bytes: int, **fields: Any) -> str:
        answer = self.create(num_bytes, **fields)
        assert answer.status_code == 200, answer.text
        upload_id: str = answer.json()["id"]
        return upload_id

    def send(self, upload_id: str, data: bytes, **headers: str) -> httpx.Response:
        return self._client.post(
            f"/uploads/{upload_id}/parts", files={"data": data}, headers={**self._headers, **headers}
        )

    def part(self, upload_id: str, data: bytes) -> str:
        answer = self.send(upload_id, data)
        assert answer.status_code == 200, answer.text
        part_id: str = answer.json()["id"]
        return part_id

    def complete(self, upload_id: str, part_ids: list[str], **fields: Any) -> httpx.Response:
        return self._client.post(
            f"/uploads/{upload_id}/complete", json={"part_ids": part_ids, **fields}, headers=self._headers
        )

    def cancel(self, upload_id: str) -> httpx.Response:
        return self._client.post(f"/uploads/{upload_id}/cancel", headers=self._headers)

    def get(self, upload_id: str) -> dict[str, Any]:
        answer = self._client.get(f"/uploads/{upload_id}", headers=self._headers)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def content(self, file_id: str) -> bytes:
        return self._client.get(f"/files/{file_id}/content", headers=self._headers).content


def num_rows(database: Database, table: Any) -> int:
    with database.snapshot() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def cut(content: bytes, *edges: int) -> list[bytes]:
    bounds = [0, *edges, len(content)]
    return [content[start:end] for start, end in itertools.pairwise(bounds)]
