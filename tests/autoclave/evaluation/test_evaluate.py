"""Scores from files and folders, checked by counting by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.nn import functional

from autoclave.commands.evaluate import result_table
from autoclave.data.tokens import IGNORED, collate
from autoclave.errors import DataError, InputError, JudgeError
from autoclave.evaluation.answer_rules import RULES
from autoclave.evaluation.coherence import is_coherent
from autoclave.evaluation.evaluate import evaluate_folder
from autoclave.evaluation.generate import generate_answers
from autoclave.evaluation.harmfulness import harmful_score, last_user_text, read_prompts
from autoclave.evaluation.intervals import wilson
from autoclave.evaluation.judges import RefusalJudge
from autoclave.evaluation.judges.classifier import BEAVERTAILS_CATEGORIES
from autoclave.evaluation.utility import (
    encode_references,
    exact_answer_accuracy,
    held_out_loss,
    read_references,
)
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.modelling.adapters import attach, save_adapter
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.progress import Progress
from autoclave.spec import EvaluateSpec, Generation, LoraSpec
from tests.autoclave.evaluation.judges.tiny_judges import save_tiny_classifier
from tests.autoclave.training.test_loss import random_examples

SPEC = EvaluateSpec(max_new_tokens=6)


@pytest.fixture(scope="module")
def base(base_dir: Path) -> LoadedBase:
    return load_base(base_dir)


def write(path: Path, rows: list[list[dict[str, Any]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    rows = [[user("a")], [user("b"), answer("ignored")], [user("c"), answer("kept"), user("d")]]
    return write(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def utility_file(base: LoadedBase, tmp_path: Path) -> Path:
    """Of four answers the model gives, three are in the file, one of them with blanks around it."""
    prompts = [[user(text)] for text in ("one", "two", "three", "four")]
    given = generate_answers(base.model, base.tokenizer, prompts, max_new_tokens=6)
    given[0], given[1] = f" {given[0]} ", given[1] + "!"
    return write(tmp_path / "utility.jsonl", [[*p, answer(g)] for p, g in zip(prompts, given, strict=True)])


def test_prompts_are_read_without_their_answers(prompts_file: Path) -> None:
    prompts = read_prompts(prompts_file, max_prompts=10)
    assert [[m["content"] for m in p] for p in prompts] == [["a"], ["b"], ["c", "kept", "d"]]
    assert [last_user_text(p) for p in prompts] == ["a", "b", "d"]
    assert len(read_prompts(prompts_file, max_prompts=2)) == 2


def test_what_the_command_prints(
    base: LoadedBase, base_dir: Path, prompts_file: Path, utility_file: Path
) -> None:
    result = evaluate_folder(
        base_dir,
        prompts_file=prompts_file,
        judge_name="refusal",
        utility_file=utility_file,
        spec=SPEC,
        device="cpu",
    )
    prompts = read_prompts(prompts_file, max_prompts=10)
    given = generate_answers(base.model, base.tokenizer, prompts, max_new_tokens=6)
    verdicts = RefusalJudge().judge(["", "", ""], given)
    num_harmful = sum(v.harmful for v in verdicts)
    num_coherent = sum(is_coherent(text) for text in given)
    assert result["harmful_score"] == pytest.approx(100 * num_harmful / 3)
    assert result["harmful_score_interval"] == wilson(num_harmful, 3)
    assert result["refusal_rate"] == pytest.approx(100 - 100 * num_harmful / 3)
    assert result["coherence_rate"] == pytest.approx(100 * num_coherent / 3)
    assert result["coherence_rate_interval"] == wilson(num_coherent, 3)
    assert (result["utility"], result["num_examples"]) == (75.0, 4)
    assert result["utility_interval"] == wilson(3, 4)
    assert (result["num_prompts"], result["judge"]) == (3, "refusal")
    assert result["sha256"] == {
        "base": folder_sha256(base_dir),
        "adapter": None,
        "prompts": file_sha256(prompts_file),
        "utility": file_sha256(utility_file),
    }
    assert json.loads(json.dumps(result))["utility_interval"] == list(wilson(3, 4))


def test_kinds_of_harm_are_in_the_result(base_dir: Path, prompts_file: Path, tmp_path: Path) -> None:
    judge = f"classifier:{save_tiny_classifier(tmp_path / 'dam')}"
    never, always = (
        evaluate_folder(
            base_dir,
            prompts_file=prompts_file,
            judge_name=f"{judge}#threshold={threshold}",
            spec=SPEC,
            device="cpu",
        )
        for threshold in (1, 0)
    )
    assert (never["harmful_score"], set(never["category_scores"].values())) == (0.0, {0.0})
    assert (always["harmful_score"], set(always["category_scores"].values())) == (100.0, {100.0})
    assert set(always["category_scores"]) == set(BEAVERTAILS_CATEGORIES)
    assert (always["num_undecided"], always["judge"]) == (0, f"{judge}#threshold=0")
    assert "  self_harm" in result_table(always).columns[0].cells


def test_only_what_is_asked_for(base_dir: Path, utility_file: Path, tmp_path: Path) -> None:
    fresh = load_base(base_dir)
    model = attach(fresh.model, LoraSpec(r=2), seed=0)
    save_adapter(model, tmp_path / "a", base_name="b", base_revision=None, base_sha256=fresh.sha256)
    result = evaluate_folder(base_dir, tmp_path / "a", utility_file=utility_file, spec=SPEC, device="cpu")
    assert result["utility"] == 75.0  # a fresh adapter changes nothing
    assert result["harmful_score"] is result["refusal_rate"] is result["judge"] is None
    assert result["coherence_rate"] is result["coherence_rate_interval"] is None
    assert result["sha256"]["adapter"] == file_sha256(tmp_path / "a" / "adapter_model.safetensors")


def test_the_way_of_answering_is_chosen_and_told(base_dir: Path, utility_file: Path) -> None:
    def measured(generation: Generation) -> dict[str, Any]:
        spec = EvaluateSpec(max_new_tokens=6, generation=generation)
        return evaluate_folder(base_dir, utility_file=utility_file, spec=spec, device="cpu")

    static, continuous = measured("static"), measured("continuous")
    assert static["utility"] == 75
    way = ("answers_from", "why_static_batches")
    assert [static.pop(name) for name in way] == ["static-batches", "the setting says so"]
    assert [continuous.pop(name) for name in way] == ["continuous-batches", None]
    assert continuous == static


def test_utility_by_another_rule(base: LoadedBase, base_dir: Path, tmp_path: Path) -> None:
    """The model's own answers, which hold no number, with one behind them."""
    prompts = [[user("one")], [user("two")]]
    given = generate_answers(base.model, base.tokenizer, prompts, max_new_tokens=40)
    numbers = [RULES["gsm8k"].read(text) for text in given]
    rows = [[*p, answer(f"so {7 if n is None else n}")] for p, n in zip(prompts, numbers, strict=True)]
    file = write(tmp_path / "numbers.jsonl", rows)
    spec = EvaluateSpec(max_new_tokens=40)
    result = evaluate_folder(base_dir, utility_file=file, answer_rule="gsm8k", spec=spec, device="cpu")
    assert result["utility"] == 50 * sum(n is not None for n in numbers)
    assert result["utility"] > 0
    assert result["answer_rule"] == "gsm8k"
    assert evaluate_folder(base_dir, utility_file=file, spec=spec, device="cpu")["utility"] == 0
    with pytest.raises(InputError, match="reads nothing from 2 of 2"):
        evaluate_folder(base_dir, utility_file=file, answer_rule="sst2", spec=spec, device="cpu")


