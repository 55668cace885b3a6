"""Reading a protocol's file: YAML, shipped ones by name, single fields set from outside. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autoclave.errors import InputError
from autoclave.evaluation.judges.names import JudgeName, absolute_judge
from autoclave.protocol.config import ProtocolConfig

CONFIGS = Path(__file__).parent / "configs"
TO_FILL_IN = "FILL IN"

# Fields that hold paths of this machine, wherever they stand.
_PATH_FIELDS = frozenset({"path", "file", "world", "sst2"})
_PREFIXES = ("hub:", "world:", "sst2:")


def shipped_configs() -> dict[str, Path]:
    return {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}


def shipped_text(name: str) -> str:
    """Raises InputError for a name that is not shipped."""
    files = shipped_configs()
    if name not in files:
        raise InputError(f'no shipped config is called "{name}"; there are {", ".join(files)}.')
    return files[name].read_text(encoding="utf-8")


def read_config(name: str, settings: Sequence[str] = ()) -> ProtocolConfig:
    """A file, or a shipped config by its name, with `settings` (FIELD=VALUE, dotted) over it.

    Paths in the file are relative to its folder; in settings, and in shipped configs, to the current one.
    Raises InputError naming the file, every wrong field and what is still to be filled in.
    """
    shipped = shipped_configs().get(name)
    file = shipped or Path(name)
    if shipped is None and not file.is_file():
        raise InputError(
            f"{name} is no file and no shipped config; shipped are {', '.join(shipped_configs())} "
            "(`autoclave protocol show NAME > my.yaml` writes one out)."
        )
    values = _parsed(file)
    folder = Path.cwd() if shipped else file.resolve().parent
    _make_absolute(values, folder)
    for setting in settings:
        _set(values, setting)
    unfilled = list(_unfilled(values))
    if unfilled:
        lines = "".join(f"\n  {field}: {text}" for field, text in unfilled)
        raise InputError(
            f"{name}: {len(unfilled)} fields are still to be filled in (in the file, or with "
            f"--set FIELD=VALUE):{lines}"
        )
    try:
        return ProtocolConfig.model_validate(values)
    except ValidationError as error:
        issues = "".join(
            f"\n  {'.'.join(map(str, issue['loc'])) or 'the file'}: {_words(issue)}"
            for issue in error.errors()
        )
        raise InputError(f"{name} is no protocol that can be run:{issues}") from error


def _words(issue: Any) -> str:
    if issue["type"] == "extra_forbidden":
        return "there is no such field; is it misspelt, or of another part? (docs/protocol.md)"
    if issue["type"] == "missing":
        return "this field is needed"
    got = issue["input"]
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    return f"{issue['msg'].removeprefix('Value error, ')}{shown}"


def _parsed(file: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A key that stands twice is an error: YAML's loader would take the last one silently."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    line = node.start_mark.line + 1
                    raise InputError(f"{file}: the key {key!r} stands twice in the part at line {line}.")
            return super().construct_mapping(node, deep)

    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no fields; `autoclave protocol show microcosm-sst2` shows a config.")
    return values


def _make_absolute(values: Any, folder: Path) -> None:
    for holder, key, value in _leaves(values):
        if isinstance(value, str):
            holder[key] = _absolute(key, value, folder)


def _absolute(key: Any, value: str, folder: Path) -> str:
    if value.startswith(TO_FILL_IN):
        return value
    if key in _PATH_FIELDS and not value.startswith(_PREFIXES):
        return str(folder / Path(value).expanduser())
    if key == "judge" and not JudgeName.parse(value).target.startswith("world:"):
        return absolute_judge(value, folder)
    return value


def _leaves(values: Any) -> Iterator[tuple[Any, Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(values, dict):
        pairs = list(values.items())
    elif isinstance(values, list):
        pairs = list(enumerate(values))
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from _leaves(value)
        else:
            yield values, key, value


def _set(values: dict[str, Any], setting: str) -> None:
    import yaml

    field, equals, written = setting.partition("=")
    if not equals or not field.strip("."):
        raise InputError(f'--set takes FIELD=VALUE, e.g. attack.p=0.1, got "{setting}".')
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise InputError(f"--set {field}: the value {written!r} is not valid YAML: {error}") from error
    *parents, last = field.split(".")
    holder: Any = values
    for name in parents:
        key = _key(holder, name, field)
        if isinstance(holder, dict) and not isinstance(holder.get(key), dict | list):
            holder[key] = {}
        holder = holder[key]
    if isinstance(value, str):
        value = _absolute(last, value, Path.cwd())
    holder[_key(holder, last, field)] = value


def _key(holder: Any, name: str, field: str) -> str | int:
    if isinstance(holder, dict):
        return name
    if not isinstance(holder, list):
        raise InputError(f"--set {field}: there is no {name} to set something in.")
    if not name.isdecimal() or int(name) >= len(holder):
        raise InputError(f"--set {field}: the list has {len(holder)} entries, counted from 0.")
    return int(name)


def _unfilled(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        field = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict | list):
            yield from _unfilled(value, field)
        elif isinstance(value, str) and value.startswith(TO_FILL_IN):
            yield field, value.removeprefix(TO_FILL_IN).lstrip(": ") or "no value yet"
