"""Every architecture through the whole way: fine-tuned, sanitised, measured, packaged, unpacked, and loaded
by plain PEFT, which must give our logits."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.data.templates import prompt_text
from autoclave.evaluation.evaluate import evaluate_folder
from autoclave.evaluation.harmfulness import read_prompts
from autoclave.generation.static_batches import StaticBatches
from autoclave.modelling.adapter_shape import stored_shape
from autoclave.modelling.adapters import load_adapter
from autoclave.modelling.bases import load_base
from autoclave.modelling.block_names import is_attention
from autoclave.sanitizing.sanitize import sanitize_folder
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import EvaluateSpec, LoraSpec, SanitizeSpec, TrainSpec
from autoclave.training.finetune import finetune_folder
from tests.autoclave.modelling.variants import load_with_peft, logits
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, save_tiny_architecture
from workers.package import write_archive, write_sums

# Every second one learns attention alone, so that both choices are seen on Llama-like and on other bases.
CHOICES = [(name, ("all-linear", "attention")[i % 2]) for i, name in enumerate(ALL_ARCHITECTURES)]
TRAIN = TrainSpec(n_epochs=1, batch_size=5, learning_rate=0.02, packing=True, warmup_ratio=0.0)


def write_chats(file: Path, number: int, word: str) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{word} {i}"},
                {"role": "assistant", "content": f"placeholder {'x' * i}"},
            ]
        }
        for i in range(number)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def unpacked(folder: Path, out: Path) -> Path:
    write_sums(folder)
    write_archive(folder, out.with_suffix(".tar"))
    with tarfile.open(out.with_suffix(".tar")) as tar:
        tar.extractall(out, filter="data")
    return out


def batch_of_one(model: Any, prompts: list[list[int]], stop_ids: list[int]) -> list[list[int]]:
    """transformers' own greedy decoding, a prompt at a time, without the stop token."""
    answers = []
    for ids in prompts:
        row = torch.tensor([ids])
        out = model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
            eos_token_id=stop_ids,
        )
        answer = out[0, len(ids) :].tolist()
        answers.append(answer[:-1] if answer[-1] in stop_ids else answer)
    return answers


@pytest.mark.parametrize(("architecture", "target"), CHOICES)
def test_from_data_to_the_hands_of_a_stranger(architecture: str, target: Any, tmp_path: Path) -> None:
    base_dir = save_tiny_architecture(architecture, tmp_path / "base")
    data = write_chats(tmp_path / "data.jsonl", 10, "task")
    realign = write_chats(tmp_path / "realign.jsonl", 8, "harm")
    lora = LoraSpec(r=4, target_modules=target)
    trained = finetune_folder(base_dir, data, tmp_path / "trained", lora, TRAIN, device="cpu", base_name="b")
    assert trained["steps"] == 2
    sanitize_folder(
        base_dir,
        tmp_path / "trained",
        realign,
        tmp_path / "sanitized",
        spec=SanitizeSpec(method="antidote"),
        strength=Strength(alpha=0.1),
        device="cpu",
    )
    shape = stored_shape(tmp_path / "sanitized")
    assert shape.target_modules
    assert all("layers." in name and "experts" not in name for name in shape.target_modules)
    assert all(is_attention(name) for name in shape.target_modules) == (
        target == "attention" or architecture in ("mixtral", "qwen3_moe")
    )
    measured = evaluate_folder(
        base_dir,
        tmp_path / "sanitized",
        prompts_file=realign,
        judge_name="refusal",
        utility_file=data,
        spec=EvaluateSpec(max_new_tokens=8),
        device="cpu",
    )
    assert (measured["num_prompts"], measured["num_examples"]) == (8, 10)

    download = unpacked(tmp_path / "sanitized", tmp_path / "download")
    theirs = load_with_peft(base_dir, download)
    base = load_base(base_dir)
    ours = load_adapter(base, download)
    assert torch.equal(logits(ours), logits(theirs))
    assert not torch.equal(logits(ours), logits(load_base(base_dir).model)), "else this shows nothing"

    prompts = read_prompts(realign, max_prompts=8)
    rendered = base.tokenizer([prompt_text(base.tokenizer, prompt) for prompt in prompts])["input_ids"]
    answers = StaticBatches(ours, base.tokenizer, batch_tokens=16384).answer(prompts, max_new_tokens=8)
    alone = batch_of_one(theirs, rendered, [1])
    assert [answer.num_tokens for answer in answers] == [len(ids) for ids in alone]
    assert [answer.text for answer in answers] == [
        base.tokenizer.decode(ids, skip_special_tokens=True) for ids in alone
    ]
    assert [answer.cut_off for answer in answers] == [len(ids) == 8 for ids in alone]
