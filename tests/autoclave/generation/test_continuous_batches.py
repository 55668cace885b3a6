"""Continuous batches give the answers of a prompt alone, in the same order of events each time."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch

from autoclave.data.templates import prompt_text
from autoclave.errors import CancelledError, ModelError
from autoclave.evaluation.generate import end_of_sequence_ids, generate_ids
from autoclave.generation import continuous_batches, paged_attention
from autoclave.generation.answers import Answer
from autoclave.generation.continuous_batches import ContinuousBatches, continuous_ids
from autoclave.modelling.adapters import adapter_state, attach, detach
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.progress import Progress
from autoclave.spec import LoraSpec
from tests.autoclave.test_architectures import batch_of_one
from tests.autoclave.tiny import save_tiny_base
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, EAGER, tiny_model

# Some answers of each model end at one of these.
STOP = frozenset({1, 50, 60, 70, 80, 90})
LENGTHS = (3, 9, 5, 14, 20, 1, 11)
NEW_TOKENS = 8
PROMPTS: list[Any] = [[{"role": "user", "content": "tell me " + "more " * i}] for i in range(6)]


@cache
def ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(6, 262, (length,), generator=generator).tolist() for length in LENGTHS]


def adapted(model: Any) -> Any:
    peft_model = attach(model, LoraSpec(r=4, target_modules="all-linear"), seed=0)
    generator = torch.Generator().manual_seed(5)
    for tensor in adapter_state(peft_model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return peft_model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(save_tiny_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("architecture", [a for a in ALL_ARCHITECTURES if a not in EAGER])
def test_the_answers_are_those_of_a_prompt_alone(architecture: str) -> None:
    model = adapted(tiny_model(architecture))
    alone = batch_of_one(model, ids(), sorted(STOP))
    # Room for two or three at a time: the others wait, and begin when one has its answer.
    assert continuous_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS, batch_tokens=64) == alone
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gemma3", "opt"])
def test_so_are_those_with_each_prompt_against_its_own_keys(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, with the kernel's stand-in: full attention, sliding windows, both in one model."""
    monkeypatch.setattr(continuous_batches, "attention_for", lambda _: paged_attention.NAME)
    monkeypatch.setattr(continuous_batches, "_STEP_TOKENS", 16)  # prompts come in parts, too
    model = adapted(tiny_model(architecture))
    expected = generate_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS)
    found = continuous_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS, batch_tokens=96)
    assert found == expected
    assert model.config._attn_implementation == "sdpa"


def test_what_the_kernel_cannot_do_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous_batches, "attention_for", lambda _: paged_attention.NAME)
    with pytest.raises(NotImplementedError, match="softcap"):
        continuous_ids(tiny_model("gemma2"), ids(), stop_ids=STOP, max_new_tokens=2)


def test_it_can_be_done_with_everything_at_once_and_one_at_a_time() -> None:
    model = tiny_model("qwen2")
    expected = generate_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS, batch_tokens=1)
    assert len({len(answer) for answer in expected}) > 2, "else nothing ends early"
    for batch_tokens in (1, 4096):
        found = continuous_ids(
            model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens
        )
        assert found == expected
    assert continuous_ids(model, [], stop_ids=STOP, max_new_tokens=NEW_TOKENS) == []


def test_a_prompt_longer_than_a_step_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoclave.generation.continuous_batches._STEP_TOKENS", 8)
    model = tiny_model("qwen2")  # also with a sliding window
    expected = generate_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS)
    assert continuous_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS) == expected


def test_answers_come_as_they_are_made_and_say_whether_they_ended(base: LoadedBase) -> None:
    came: list[int] = []
    steps: list[tuple[str, int, int]] = []

    def on_progress(progress: Progress) -> None:
        steps.append((progress.stage, progress.step, progress.total_steps))

    generator = ContinuousBatches(base.model, base.tokenizer, batch_tokens=96)
    answers = generator.answer(
        PROMPTS, max_new_tokens=12, on_answer=lambda place, _: came.append(place), on_progress=on_progress
    )
    texts = [prompt_text(base.tokenizer, prompt) for prompt in PROMPTS]
    rows = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    stop_ids = end_of_sequence_ids(base.model, base.tokenizer)
    expected = generate_ids(base.model, rows, stop_ids=stop_ids, max_new_tokens=12)
    assert answers == [
        Answer(base.tokenizer.decode(row, skip_special_tokens=True), len(row), cut_off=len(row) == 12)
        for row in expected
    ]
    assert sorted(came) == list(range(len(PROMPTS)))
    assert came != sorted(came), "longest first"
    assert steps == [("evaluate", done, len(PROMPTS)) for done in range(1, len(PROMPTS) + 1)]
    again: list[int] = []
    generator.answer(PROMPTS, max_new_tokens=12, on_answer=lambda place, _: again.append(place))
    assert again == came, "the schedule does not depend on the moment"
    assert generator.answer([], max_new_tokens=12) == []


def test_an_answer_that_ends_with_its_last_token_is_not_cut_off(base: LoadedBase) -> None:
    rows = [ids()[0]]
    [long] = generate_ids(base.model, rows, stop_ids=frozenset(), max_new_tokens=5)
    first = next(i for i, token in enumerate(long) if token == long[4])
    stop = frozenset({long[4]})
    for most in (first + 1, first + 2):
        assert continuous_ids(base.model, rows, stop_ids=stop, max_new_tokens=most) == [long[:first]]


def test_the_adapter_is_hot_and_comes_off_again(base: LoadedBase) -> None:
    def found() -> list[list[int]]:
        return continuous_ids(base.model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS)

    bare = found()
    model = adapted(base.model)
    try:
        worn = continuous_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS)
        assert worn == generate_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS)
        assert worn != bare
        with model.disable_adapter():
            assert continuous_ids(model, ids(), stop_ids=STOP, max_new_tokens=NEW_TOKENS) == bare
    finally:
        detach(model)
    assert found() == bare


def test_a_stop_in_the_middle_ends_its_thread(base: LoadedBase) -> None:
    before = threading.active_count()

    def on_progress(_: Progress) -> None:
        raise CancelledError("enough")

    with pytest.raises(CancelledError):
        ContinuousBatches(base.model, base.tokenizer).answer(
            PROMPTS, max_new_tokens=64, on_progress=on_progress
        )
    assert threading.active_count() == before
    assert base.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("a kernel failed")])
def test_what_kills_its_thread_is_raised_and_there_are_no_answers(
    base: LoadedBase, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Any] = []
    steps = 0
    forward = base.model.model.forward

    def breaks(*arguments: Any, **named: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise error
        return forward(*arguments, **named)

    monkeypatch.setattr(base.model.model, "forward", breaks)
    with pytest.raises(type(error), match=str(error)):
        continuous_ids(
            base.model, ids(), stop_ids=frozenset(), max_new_tokens=8, on_ids=lambda *a: came.append(a)
        )
    assert came == []


def test_a_model_that_the_library_refuses_is_named(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be batched continuously"):
        continuous_ids(base.model, ids(), stop_ids=STOP, max_new_tokens=2)
