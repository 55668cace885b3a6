"""The folder command: an adapter that plain PEFT loads, with a record and masks to check, or nothing."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import encode
from autoclave.errors import (
    BaseMismatchError,
    InputError,
    NonFiniteWeightsError,
    SafetyGateError,
)
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, attach, load_adapter, save_adapter
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.masks import select
from autoclave.sanitizing.packed_masks import load_masks, load_norms
from autoclave.sanitizing.sanitize import sanitize_folder
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import LoraSpec, SanitizeSpec
from tests.autoclave.sanitizing import reference
from tests.autoclave.sanitizing.conftest import write_gate
from tests.autoclave.tiny import save_tiny_base

STRENGTHS = {
    "antidote": Strength(alpha=0.1),
    "antidote-protected": Strength(alpha=0.1),
    "projection": Strength(mu=2.0),
    "pipeline": Strength(alpha=0.05, mu=2.0),
}


def sanitized(
    base_dir: Path, adapter_dir: Path, data_dir: Path, out: Path, method: Any, **changes: Any
) -> dict[str, Any]:
    arguments = {
        "spec": SanitizeSpec(method=method),
        "strength": STRENGTHS[method],
        "user_data": data_dir / "user.jsonl",
        "device": "cpu",
    }
    return sanitize_folder(base_dir, adapter_dir, data_dir / "realign.jsonl", out, **arguments | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """By the names of `factor_layers`."""
    return {name.removesuffix(".weight"): t for name, t in load_file(folder / WEIGHTS_FILE).items()}


def logits_by_plain_peft(base_dir: Path, adapter_dir: Path) -> torch.Tensor:
    with warnings.catch_warnings():  # PEFT uses an old transformers name and says so
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_base(base_dir).model, str(adapter_dir))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(9)[None]).logits
    return logits


def test_antidote_is_the_reference_mask_applied(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    out, realign = tmp_path / "out", data_dir / "realign.jsonl"
    record = sanitized(base_dir, adapter_dir, data_dir, out, "antidote", user_data=None)
    base = load_base(base_dir)
    model = load_adapter(base, adapter_dir)
    examples = encode(base.tokenizer, read_conversations(realign), max_seq_length=2048).examples
    masks = reference.masks(model, reference.norms(model, examples), 0.1)
    before, after = weights(adapter_dir), weights(out)
    assert before.keys() == after.keys() == masks.keys()
    for name, mask in masks.items():
        assert np.array_equal(after[name].numpy(), np.where(mask, 0, before[name].numpy()))
        assert record["matrices"][name]["pruned"] == mask.sum()
    assert record["pruned"] == sum(mask.sum() for mask in masks.values())
    assert record["pruned_fraction"] == record["pruned"] / sum(mask.size for mask in masks.values())
    assert (record["method"], record["alpha"], record["mu"]) == ("antidote", 0.1, None)
    assert record["realign_examples"] == 11
    assert record["realign_tokens"] == sum(len(e) for e in examples)
    assert record["user_examples"] is record["figures"] is record["gate"] is None
    assert record["sha256"] == {
        "base": folder_sha256(base_dir),
        "adapter_in": file_sha256(adapter_dir / WEIGHTS_FILE),
        "adapter_out": file_sha256(out / WEIGHTS_FILE),
        "realign_data": file_sha256(realign),
        "user_data": None,
        "gate_file": None,
        "harmful_eval": None,
        "utility_eval": None,
    }
    assert (record["device"], record["dtype"], record["realign_truncated"]) == ("cpu", "float32", 0)


@pytest.mark.parametrize("method", STRENGTHS)
def test_every_method_from_folder_to_folder(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path, method: Any
) -> None:
    out = tmp_path / "out"
    record = sanitized(base_dir, adapter_dir, data_dir, out, method)
    assert json.loads((out / "sanitization.json").read_text()) == record
    for name in ("adapter_config.json", "autoclave.json"):
        assert (out / name).read_bytes() == (adapter_dir / name).read_bytes()
    theirs = logits_by_plain_peft(base_dir, out)
    model = load_adapter(load_base(base_dir), out)
    with torch.no_grad():
        assert torch.equal(theirs, model(input_ids=torch.arange(9)[None]).logits)
    assert not torch.equal(theirs, logits_by_plain_peft(base_dir, adapter_dir))
    assert record["relative_change"] > 0
    assert record["user_truncated"] == (None if method == "antidote" else 0)
    assert (record["sha256"]["user_data"] is None) == (method == "antidote")

    before, after = weights(adapter_dir), weights(out)
    masks_file, norms_file = out / "masks.safetensors", out / "input_norms.safetensors"
    if method == "projection":
        assert not masks_file.exists()
        assert not norms_file.exists()
        assert record["pruned"] == 0
        return
    masks, norms = load_masks(masks_file), load_norms(norms_file)
    assert masks.keys() == norms.keys() == after.keys()
    assert all(torch.equal(after[name] == 0, mask) for name, mask in masks.items())
    assert record["pruned"] == sum(int(mask.sum()) for mask in masks.values()) > 0
    if method == "antidote":
        scores = {name: wanda_scores(before[name], norms[name].norm) for name in before}
        again = select(scores, 0.1, "row")
        assert all(torch.equal(again[name], mask) for name, mask in masks.items())


def test_the_pipelines_masks_follow_from_the_stored_norms_and_the_projection_alone(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    sanitized(base_dir, adapter_dir, data_dir, tmp_path / "both", "pipeline")
    sanitized(base_dir, adapter_dir, data_dir, tmp_path / "projected", "projection")
    projected, after = weights(tmp_path / "projected"), weights(tmp_path / "both")
    norms = load_norms(tmp_path / "both" / "input_norms.safetensors")
    scores = {name: wanda_scores(projected[name], norms[name].norm) for name in projected}
    masks = select(scores, 0.05, "matrix")
    for name, mask in load_masks(tmp_path / "both" / "masks.safetensors").items():
        assert torch.equal(mask, masks[name])
        assert torch.equal(after[name], projected[name].masked_fill(mask, 0))


def test_a_gate_is_searched_judged_and_written_down(
    base_dir: Path, adapter_dir: Path, data_dir: Path, gate_file: Path, tmp_path: Path
) -> None:
    record = sanitized(
        *(base_dir, adapter_dir, data_dir, tmp_path / "out", "pipeline"), strength=None, gate_file=gate_file
    )
    assert (record["alpha"], record["mu"]) == (0.001, 0.1)  # everything meets it, so the weakest of all
    assert record["gate"]["max_harmful_score"] == 100.0
    assert record["evaluate"]["max_new_tokens"] == 3
    figures = record["figures"]
    assert list(figures) == ["base", "before", "after", "random_control", "ablations", "frontier"]
    for values in (*list(figures.values())[:4], *figures["ablations"].values()):
        assert (values["num_prompts"], values["num_examples"]) == (3, 4)
        assert values["held_out_loss"] > 0
    assert figures["ablations"].keys() == {"mask_alone", "projection_alone"}
    assert len(figures["frontier"]) == 1
    assert figures["frontier"][0]["refused"] is None
    for name, file in (("gate_file", gate_file), ("harmful_eval", data_dir / "harmful_eval.jsonl")):
        assert record["sha256"][name] == file_sha256(file)
    # What was judged is what is in the folder: the same as with the strength given.
    sanitized(
        *(base_dir, adapter_dir, data_dir, tmp_path / "given", "pipeline"), strength=Strength(0.001, 0.1)
    )
    for name in (WEIGHTS_FILE, "masks.safetensors", "input_norms.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


def test_a_missed_gate_writes_nothing_and_shows_the_frontier(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    gate = write_gate(data_dir, "strict.json", max_harmful_score=5.0)
    spec = SanitizeSpec(method="antidote", alphas=(0.1, 0.3))
    before = {path.name: path.read_bytes() for path in adapter_dir.iterdir()}
    with pytest.raises(SafetyGateError, match="none of the 2 strengths") as caught:
        sanitized(
            *(base_dir, adapter_dir, data_dir, tmp_path / "work" / "out", "antidote"),
            spec=spec,
            strength=None,
            gate_file=gate,
        )
    assert [(entry["alpha"], entry["harmful_score"]) for entry in caught.value.frontier] == [
        (0.1, 100.0),
        (0.3, 100.0),
    ]
    assert list((tmp_path / "work").iterdir()) == []
    assert {path.name: path.read_bytes() for path in adapter_dir.iterdir()} == before


def test_a_safety_profile_serves_as_gate_file_and_names_the_realignment_set(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    profile = write_gate(
        data_dir,
        "profile.json",
        max_harmful_score=100.0,
        version="7",
        realign="realign.jsonl",
        sanitize={"method": "antidote", "alphas": [0.2]},
    )
    record = sanitize_folder(base_dir, adapter_dir, None, tmp_path / "out", gate_file=profile, device="cpu")
    assert (record["method"], record["alpha"], record["rule_name"]) == ("antidote", 0.2, "row")
    assert record["sha256"]["realign_data"] == file_sha256(data_dir / "realign.jsonl")
    assert record["figures"]["ablations"] is None


def test_long_examples_are_cut_and_counted(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = sanitized(base_dir, adapter_dir, data_dir, out, "projection", max_seq_length=14)
    assert record["realign_truncated"] == 10  # 9 + 4 i tokens for i = 1 to 9, one more from 10 on
    assert record["realign_tokens"] <= 11 * 14
    assert record["user_truncated"] > 0


def test_bad_folders_leave_nothing_behind(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "work" / "out"

    def refused(
        kind: type[Exception], words: str, base: Path, adapter: Path, method: str = "antidote"
    ) -> None:
        with pytest.raises(kind, match=words):
            sanitized(base, adapter, data_dir, out, method)
        assert not out.parent.exists() or list(out.parent.iterdir()) == []

    refused(InputError, r"no config\.json", tmp_path, adapter_dir)
    refused(InputError, r"no adapter_config\.json", base_dir, tmp_path)
    other = save_tiny_base(tmp_path / "other", seed=1)
    refused(BaseMismatchError, "was made for the base with SHA-256", other, adapter_dir)
    for value in (torch.nan, torch.inf):
        spoilt = tmp_path / f"spoilt-{value}"
        shutil.copytree(adapter_dir, spoilt)
        tensors = load_file(spoilt / WEIGHTS_FILE)
        name = sorted(tensors)[-1]
        tensors[name][0, 1] = value
        save_file(tensors, spoilt / WEIGHTS_FILE, metadata={"format": "pt"})
        refused(NonFiniteWeightsError, name.replace(".", r"\."), base_dir, spoilt)
    untrained = tmp_path / "untrained"
    base = load_base(base_dir)
    save_adapter(
        attach(base.model, LoraSpec(r=2), seed=1),
        untrained,
        base_name="tiny",
        base_revision=None,
        base_sha256=base.sha256,
    )
    refused(InputError, "changes nothing. Train it first", base_dir, untrained, "pipeline")
    (out / "older").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        sanitized(base_dir, adapter_dir, data_dir, out, "antidote")


def test_neither_unpruned_nor_empty_adapters_are_written(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    everything = SanitizeSpec(
        method="antidote-protected", protection="set-difference", protected_fraction=0.999999
    )
    arguments = (base_dir, adapter_dir, data_dir, tmp_path / "out")
    with pytest.raises(InputError, match=r"at alpha 0\.1 nothing is pruned: every entry is protected"):
        sanitized(*arguments, "antidote-protected", spec=everything)
    with pytest.raises(InputError, match=r"at alpha 0\.99 nothing is left of the adapter"):
        sanitized(*arguments, "antidote", strength=Strength(alpha=0.99))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_other_software_gets_the_name_of_the_base_folder(
    base_dir: Path, adapter_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(adapter_dir, foreign)
    (foreign / "autoclave.json").unlink()
    config = json.loads((foreign / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": None, "revision": None}
    (foreign / "adapter_config.json").write_text(json.dumps(config))
    sanitized(base_dir, foreign, data_dir, tmp_path / "out", "antidote")
    written = json.loads((tmp_path / "out" / "autoclave.json").read_text())
    assert written == {
        "base_name": base_dir.name,
        "base_revision": None,
        "base_sha256": folder_sha256(base_dir),
    }
