"""Batched greedy decoding against transformers' own, one prompt at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.evaluation.generate import end_of_sequence_ids, generate_answers, generate_ids
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.progress import Progress
from autoclave.spec import LoraSpec

LENGTHS = (1, 9, 3, 30, 14, 2, 9, 60, 5, 21, 17)
IDS = [[6 + (7 * n + 11 * i) % 250 for i in range(n)] for n in LENGTHS]
PROMPTS: list[Any] = [[{"role": "user", "content": "w" * n + str(n % 7)}] for n in LENGTHS]
STOP = frozenset({1, 40, 80, 120, 160, 200, 240})
NEW_TOKENS = 24


@pytest.fixture
def base(base_dir: Path) -> LoadedBase:
    return load_base(base_dir)


def one_by_one(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    answers = []
    for ids in prompts:
        input_ids = torch.tensor([ids])
        out = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            eos_token_id=sorted(STOP),
        )
        answer = out[0, len(ids) :].tolist()
        answers.append(answer[:-1] if answer[-1] in STOP else answer)
    return answers


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000], ids=["one", "some", "all-at-once"])
def test_equal_to_one_by_one(base: LoadedBase, batch_tokens: int) -> None:
    model = attach(base.model, LoraSpec(r=4), seed=1)
    generator = torch.Generator().manual_seed(5)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    expected = one_by_one(model, IDS)
    lengths = {len(answer) for answer in expected}
    assert len(lengths) > 2, "the test wants answers that stop at different times"
    assert NEW_TOKENS in lengths
    found = generate_ids(model, IDS, stop_ids=STOP, max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens)
    assert found == expected


def test_answers_are_the_decoded_ids_of_the_rendered_prompts(base: LoadedBase) -> None:
    texts = [f"<|user|>{prompt[0]['content']}<|end|><|assistant|>" for prompt in PROMPTS]
    ids = base.tokenizer(texts)["input_ids"]
    generated = generate_ids(base.model, ids, stop_ids=frozenset({1}), max_new_tokens=8)
    assert generate_answers(base.model, base.tokenizer, PROMPTS, max_new_tokens=8) == [
        base.tokenizer.decode(answer, skip_special_tokens=True) for answer in generated
    ]


def test_sampling_settings_of_the_base_are_ignored(base: LoadedBase) -> None:
    before = generate_answers(base.model, base.tokenizer, PROMPTS, max_new_tokens=8)
    base.model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert generate_answers(base.model, base.tokenizer, PROMPTS, max_new_tokens=8) == before


def test_stop_tokens_are_those_of_the_tokenizer_and_of_the_base(base: LoadedBase) -> None:
    assert end_of_sequence_ids(base.model, base.tokenizer) == {1}
    base.model.generation_config.eos_token_id = [7, 9]
    assert end_of_sequence_ids(attach(base.model, LoraSpec(), seed=0), base.tokenizer) == {1, 7, 9}


def test_progress_and_no_prompts(base: LoadedBase) -> None:
    seen: list[Progress] = []
    generate_answers(
        base.model, base.tokenizer, PROMPTS, max_new_tokens=2, batch_tokens=60, on_progress=seen.append
    )
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    assert (seen[-1].step, seen[-1].total_steps) == (len(PROMPTS), len(PROMPTS))
    assert generate_answers(base.model, base.tokenizer, [], max_new_tokens=2) == []
