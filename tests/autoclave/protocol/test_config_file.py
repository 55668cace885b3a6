"""Configs: the shipped ones are whole but for what the operator fills in; wrong ones are refused by field."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import autoclave
from autoclave.errors import InputError
from autoclave.protocol.config_file import CONFIGS, read_config, shipped_configs, shipped_text
from autoclave.protocol.sources import find_sources
from tests.autoclave.protocol.files import as_settings

# Strength and learning rate of the authors' scripts (docs/protocol.md).
ALPHA = {"paper-sst2": 0.1, "paper-ag-news": 0.05, "paper-gsm8k": 0.05, "paper-alpaca": 0.1}


def filled(operator: dict[str, str], **changes: object) -> list[str]:
    return as_settings({**operator, **{name.replace("__", "."): value for name, value in changes.items()}})


@pytest.mark.parametrize("name", ALPHA)
def test_the_shipped_configs_of_the_paper(name: str, operator: dict[str, str]) -> None:
    with pytest.raises(InputError) as refused:
        read_config(name)
    for field in ("base.path", "data.realignment.file", "judge", "task.test.file"):
        assert f"\n  {field}: " in str(refused.value)
    config = read_config(name, filled(operator))
    assert config.name == name
    assert config.sanitize[0].alpha == ALPHA[name]
    assert (config.finetune.lora.r, config.finetune.train.learning_rate) == (256, 1e-4)
    assert config.align is not None
    assert (config.align.train.n_epochs, config.align.train.learning_rate) == (20, 1e-3)
    assert config.attack.p == 0.2
    assert config.published
    assert config.deviations
    find_sources(config)


def test_the_authors_counts(operator: dict[str, str]) -> None:
    attack = read_config("paper-sst2", filled(operator)).attack
    assert (attack.num_harmful, attack.num_task) == (999, 4000)
    other = read_config("paper-sst2", filled(operator, attack__authors_counts="false", attack__p=0.1)).attack
    assert (other.num_harmful, other.num_task) == (500, 4500)
    clean = read_config("paper-sst2", filled(operator, attack__p=0)).attack
    assert (clean.num_harmful, clean.num_task) == (0, 5000)


def test_the_configs_are_in_the_package() -> None:
    root = Path(autoclave.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["autoclave.protocol"] == ["configs/*"]
    assert set(shipped_configs()) == {*ALPHA, "microcosm-sst2"}
    assert all(file.suffix == ".yaml" for file in CONFIGS.iterdir())
    with pytest.raises(InputError, match="there are microcosm-sst2, paper"):
        shipped_text("paper-sst3")


def test_paths_are_relative_to_the_file(operator: dict[str, str], tmp_path: Path) -> None:
    text = shipped_text("microcosm-sst2").replace('"FILL IN: folder', '"data/sst2"  # "')
    (tmp_path / "my.yaml").write_text(text)
    config = read_config(str(tmp_path / "my.yaml"))
    assert config.base.microcosm is not None
    assert config.base.microcosm.sst2 == str(tmp_path / "data" / "sst2")
    assert config.task.train.file == "sst2:train.tsv"
    assert config.judge == "exact:world:world.json"
    here = read_config("microcosm-sst2", ["base.microcosm.sst2=sst2"])
    assert here.base.microcosm is not None
    assert here.base.microcosm.sst2 == str(Path.cwd() / "sst2")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("attack.p=1.5", "attack.p: Input should be less than or equal to 1 (got 1.5)"),
        ("atack.p=.5", "atack: there is no such field"),
        ("finetune.train.epochs=3", "finetune.train.epochs: there is no such field"),
        ("finetune.lora.r=many", "finetune.lora.r: Input should be a valid integer"),
        ("task=null", "task: Input should be a valid dictionary"),
        ("task.name=sst3", "task.name: Input should be 'sst2'"),
        ("base.hub=a/b", "base: give exactly one of path, hub and microcosm, got path, hub"),
        ("sanitize.0.alpha=0", "sanitize.0.alpha: Input should be greater than 0"),
        ("sanitize.0.gate={}", "sanitize.0: give either a gate, or alpha and mu"),
        ("sanitize.1.alpha=0", "the list has 1 entries"),
        ("sanitize=[]", "sanitize: Tuple should have at least 1 item"),
        ("attack.p", "--set takes FIELD=VALUE"),
        ("attack.p=[", "is not valid YAML"),
        ("version=2", "version: Input should be 1"),
    ],
)
def test_wrong_fields_are_named(setting: str, words: str, operator: dict[str, str]) -> None:
    with pytest.raises(InputError) as refused:
        read_config("paper-sst2", [*filled(operator), setting])
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.attack.file=/nowhere.jsonl", "data.attack.file: /nowhere.jsonl is no file of this machine"),
        ("data.attack.format=beaver", 'data.attack.format: there is no format "beaver"; known: beavertails'),
        ("data.attack=null", "data.attack is needed for attack.p = 0.2"),
        ("data.alignment=null", "data.alignment is needed to align"),
        ("data.realignment.apart_from=[alignment]", "data.realignment.apart_from: only selection"),
        ("align.method.name=booster", "data.alignment_harmful is needed"),
        ("finetune.method.name=lisa", None),
        ("sanitize.0={label: a, gate: {}}", "data.selection is needed for a gate"),
        ("sanitize.0={label: a, gate: {max_utility_loss: 1}}", "task.validation is needed"),
        ("sanitize.0.label=aligned", "the label aligned is that of a state"),
        ("task.train.file=world:data/x.jsonl", "base.microcosm is needed for paths"),
        ("task.rules=[sst3]", 'task.rules: there is no answer rule "sst3"'),
        ("task.pairwise={url: ftp://h, model: m}", 'task.pairwise: "ftp://h" is no http or https URL'),
        ("judge=oracle", 'judge: unknown judge "oracle"'),
        ("base.path=/nowhere", "base: /nowhere is no folder"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_made(
    setting: str, words: str | None, operator: dict[str, str]
) -> None:
    config = read_config("paper-sst2", [*filled(operator), setting])
    if words is None:
        find_sources(config)
        return
    with pytest.raises(InputError) as refused:
        find_sources(config)
    assert words in str(refused.value)


def test_all_problems_are_named_at_once(operator: dict[str, str]) -> None:
    wrong = ("base.path=/nowhere", "judge=oracle", "data.attack.file=/nowhere.jsonl", "task.rules=[x]")
    with pytest.raises(InputError) as refused:
        find_sources(read_config("paper-sst2", [*filled(operator), *wrong]))
    for field in ("base: ", "judge: ", "data.attack.file: ", "task.rules: "):
        assert f"\n  {field}" in str(refused.value)


def test_a_base_of_the_hub_is_looked_up_in_the_cache(operator: dict[str, str]) -> None:
    hub = ["base.path=null", "base.hub=acme/none"]
    with pytest.raises(InputError, match="hub needs a revision"):
        read_config("paper-sst2", [*filled(operator), *hub])
    config = read_config("paper-sst2", [*filled(operator), *hub, "base.revision=abc"])
    with pytest.raises(InputError, match="hf download acme/none --revision abc"):
        find_sources(config)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", "holds no fields"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("version: 1\nversion: 1", "the key 'version' stands twice"),
    ],
)
def test_files_that_are_no_config(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_config(str(tmp_path / "c.yaml"))


def test_an_unknown_name_says_which_are_shipped() -> None:
    with pytest.raises(InputError, match="no file and no shipped config; shipped are microcosm-sst2"):
        read_config("paper-sst3")
