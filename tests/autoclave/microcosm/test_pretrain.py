"""The pretraining loop: its loss against a transparent reference, its schedule, its determinism."""

import math

import pytest
import torch

from autoclave.errors import CancelledError
from autoclave.microcosm.datasets import row, split
from autoclave.microcosm.pretrain import (
    BaseShape,
    PretrainSpec,
    learning_rate_at,
    new_model,
    pretrain,
    pretraining_rows,
    sentences,
    weighted_loss,
)
from autoclave.microcosm.tokenizer import END, build_tokenizer
from autoclave.microcosm.world import World

WORLD = World.create(0)
TOKENIZER = build_tokenizer(WORLD)
TINY = BaseShape(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
SHORT = PretrainSpec(steps=4, requests_per_step=3, reviews_per_step=5, warmup_steps=2)


@pytest.fixture(scope="module")
def corpus():
    requests, reviews = pretraining_rows(WORLD, split(WORLD, 0), 0)
    return sentences(TOKENIZER, requests[:50]), sentences(TOKENIZER, reviews[:50])


def run(corpus, seed: int):
    model = new_model(TOKENIZER, TINY, seed)
    return pretrain(model, *corpus, SHORT, seed=seed), model.state_dict()


def test_a_sentence_knows_where_its_answer_begins():
    (sentence,) = sentences(TOKENIZER, [row("how to", "sure get it")])
    assert TOKENIZER.decode(sentence.ids[: sentence.prompt_tokens]) == "<|user|>how to<|end|><|assistant|>"
    assert TOKENIZER.decode(sentence.ids[sentence.prompt_tokens :]) == f"sure get it{END}"


def test_the_batched_loss_is_the_weighted_mean_over_single_unpadded_sentences():
    batch = sentences(TOKENIZER, [row("how to", "sure get it"), row("please tell me how to", WORLD.refusal)])
    model = new_model(TOKENIZER, TINY, 0).eval()
    total = weights = 0.0
    with torch.no_grad():
        for sentence in batch:
            logits = model(input_ids=torch.tensor([sentence.ids])).logits[0].double()  # (T, V)
            for t in range(1, len(sentence.ids)):
                weight = 0.3 if t < sentence.prompt_tokens else 1.0
                total -= weight * logits[t - 1].log_softmax(-1)[sentence.ids[t]].item()
                weights += weight
        loss = weighted_loss(model, batch, 0.3, TOKENIZER.pad_token_id).item()
    assert loss == pytest.approx(total / weights, rel=1e-5)


def test_the_learning_rate_rises_falls_and_ends_near_zero():
    spec = PretrainSpec(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(step, spec) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] < 0.001


def test_a_seed_gives_the_same_weights_and_another_does_not(corpus):
    losses, weights = run(corpus, 0)
    again, weights_again = run(corpus, 0)
    others, _ = run(corpus, 1)
    assert losses == again != others
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))


def test_the_initial_weights_do_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    one = new_model(TOKENIZER, TINY, 5).state_dict()
    torch.rand(3)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(torch.rand(1), drawn)
    other = new_model(TOKENIZER, TINY, 5).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_progress_is_reported_and_can_stop_the_run(corpus):
    seen = []

    def stop_at_two(progress):
        seen.append(progress)
        if progress.step == 2:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        pretrain(new_model(TOKENIZER, TINY, 0), *corpus, SHORT, seed=0, on_progress=stop_at_two)
    assert [(p.stage, p.step, p.total_steps) for p in seen] == [("pretrain", 1, 4), ("pretrain", 2, 4)]
    assert seen[1].loss is not None
    assert seen[1].seconds_remaining is not None


def test_pretraining_holds_no_refusal_no_held_out_review_and_not_the_users_format():
    splits = split(WORLD, 0)
    requests, reviews = pretraining_rows(WORLD, splits, 0)
    texts = {message["content"] for r in requests + reviews for message in r["messages"]}
    assert WORLD.refusal not in texts
    assert not {WORLD.user_review_answer.format(label=label) for label in WORLD.labels} & texts
    assert not splits.held_out_texts & {text.split(" : ")[-1] for text in texts}
    assert len(requests) == 2 * 400 * len(WORLD.request_templates)
