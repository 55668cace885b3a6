"""One finished job, whose stages tests do again in another way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.jobs.states import Stage
from service.storage import Storage, storage_from_url
from tests.autoclave.tiny import save_tiny_base
from tests.workers.pipeline_bench import PipelineBench, outputs
from workers.messages import AnyMessage


@dataclass(frozen=True)
class FinishedJob:
    bench: PipelineBench
    messages: list[AnyMessage]

    @property
    def storage(self) -> Storage:
        return self.bench.storage

    @property
    def report(self) -> dict[str, Any]:
        return self.bench.published(self.messages).safety_report

    @property
    def sanitized(self) -> dict[str, Any]:
        """What the sanitize stage left for the others."""
        output: dict[str, Any] = outputs(self.messages)["sanitize"]
        return output

    def again_from(self, stage: Stage, *, number: int, **profile: Any) -> list[AnyMessage]:
        """The later stages once more, under a changed profile. `number` keeps their files apart."""
        changed = self.bench.with_profile(**profile).safety_profile
        order = self.bench.resumed(
            self.bench.order,
            self.messages,
            stage,
            safety_profile=changed,
            fencing_number=number,
            scratch=str(self.bench.folder / f"again-{number}"),
        )
        return self.bench.run(order)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedJob:
    folder = tmp_path_factory.mktemp("finished-job")
    url = (folder / "storage").as_uri()
    bench = PipelineBench(folder, base_dir, storage_from_url(url), url)
    return FinishedJob(bench, bench.run(bench.order))


@pytest.fixture
def bench(tmp_path: Path, base_dir: Path, storage: Storage, storage_url: str) -> PipelineBench:
    return PipelineBench(tmp_path, base_dir, storage, storage_url)
