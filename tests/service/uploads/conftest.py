from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.builders import Tenant
from tests.service.uploads.uploader import Uploader


@pytest.fixture
def uploader(client: TestClient, tenant: Tenant) -> Uploader:
    return Uploader(client, tenant)
