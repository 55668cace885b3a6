"""Continuous batches are used where they give the answers of static ones, and where they are of use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoclave.evaluation.generate import generate_ids
from autoclave.generation import trial
from autoclave.generation.continuous_batches import ContinuousBatches
from autoclave.generation.static_batches import StaticBatches
from autoclave.generation.trial import Generators, differing
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.spec import Generation
from tests.autoclave.generation.test_continuous_batches import adapted
from tests.autoclave.tiny import save_tiny_base
from tests.autoclave.tiny_architectures import tiny_model

PROMPTS: list[Any] = [[{"role": "user", "content": "tell me " + "more " * i}] for i in range(3)]
IDS = [[7, 9, 30], [60, 61, 62, 63, 64, 65, 66, 67, 68], [100, 200]]
STOP = frozenset({1})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(save_tiny_base(tmp_path_factory.mktemp("base")))


def generators(base: LoadedBase, generation: Generation, **changes: Any) -> Generators:
    settings: dict[str, Any] = {"trial_prompts": PROMPTS, "max_new_tokens": 4, "generation": generation}
    return Generators(base.tokenizer, **settings | changes)


def test_on_a_cpu_they_are_used_if_they_are_asked_for(base: LoadedBase) -> None:
    by_default, asked = generators(base, "auto"), generators(base, "continuous")
    assert by_default.name is None
    static, continuous = by_default.of(base.model), asked.of(base.model)
    assert isinstance(static, StaticBatches)
    assert by_default.reason == "continuous batches are for CUDA"
    assert isinstance(continuous, ContinuousBatches)
    assert (asked.name, asked.reason) == ("continuous-batches", None)
    assert continuous.answer(PROMPTS, max_new_tokens=4) == static.answer(PROMPTS, max_new_tokens=4)
    assert generators(base, "static").of(base.model).name == "static-batches"


def test_the_way_is_chosen_with_the_first_model_for_all_that_are_compared_with_it(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def fails_at_first(model: Any, *arguments: Any, **named: Any) -> str | None:
        tried.append(model)
        return "3 of 3 other answers" if len(tried) == 1 else None

    monkeypatch.setattr(trial, "differing", fails_at_first)
    chosen = generators(base, "continuous")
    other = tiny_model("llama", seed=1)
    assert [chosen.of(model).name for model in (base.model, other)] == ["static-batches"] * 2
    assert tried == [base.model]
    assert chosen.reason == "3 of 3 other answers"
    assert chosen.kept_by(lambda generator, model: generator).of(other).name == "static-batches"
    assert generators(base, "continuous").of(other).name == "continuous-batches"


def test_what_raises_is_not_used(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for a cache")

    monkeypatch.setattr(trial, "continuous_ids", broken)
    chosen = generators(base, "continuous")
    assert chosen.of(base.model).name == "static-batches"
    assert chosen.reason == "continuous batches failed their trial (MemoryError)"
    nothing = generators(base, "continuous", trial_prompts=[])
    assert nothing.of(base.model).name == "static-batches"
    assert nothing.reason == "there is no prompt to try continuous batches on"


def test_attention_with_a_soft_cap_is_found_out_and_not_even_tried(base: LoadedBase) -> None:
    """Not even tried, because caps as high as those of real models seldom change a token of a few prompts."""
    model = tiny_model("gemma2")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(6, 262, (n,), generator=generator).tolist() for n in (3, 9, 5, 14, 20, 7)]
    found = differing(model, rows, stop_ids=STOP, max_new_tokens=12)
    assert found is not None
    assert "other answers" in found
    chosen = generators(base, "continuous")
    assert chosen.of(model).name == "static-batches"
    assert chosen.reason == "the paged form of plain attention leaves out soft caps"


def test_in_float32_every_token_must_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert differing(model, IDS, stop_ids=STOP, max_new_tokens=4) is None

    def last_token_changed(*_: Any, **__: Any) -> list[list[int]]:
        answers = generate_ids(model, IDS, stop_ids=STOP, max_new_tokens=4)
        return [*answers[:-1], [*answers[-1][:-1], (answers[-1][-1] + 1) % 262]]

    monkeypatch.setattr(trial, "continuous_ids", last_token_changed)
    found = differing(model, IDS, stop_ids=STOP, max_new_tokens=4)
    assert found == "continuous batches gave 1 of 3 other answers"


def best_two(model: Any, prompt: list[int]) -> tuple[int, int]:
    with torch.inference_mode():
        first, second = model(input_ids=torch.tensor([prompt])).logits[0, -1].topk(2).indices.tolist()
    return first, second


@pytest.mark.parametrize("is_tie", [True, False])
def test_in_half_precision_answers_may_part_at_a_tie_alone(
    is_tie: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    prompt = IDS[1]
    first, second = best_two(model, prompt)
    if is_tie:
        model.get_output_embeddings().weight.data[second] = model.get_output_embeddings().weight.data[first]
    static = generate_ids(model, [prompt], stop_ids=STOP, max_new_tokens=2)
    other = first if static[0][0] == second else second
    parted = [[other, *static[0][1:]]]
    monkeypatch.setattr(trial, "continuous_ids", lambda *_, **__: parted)
    found = differing(model, [prompt], stop_ids=STOP, max_new_tokens=2)
    assert (found is None) == is_tie
    # An answer that ended parts too: the token that ended it is not as good as the one that was said.
    monkeypatch.setattr(trial, "continuous_ids", lambda *_, **__: [[]])
    assert differing(model, [prompt], stop_ids=STOP, max_new_tokens=2) is not None
    ended = differing(model, [prompt], stop_ids=frozenset({other}), max_new_tokens=2)
    assert (ended is None) == is_tie


def test_in_half_precision_the_real_thing_passes_with_an_adapter_on() -> None:
    model = adapted(tiny_model("llama").to(torch.bfloat16))
    assert differing(model, IDS, stop_ids=STOP, max_new_tokens=8) is None


def test_it_is_tried_on_the_base_without_its_adapter(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def answers(model: Any, *_: Any, **__: Any) -> None:
        seen.append(generate_ids(model, IDS, stop_ids=STOP, max_new_tokens=4))

    model = tiny_model("llama")
    bare = generate_ids(model, IDS, stop_ids=STOP, max_new_tokens=4)
    worn = adapted(model)
    assert generate_ids(worn, IDS, stop_ids=STOP, max_new_tokens=4) != bare
    monkeypatch.setattr(trial, "differing", answers)
    assert generators(base, "continuous").of(worn).name == "continuous-batches"
    assert seen == [bare]
    assert generate_ids(worn, IDS, stop_ids=STOP, max_new_tokens=4) != bare, "it is on again"
