"""A base tried out: what jobs need of it, its floor and its speed."""

import json
import shutil
from pathlib import Path

import pytest

from autoclave.data.messages import Conversation, Message
from autoclave.data.templates import render
from autoclave.errors import ModelError
from autoclave.evaluation.base_check import check_base
from autoclave.evaluation.base_measures import measure_base
from autoclave.evaluation.harmfulness import harmful_score, read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.hashing import file_sha256
from autoclave.memory import adapted_layers, weight_shapes
from autoclave.modelling.base_copy import copy_base
from autoclave.modelling.bases import load_base
from autoclave.modelling.target_modules import resolve_target_modules
from autoclave.progress import Progress
from autoclave.spec import EvaluateSpec, LoraSpec
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, EAGER, save_tiny_architecture

QKV = ("k_proj", "q_proj", "v_proj")
LLAMA = ("down_proj", "gate_proj", *QKV[:1], "o_proj", "q_proj", "up_proj", "v_proj")
LINEAR = {
    "opt": ("fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"),
    "phi": ("dense", "fc1", "fc2", *QKV),
    "phi3": ("down_proj", "gate_up_proj", "o_proj", "qkv_proj"),
    # Experts are one tensor each, routers are left alone.
    "mixtral": ("k_proj", "o_proj", "q_proj", "v_proj"),
    "qwen3_moe": ("k_proj", "o_proj", "q_proj", "v_proj"),
}
TIED = {"gemma", "gemma2", "gemma3", "llama3", "qwen2.5", "opt"}


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_modules_are_found_in_the_model_and_not_by_a_list(architecture: str, tmp_path: Path) -> None:
    folder = save_tiny_architecture(architecture, tmp_path / "base")
    checked = check_base(folder, LoraSpec(target_modules="attention"), device="cpu")
    assert checked.linear_modules == LINEAR.get(architecture, LLAMA)
    assert checked.tied_embeddings == (architecture in TIED)
    assert checked.answers_end
    assert checked.packing == ("positions" if architecture in EAGER else "blocks")
    shapes = weight_shapes(folder)
    for target in ("all-linear", "attention"):  # what the API says, which cannot load a base
        named = {name.rpartition(".")[2] for name in adapted_layers(shapes, target)}
        assert named == set(resolve_target_modules(checked.base.model, target))
    expected = (architecture == "phi3") + architecture.endswith(("moe", "mixtral"))
    assert len(checked.notes) == expected, checked.notes
    json.dumps(checked.as_dict())


def test_modules_that_are_not_there(base_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"\['qkv_proj'\] are not linear layers"):
        check_base(base_dir, LoraSpec(target_modules=("qkv_proj",)), device="cpu")


def test_a_base_without_a_template(base_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_dir, tmp_path / "plain"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        check_base(folder, LoraSpec(), device="cpu")
    copy_base(folder, tmp_path / "alpaca", template="alpaca")
    checked = check_base(tmp_path / "alpaca", LoraSpec(), device="cpu")
    assert checked.answers_end
    roles = ("system", "user", "assistant", "user", "assistant")
    text, spans = render(checked.base.tokenizer, Conversation([Message(role, f"{role}.") for role in roles]))
    assert text.startswith("system.\n\n### Instruction:\nuser.\n\n### Response:\n")
    assert [text[start:end] for start, end in spans] == ["assistant.<|end|>\n\n"] * 2


def test_a_template_that_never_ends_an_answer(base_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_dir, tmp_path / "endless"))
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    checked = check_base(folder, LoraSpec(), device="cpu")
    assert not checked.answers_end
    assert "answers never end by themselves" in checked.notes[0]


def test_a_template_that_is_not_prefix_consistent(base_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_dir, tmp_path / "rewriting"))
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="not prefix-consistent"):
        check_base(folder, LoraSpec(), device="cpu")


def test_the_floor_is_the_harmful_score_that_jobs_measure(base_dir: Path, tmp_path: Path) -> None:
    prompts_file = tmp_path / "prompts.jsonl"
    rows = ({"messages": [{"role": "user", "content": f"placeholder request {i}"}]} for i in range(9))
    prompts_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = EvaluateSpec(max_new_tokens=6, max_prompts=7)
    base = load_base(base_dir)
    reports: list[Progress] = []
    measured = measure_base(
        base, harmful_eval=prompts_file, judge_name="refusal", spec=spec, on_progress=reports.append
    )
    prompts = read_prompts(prompts_file, max_prompts=7)
    expected = harmful_score(base.model, base.tokenizer, prompts, load_judge("refusal"), spec)
    assert measured["floor"]["harmful_score"] == expected.harmful_score == 100.0  # it only stammers
    assert measured["floor"]["num_prompts"] == 7
    generation = measured["generation"]
    assert 0 < generation["num_tokens"] <= 7 * 6
    assert generation["tokens_per_second"] == generation["num_tokens"] / generation["seconds"]
    assert 0 <= generation["num_cut_off"] <= 7
    assert generation["num_tokens"] >= 6 * generation["num_cut_off"]
    assert measured["harmful_eval_sha256"] == file_sha256(prompts_file)
    assert reports[-1].step == 7
    json.dumps(measured)
