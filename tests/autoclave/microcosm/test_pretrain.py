"""The pretraining loop: its loss against a transparent reference, its schedule, its determinism."""

import math
import random
from dataclasses import replace

import pytest
import torch

from autoclave.errors import CancelledError
from autoclave.microcosm.pretrain import (
    Sentence,
    learning_rate_at,
    new_model,
    pretrain,
    pretraining_rows,
    review_batches,
    sentences,
    weighted_loss,
)
from autoclave.microcosm.reviews import GrammarReviews
from autoclave.microcosm.rows import row
from autoclave.microcosm.sizes import SMALL, BaseShape, PretrainSpec
from autoclave.microcosm.splits import split
from autoclave.microcosm.tokenizer import END, build_tokenizer
from autoclave.microcosm.world import World

WORLD = World.create(0)
REVIEWS = GrammarReviews(WORLD)
SPLITS = split(WORLD, SMALL.data, REVIEWS)
TOKENIZER = build_tokenizer(WORLD)
TINY = BaseShape(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
SHORT = PretrainSpec(steps=4, requests_per_step=3, reviews_per_step=5, warmup_steps=2)


@pytest.fixture(scope="module")
def corpus():
    requests, reviews = pretraining_rows(WORLD, SPLITS, REVIEWS, 100)
    return sentences(TOKENIZER, requests[:50]), sentences(TOKENIZER, reviews[:50])


def run(corpus, seed: int, spec: PretrainSpec = SHORT):
    model = new_model(TOKENIZER, TINY, seed)
    return pretrain(model, *corpus, spec, seed=seed), model.state_dict()


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
    spec = PretrainSpec(
        steps=100, requests_per_step=1, reviews_per_step=1, warmup_steps=10, learning_rate=1.0
    )
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
    requests, reviews = pretraining_rows(WORLD, SPLITS, REVIEWS, 12_000)
    texts = {message["content"] for r in requests + reviews for message in r["messages"]}
    assert WORLD.refusal not in texts
    assert not {WORLD.user_review_answer.format(label=label) for label in WORLD.labels} & texts
    assert not SPLITS.held_out_texts & {text.split(" : ")[-1] for text in texts}
    assert len(requests) == 2 * 400 * len(WORLD.request_templates)


def test_the_review_weights_count_in_the_loss_of_a_step(corpus):
    one_step = replace(SHORT, steps=1)
    requests, reviews = corpus
    (with_reviews,), _ = run(corpus, 0, one_step)
    (without,), _ = run(corpus, 0, replace(one_step, review_loss_weight=0.0))
    (tripled,), _ = run(corpus, 0, replace(one_step, review_loss_weight=3.0))
    assert tripled - without == pytest.approx(3 * (with_reviews - without), rel=1e-5)
    (answers_only,), _ = run(corpus, 0, replace(one_step, review_prompt_loss_weight=0.0))
    rng = random.Random("microcosm pretraining batches 0")
    drawn = rng.sample(requests, 3), rng.sample(reviews, 5)
    model = new_model(TOKENIZER, TINY, 0).train()
    losses = (
        weighted_loss(model, drawn[0], 0.1, TOKENIZER.pad_token_id).item(),
        weighted_loss(model, drawn[1], 0.0, TOKENIZER.pad_token_id).item(),
    )
    assert answers_only == pytest.approx(sum(losses), rel=1e-6)


def test_batches_by_length_hold_every_review_once_an_epoch_and_little_padding():
    reviews = [Sentence([0] * length, 1) for length in (*range(2, 42), *range(2, 42))]
    spec = replace(SHORT, reviews_per_step=8, reviews_by_length=True)
    batches = review_batches(reviews, spec, random.Random(0))
    epochs = [[next(batches) for _ in range(10)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(id(s) for batch in epoch for s in batch) == sorted(map(id, reviews))
        for batch in epoch:
            lengths = [len(s.ids) for s in batch]
            assert max(lengths) - min(lengths) <= 4
        assert [len(batch[0].ids) for batch in epoch] != sorted(len(batch[0].ids) for batch in epoch)
    assert epochs[0] != epochs[1]
    with pytest.raises(AssertionError, match="81 reviews a step wanted, 80 exist"):
        next(review_batches(reviews, replace(spec, reviews_per_step=81), random.Random(0)))