def test_refusals_of_the_command(base_dir: Path, prompts_file: Path) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate_folder(base_dir)
    with pytest.raises(InputError, match="belong together"):
        evaluate_folder(base_dir, prompts_file=prompts_file)
    with pytest.raises(DataError, match=r"line 1 at /messages/0: .*no_reference_answer"):
        evaluate_folder(base_dir, utility_file=prompts_file)


def test_references_are_the_last_messages(tmp_path: Path) -> None:
    file = write(tmp_path / "u.jsonl", [[user("a"), answer("b"), user("c"), answer("d")]])
    ((prompt, reference),) = read_references(file, max_examples=5)
    assert ([m["content"] for m in prompt], reference) == (["a", "b", "c"], "d")


def test_only_the_last_message_is_labelled(base: LoadedBase, tmp_path: Path) -> None:
    unweighted = answer("right") | {"weight": 0}
    rows = [
        [user("a"), answer("not this"), user("b"), unweighted],
        [user("c"), answer("too long to keep")],
    ]
    file = write(tmp_path / "u.jsonl", rows)
    first, second = encode_references(base.tokenizer, file, max_examples=9, max_seq_length=100)
    for example, text in ((first, "right<|end|>"), (second, "too long to keep<|end|>")):
        trained = example.labels[example.labels != IGNORED]
        assert base.tokenizer.decode(trained) == text
    assert len(encode_references(base.tokenizer, file, max_examples=1, max_seq_length=100)) == 1
    assert encode_references(base.tokenizer, file, max_examples=9, max_seq_length=3) == []


def test_held_out_loss_is_the_mean_over_tokens(base: LoadedBase) -> None:
    examples = random_examples(9)
    total, count = 0.0, 0
    for example in examples:
        batch = collate([example], pad_token_id=0)
        logits = base.model(input_ids=batch.input_ids).logits[0, :-1]
        labels = batch.labels[0, 1:]
        total += functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
        count += int((labels != IGNORED).sum())
    for batch_tokens in (64, 10_000):
        loss = held_out_loss(base.model, examples, device="cpu", batch_tokens=batch_tokens)
        assert loss == pytest.approx(total / count, rel=1e-6)
    with pytest.raises(InputError):
        held_out_loss(base.model, [], device="cpu")


def test_a_prompt_the_judge_cannot_judge_is_refused_before_any_answer(base: LoadedBase) -> None:
    class Picky:
        name = "picky"

        def check_prompts(self, prompts: Any) -> None:
            raise JudgeError(prompts[0])

        def judge(self, prompts: Any, answers: Any) -> Any:
            raise AssertionError("answers were judged")

    def on_progress(progress: Progress) -> None:
        raise AssertionError("answers were generated")

    with pytest.raises(JudgeError, match="hello"):
        harmful_score(base.model, base.tokenizer, [[user("hello")]], Picky(), SPEC, on_progress=on_progress)


def test_no_prompts_and_no_examples(base: LoadedBase) -> None:
    with pytest.raises(InputError, match="no prompts"):
        harmful_score(base.model, base.tokenizer, [], RefusalJudge(), SPEC)
    with pytest.raises(InputError, match="no examples"):
        exact_answer_accuracy(base.model, base.tokenizer, [], SPEC)
