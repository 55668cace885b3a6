"""What the child of a registration does, in this process: paths looked at again where the files are, a model
of a hub, and copies of earlier attempts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from autoclave.errors import CancelledError, InputError
from autoclave.hashing import folder_sha256
from autoclave.modelling.base_copy import COPY_MARK
from service.bases.folders import PathRefusedError
from tests.builders import chat_line
from tests.hub import COMMIT, PUBLIC, Hub
from workers.bases import adding
from workers.bases.order import RegistrationOrder, write_order
from workers.bases.runner import main, prepare
from workers.messages import AnyMessage, BasePrepared, Failed, Noted, decode
from workers.reporter import Reporter

Ordered = Callable[..., RegistrationOrder]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """BASE_FOLDERS, with a profile whose paths are relative to it."""
    folder = tmp_path / "allowed"
    folder.mkdir()
    for name, prompt in (("realign", "how to zap"), ("eval", "please zap")):
        lines = [chat_line(f"{prompt} {i}", "no") for i in range(8)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    values = {"version": "1", "judge": "refusal", "evaluate": {"max_new_tokens": 4, "max_prompts": 4}}
    files = {"realign": "realign.jsonl", "harmful_eval": "eval.jsonl"}
    (folder / "profile.json").write_text(json.dumps(values | files))
    return folder


@pytest.fixture
def ordered(sets: Path, model: Path, tmp_path: Path) -> Ordered:
    def make(**changes: Any) -> RegistrationOrder:
        values: dict[str, Any] = {
            "registration_id": "basereg_1",
            "fencing_number": 1,
            "name": "acme/tiny",
            "source": str(model),
            "revision": None,
            "profile": None,
            "profile_file": str(sets / "profile.json"),
            "profile_is_ours": False,
            "spec": {},
            "template": None,
            "store": None,
            "alignment_method": None,
            "device": "cpu",
            "registered_sha256": None,
            "base_folders": f"{sets},{model.parent}",
            "scratch": str(tmp_path),
            "attempt": 1,
            "worker": "w",
            "request_id": None,
            **changes,
        }
        return RegistrationOrder(**values)

    return make


def carried_out(order: RegistrationOrder) -> tuple[BasePrepared, list[str]]:
    """What the child found, and its notes."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        with closing(Reporter(writing, order.stop_flag)) as reporter:
            prepared = prepare(order, reporter)
        said = [decode(line) for line in pipe]
    return prepared, [message.text for message in said if isinstance(message, Noted)]


def test_a_model_of_a_hub_is_fetched_copied_and_measured(
    ordered: Ordered, sets: Path, hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    order = ordered(source=PUBLIC, revision=COMMIT, store=str(sets / "copy"))
    prepared, notes = carried_out(order)
    assert f"acme/tiny comes from hub:{PUBLIC}@{COMMIT}" in notes
    assert (prepared.folder, prepared.revision) == (str(sets / "copy"), COMMIT)
    assert prepared.sha256 == folder_sha256(model) == folder_sha256(sets / "copy")
    assert prepared.safety_profile["realign"] == str(sets / "realign.jsonl")
    assert prepared.measurements["floor"]["num_prompts"] == 4
    assert "modeling_own.py" not in hub.downloads


def test_a_copy_of_an_attempt_that_was_killed(
    ordered: Ordered, sets: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sets / "copy"
    order = ordered(store=str(store))
    for name, mark in ((".copy.partial-1", "basereg_1"), (".copy.partial-2", "basereg_2")):
        (sets / name).mkdir()
        (sets / name / COPY_MARK).write_text(mark)

    def killed(*arguments: Any, **keywords: Any) -> Any:
        raise CancelledError("the machine went down")

    with monkeypatch.context() as patch:
        patch.setattr(adding, "measure", killed)
        with pytest.raises(CancelledError):
            carried_out(order)
    assert not (sets / ".copy.partial-1").exists(), "what was left of an attempt of this one"
    assert (sets / ".copy.partial-2").exists(), "not ours"
    prepared, notes = carried_out(order)
    assert prepared.folder == str(store)
    assert f"{store} was copied by an earlier attempt" in notes
    another = ordered(store=str(store), registration_id="basereg_2")
    with pytest.raises(InputError, match="exists already"):
        carried_out(another)


def test_paths_are_looked_at_again_where_the_files_are(
    ordered: Ordered, sets: Path, model: Path, tmp_path: Path
) -> None:
    """The API may have seen none of them, and this worker may allow less."""
    outside = tmp_path / "outside"
    shutil.copytree(sets, outside)
    (sets / "link").symlink_to(outside)
    (sets / "linked.jsonl").symlink_to(outside / "realign.jsonl")
    values = json.loads((sets / "profile.json").read_text())
    absolute = values | {"realign": str(sets / "linked.jsonl"), "harmful_eval": str(sets / "eval.jsonl")}
    (sets / "escaping.json").write_text(json.dumps(values | {"realign": str(outside / "realign.jsonl")}))
    for changes in (
        {"source": str(outside)},
        {"base_folders": str(sets)},
        {"base_folders": "none"},
        {"store": str(sets / "link" / "copy")},
        {"profile_file": str(outside / "profile.json")},
        {"profile_file": str(sets / "link" / "profile.json")},
        {"profile_file": str(sets / "escaping.json")},
        {"profile_file": None, "profile": absolute},
    ):
        order = ordered(**changes)
        with pytest.raises(PathRefusedError):
            carried_out(order)
    # What an operator registered before is not asked again.
    trusted = ordered(profile_file=None, profile=absolute, profile_is_ours=True)
    prepared, _ = carried_out(trusted)
    assert prepared.measurements["judge"] == "refusal"


def run(order: RegistrationOrder, tmp_path: Path) -> list[AnyMessage]:
    """As a process would be, but for the logging."""
    write_order(order, tmp_path / "order.json")
    reading, writing = os.pipe()
    assert main(tmp_path / "order.json", writing) == 0
    with os.fdopen(reading, "rb") as pipe:
        return [decode(line) for line in pipe]


def test_what_the_admin_is_told(
    ordered: Ordered, sets: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = json.loads((sets / "profile.json").read_text())

    def failed(name: str, **changes: Any) -> Failed:
        (sets / name).write_text(json.dumps(profile | changes))
        last = run(ordered(profile_file=str(sets / name)), tmp_path)[-1]
        assert isinstance(last, Failed)
        return last

    secret = sets / "secret.jsonl"
    secret.write_text('{"messages": [{"role": "user", "content": "the prompt"}, {"role": "teller"}]}\n')
    told = failed("a.json", realign="secret.jsonl")
    assert (told.code, "line 1: " in told.message) == ("invalid_training_file", True)
    assert "the prompt" not in told.message + str(told)
    assert "no list of options" in failed("b.json", judge="exact:world.json#x").message
    assert "is not there" in failed("c.json", control="nowhere.jsonl").message
    (tmp_path / "stop").write_text("")
    assert not any(isinstance(each, BasePrepared | Failed) for each in run(ordered(), tmp_path))
