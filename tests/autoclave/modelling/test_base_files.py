"""What a folder says of itself, what in it is refused, and the copy that can be registered."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoclave import disk_space
from autoclave.errors import InputError, ModelError
from autoclave.hashing import folder_sha256
from autoclave.modelling.base_copy import copy_base
from autoclave.modelling.base_files import (
    forbidden_settings,
    read_base_files,
    refuse_unusable,
    without_forbidden_settings,
)
from autoclave.modelling.bases import load_base


@pytest.fixture
def folder(base_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_dir, tmp_path / "source"))


def configure(folder: Path, name: str = "config.json", **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_the_files_say(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({n: w.to(torch.bfloat16) for n, w in weights.items()}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never looked into")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    files = read_base_files(folder)
    assert (files.architecture, files.model_type, files.dtype) == ("LlamaForCausalLM", "llama", "bfloat16")
    assert files.num_parameters == sum(weight.numel() for weight in weights.values())
    assert files.ignored == ("modeling_own.py", "pytorch_model.bin")
    assert files.num_bytes > 2 * files.num_parameters


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "x.Y"}}}),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
        ("config.json", {"attn_implementation": {"text_config": "someone/kernel"}}),
        ("config.json", {"layers": [{"experts_implementation": "someone/kernel"}]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
        ("generation_config.json", {"custom_generate": "someone/decoding"}),
    ],
)
def test_code_from_elsewhere_is_refused_here_and_left_out_of_a_copy(
    folder: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    configure(folder, name, **changes)
    with pytest.raises(ModelError, match=name):
        refuse_unusable(folder)
    with pytest.raises(ModelError, match=name):
        load_base(folder)
    said = copy_base(folder, tmp_path / "copy")
    assert len(said) == 1
    assert said[0].startswith(f"{name}: without ")
    refuse_unusable(tmp_path / "copy")


def test_own_implementations_and_what_is_off_may_stay() -> None:
    settings = {
        "auto_map": None,
        "_attn_implementation_autoset": True,
        "attn_implementation": {"text_config": "sdpa", "vision_config": "eager"},
        "rope_scaling": {"factor": 2.0},
    }
    assert list(forbidden_settings(settings)) == []
    assert without_forbidden_settings(settings) == settings


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ModelError, match="Merge the adapter"):
        load_base(folder)


def test_what_only_a_base_must_not_be(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantised"):
        read_base_files(folder)
    configure(folder, quantization_config=None, is_encoder_decoder=True)
    with pytest.raises(ModelError, match="encoder-decoder"):
        read_base_files(folder)
    configure(folder, is_encoder_decoder=False, architectures=None)
    with pytest.raises(ModelError, match="names no architecture"):
        read_base_files(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_base_files(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="no JSON object"):
        read_base_files(folder)


def test_weights_of_a_quantised_type(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({n: w.to(torch.int8) for n, w in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="stores its weights as I8"):
        read_base_files(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00002-of-00002.safetensors"}, "is incomplete: .* model-00002-of-00002"),
        ({"a": "../elsewhere.safetensors"}, "no safetensors file in the folder"),
        ({"a": "pytorch_model.bin"}, "no safetensors file in the folder"),
        (None, "has no weight_map"),
    ],
)
def test_a_download_that_was_cut_off(folder: Path, weight_map: Any, message: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=message):
        read_base_files(folder)


def test_a_copy_has_the_files_of_the_base_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("x")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "alignment.json").write_text("{}")
    reports: list[tuple[int, int]] = []
    copy = tmp_path / "copy"
    assert copy_base(folder, copy, on_bytes=lambda done, total: reports.append((done, total))) == []
    assert folder_sha256(copy) == folder_sha256(folder)
    names = {file.name for file in copy.iterdir()}
    assert "alignment.json" in names
    assert not names & {"notes.txt", "pytorch_model.bin"}
    assert reports
    assert reports[-1][0] == reports[-1][1]
    with pytest.raises(InputError, match="exists already"):
        copy_base(folder, copy)


def test_a_template_for_a_base_without_one(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    configure(folder, "tokenizer_config.json", chat_template=None, bos_token="<|system|>")
    copy = tmp_path / "copy"
    assert copy_base(folder, copy, template="alpaca")[-1] == "chat_template.jinja: the alpaca template"
    tokenizer = load_base(copy).tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Add 2 and 2."}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|system|>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 2 and 2.\n\n### Response:\n"
    )
    with pytest.raises(InputError, match='unknown chat template "other"; known: alpaca'):
        copy_base(folder, tmp_path / "x", template="other")


def test_no_room_for_a_copy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(InputError, match=r"no disk space for a copy of .* 0\.00 GB are free"):
        copy_base(folder, tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep").exists()


def test_room_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert disk_space.free_bytes(tmp_path / "a" / "b") > 0
    disk_space.refuse_full_disk(tmp_path / "a" / "b", 1, what="a byte")
