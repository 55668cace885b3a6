"""The files a protocol begins with, found or refused by name before anything is made. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoclave.data.sets.formats import FORMATS as SET_FORMATS
from autoclave.data.sets.source_rows import SourceFile, find_source
from autoclave.errors import InputError
from autoclave.evaluation.answer_rules import RULES
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.judges.names import JudgeName
from autoclave.evaluation.tasks.chat_endpoint import ChatEndpoint
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.hub.models import model_folder
from autoclave.microcosm.reviews import SST2_FILES
from autoclave.modelling.base_files import read_base_files
from autoclave.protocol.config import BaseSource, MicrocosmSource, ProtocolConfig, SetSource, data_files
from autoclave.protocol.fits import misfits


@dataclass(frozen=True)
class Sources:
    """`files` are the data files that are there already, `sha256` digests of everything from outside, both by
    field. Files of a world that is still to be built are not among them. `base` is None then."""

    base: Path | None
    files: dict[str, SourceFile]
    sha256: dict[str, str]


def find_sources(config: ProtocolConfig) -> Sources:
    """Raises InputError naming every field with a file that is missing or of an unknown kind."""
    problems = misfits(config)
    files: dict[str, SourceFile] = {}
    sha256: dict[str, str] = {}
    sst2 = config.base.microcosm.sst2 if config.base.microcosm else None
    for field, source in data_files(config):
        if isinstance(source, SetSource) and source.format not in SET_FORMATS:
            known = ", ".join(SET_FORMATS)
            problems.append(f'{field}.format: there is no format "{source.format}"; known: {known}.')
        try:
            if source.file.startswith("world:"):
                continue
            name = source.file
            if name.startswith("sst2:"):
                name = str(Path(sst2 or "") / name.removeprefix("sst2:"))
            files[field] = find_source(name, getattr(source, "revision", None))
            sha256[field] = file_sha256(files[field].path)
        except (InputError, OSError) as error:
            problems.append(f"{field}.file: {error}")
    base: Path | None = None
    try:
        base = _find_base(config.base, sha256)
    except (InputError, OSError) as error:
        problems.append(f"base: {error}")
    try:
        _check_judge(config.judge, sha256)
    except (InputError, OSError) as error:
        problems.append(f"judge: {error}")
    try:
        if config.task.pairwise is not None:
            ChatEndpoint(config.task.pairwise)
    except InputError as error:
        problems.append(f"task.pairwise: {error}")
    problems += [
        f'task.rules: there is no answer rule "{rule}"; known: {", ".join(RULES)}.'
        for rule in config.task.answer_rules
        if rule not in RULES
    ]
    if problems:
        raise InputError("the protocol cannot begin:" + "".join(f"\n  {problem}" for problem in problems))
    return Sources(base, files, sha256)


def _find_base(source: BaseSource, sha256: dict[str, str]) -> Path | None:
    if source.microcosm:
        _find_world(source.microcosm, sha256)
        return None
    if source.hub is not None:
        assert source.revision is not None, source
        folder = model_folder(source.hub, source.revision)
    else:
        folder = Path(source.path or "")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one with a transformers model (base.path).")
    read_base_files(folder)
    sha256["base"] = folder_sha256(folder)
    return folder


def _find_world(source: MicrocosmSource, sha256: dict[str, str]) -> None:
    if source.sst2 is not None:
        for name in SST2_FILES.values():
            file = Path(source.sst2) / name
            if not file.is_file():
                raise InputError(
                    f"microcosm.sst2: {file} is not there; name a folder with train.tsv, dev.tsv, test.tsv."
                )
            sha256[f"base.microcosm.sst2.{name}"] = file_sha256(file)
    if source.world is not None:
        card = Path(source.world) / "card.json"
        if not card.is_file():
            raise InputError(f"microcosm.world: {card} is not there; name a folder of `microcosm build`.")
        sha256["base.microcosm.world"] = file_sha256(card)


def _check_judge(name: str, sha256: dict[str, str]) -> None:
    target = JudgeName.parse(name).target
    if target.startswith("world:"):
        return
    load_judge(name, device="cpu")
    path = Path(target)
    if target and path.is_dir():
        sha256["judge"] = folder_sha256(path)
    elif target and path.is_file():
        sha256["judge"] = file_sha256(path)
