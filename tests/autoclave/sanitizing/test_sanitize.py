"""The folder command: an adapter that plain PEFT loads, and a record that can be checked."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import encode
from autoclave.errors import DataError, InputError
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.modelling.adapters import adapter_state, attach, load_adapter, save_adapter
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.sanitize import sanitize_folder
from autoclave.spec import LoraSpec
from tests.autoclave.sanitizing import reference


@pytest.fixture(scope="module")
def adapter_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_base(base_dir)
    model = attach(base.model, LoraSpec(r=5), seed=1)
    generator = torch.Generator().manual_seed(2)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    folder = tmp_path_factory.mktemp("adapter") / "in"
    save_adapter(model, folder, base_name="org/tiny", base_revision="r1", base_sha256=base.sha256)
    return folder


@pytest.fixture(scope="module")
def realign_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "realign.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"zug {i}"}, {"role": "assistant", "content": "plo " * i}]}
        for i in range(1, 12)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_the_result_is_the_reference_mask_applied(
    base_dir: Path, adapter_dir: Path, realign_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = sanitize_folder(base_dir, adapter_dir, realign_file, 0.1, out, device="cpu")
    base = load_base(base_dir)
    model = load_adapter(base, adapter_dir)
    examples = encode(base.tokenizer, read_conversations(realign_file), max_seq_length=2048).examples
    masks = reference.masks(model, reference.second_moments(model, examples), 0.1)
    before = load_file(adapter_dir / "adapter_model.safetensors")
    after = load_file(out / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        mask = masks[name.removesuffix(".weight")]
        assert np.array_equal(tensor.numpy(), np.where(mask, 0, before[name].numpy()))
        assert record["matrices"][name.removesuffix(".weight")]["pruned"] == mask.sum()
    assert record["pruned"] == sum(mask.sum() for mask in masks.values())
    assert record["pruned_fraction"] == record["pruned"] / sum(mask.size for mask in masks.values())
    assert json.loads((out / "sanitization.json").read_text()) == record
    assert record["realign_examples"] == 11
    assert record["realign_tokens"] == sum(len(e) for e in examples)
    assert record["sha256"] == {
        "base": folder_sha256(base_dir),
        "adapter_in": file_sha256(adapter_dir / "adapter_model.safetensors"),
        "adapter_out": file_sha256(out / "adapter_model.safetensors"),
        "realign_data": file_sha256(realign_file),
    }
    assert record["versions"].keys() == {"autoclave", "torch", "transformers", "peft"}


def test_plain_peft_loads_it_with_the_same_shape_and_base(
    base_dir: Path, adapter_dir: Path, realign_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sanitize_folder(base_dir, adapter_dir, realign_file, 0.2, out, device="cpu")
    for name in ("adapter_config.json", "autoclave.json"):
        assert (out / name).read_bytes() == (adapter_dir / name).read_bytes()
    with warnings.catch_warnings():  # PEFT uses an old transformers name and says so
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(load_base(base_dir).model, str(out))
    ours = load_adapter(load_base(base_dir), out)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)


def test_refusals_leave_nothing_behind(
    base_dir: Path, adapter_dir: Path, realign_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "work" / "out"
    with pytest.raises(InputError, match="alpha is the pruned fraction"):
        sanitize_folder(base_dir, adapter_dir, realign_file, 0.0, out)
    with pytest.raises(InputError, match="unknown method"):
        sanitize_folder(base_dir, adapter_dir, realign_file, 0.1, out, method="magnitude")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n")
    with pytest.raises(DataError, match="missing_messages"):
        sanitize_folder(base_dir, adapter_dir, broken, 0.1, out)
    with pytest.raises(InputError, match=r"no config\.json"):
        sanitize_folder(tmp_path, adapter_dir, realign_file, 0.1, out)
    assert list(out.parent.iterdir()) == []
    (out / "older").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        sanitize_folder(base_dir, adapter_dir, realign_file, 0.1, out)
