"""The operator's files, made once."""

from __future__ import annotations

import pytest

from tests.autoclave.protocol.files import operator_files


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return operator_files(tmp_path_factory.mktemp("operator"))
