"""Where the bytes of a dataset and the tokenizer of a base come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from autoclave.data.light_tokenizer import LightTokenizer
from autoclave.errors import ModelError
from autoclave.spec import JobSpec, TrainSpec
from service.catalog import repository as catalog
from service.catalog.errors import model_not_found
from service.catalog.model_limits import longest_sequence
from service.files import repository as files
from service.files.service import file_not_found, required_dataset
from service.jobs.defence import unavailable
from service.jobs.training import with_training
from service.models import File
from service.storage import Storage


@dataclass(frozen=True)
class BaseInfo:
    """What is needed of a base after its transaction has ended."""

    id: str
    folder: Path
    sha256: str
    default_spec: JobSpec
    longest_sequence: int
    no_defences: Mapping[str, str]
    """By name, why jobs on it cannot have them."""
    alignment: Path | None
    """The operator's safe answers; None without them, or where only workers know the file."""

    def tokenizer(self) -> LightTokenizer:
        """Raises ModelError, in words that a tenant may read."""
        return _tokenizer(self.folder, self.sha256)


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, sha256: str) -> LightTokenizer:  # noqa: ARG001 - another hash, another tokenizer
    return LightTokenizer(folder)


def tokenizer_or_reason(base: BaseInfo | None) -> tuple[LightTokenizer | None, str | None]:
    if base is None:
        return None, None
    try:
        return base.tokenizer(), None
    except ModelError as error:
        return None, str(error)


def find_base(session: Session, model: str) -> BaseInfo:
    """Raises ApiError 404 for what is no base that jobs may use."""
    base = catalog.get_base(session, model)
    if base is None:
        raise model_not_found(model, param="model")
    return BaseInfo(
        id=base.id,
        folder=Path(base.path),
        sha256=base.sha256,
        default_spec=JobSpec.model_validate(base.default_spec),
        longest_sequence=longest_sequence(base),
        no_defences=unavailable(base),
        alignment=None if (file := base.safety_profile.get("alignment")) is None else Path(file),
    )


def train_spec(base: BaseInfo | None, training: Mapping[str, Any] | None) -> TrainSpec:
    """What a job with this block `training` would run with; without a base, on one with the usual defaults.
    Raises ApiError 400."""
    default = base.default_spec.train if base else TrainSpec()
    longest = base.longest_sequence if base else None
    return with_training(default, training, longest=longest, has_validation=True)


def find_file(session: Session, project_id: str, file_id: str, *, param: str) -> File:
    """Raises ApiError 404, or 400 for a file that is no dataset."""
    return required_dataset(files.get_file(session, project_id, file_id), file_id, param=param)


def chunks_of(storage: Storage, file: File, *, param: str) -> Iterator[bytes]:
    """Raises ApiError 404 at once if the bytes are gone: somebody is deleting the file."""
    try:
        return storage.stream(file.storage_key, sha256=file.sha256)
    except FileNotFoundError as error:
        raise file_not_found(file.id, param=param) from error
