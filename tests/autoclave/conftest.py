"""The tiny base folder, made once per session."""

from pathlib import Path

import pytest

from tests.autoclave.tiny import save_tiny_base


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("tiny") / "base")
