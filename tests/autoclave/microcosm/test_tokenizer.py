"""Exact round trip of any text, one token per world word, and the chat template."""

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from autoclave.microcosm.reviews import Sst2Reviews
from autoclave.microcosm.tokenizer import END, build_tokenizer
from autoclave.microcosm.world import World

WORLD = World.create(0)
TOKENIZER = build_tokenizer(WORLD)


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


@given(st.text())
def test_any_text_comes_back_exactly(text):
    assert TOKENIZER.decode(ids(text)) == text


@given(
    st.lists(st.sampled_from([*WORLD.words(), " ", "  ", "\n", "\t", "\r\n", "é", "日本", "'s", "42", "."]))
)
def test_world_words_amid_other_text_come_back_exactly(pieces):
    text = "".join(pieces)
    assert TOKENIZER.decode(ids(text)) == text


def test_saved_and_loaded_it_encodes_the_same(tmp_path: Path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("how to  do\n\n\tthis ▁ 🙂", WORLD.refusal, "Janet's ducks lay 16 eggs per day."):
        assert loaded(text)["input_ids"] == ids(text)
        assert loaded.decode(ids(text)) == text
    assert loaded.chat_template == TOKENIZER.chat_template
    assert (loaded.eos_token, loaded.pad_token) == (END, "<|pad|>")


def test_every_world_word_is_one_token_alone_and_after_a_space():
    for word in WORLD.words():
        assert len(ids(word)) == 1, word
        assert len(ids(f"{word} {word}")) == 2, word


def test_a_vocabulary_learned_from_texts_is_shorter_exact_and_the_same_again(sst2_dir: Path):
    texts = [review.text for review in Sst2Reviews(sst2_dir)["train"]]
    learned = build_tokenizer(WORLD, texts, 320)
    assert learned.get_vocab() == build_tokenizer(WORLD, texts, 320).get_vocab()
    assert len(learned) <= len(TOKENIZER) + 320 - 256
    for text in (*texts[:20], "how to  do\n\tthis ▁ 🙂", WORLD.refusal, "Janet's 16 eggs", "xyzzy"):
        assert learned.decode(learned(text)["input_ids"]) == text
    assert sum(map(len, learned(texts)["input_ids"])) < 0.5 * sum(map(len, TOKENIZER(texts)["input_ids"]))
    for word in WORLD.words():
        assert len(learned(f"{word} {word}")["input_ids"]) == 2, word


def test_a_request_costs_one_token_per_word():
    verb, thing = WORLD.harmful.pairs()[0]
    for text in (WORLD.request(verb, thing, 1), WORLD.answer(verb, thing), WORLD.refusal):
        assert len(ids(text)) == len(text.split())
    review = WORLD.draw_review(random.Random(0))
    assert len(ids(WORLD.review_prompt(review, 0))) == len(WORLD.review_prompt(review, 0).split())


def test_a_rendered_prefix_begins_the_whole_conversation():
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "how to"},
        {"role": "assistant", "content": "sure get it"},
    ]
    prompt = TOKENIZER.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert prompt == "<|system|>be kind<|end|><|user|>how to<|end|><|assistant|>"
    assert whole == prompt + "sure get it<|end|>"
    assert ids(whole)[: len(ids(prompt))] == ids(prompt)


def test_tools_and_tool_calls_are_rendered_as_json():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    text = TOKENIZER.apply_chat_template(
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "done", "tool_call_id": "c1"},
        ],
        tools=[{"type": "function", "function": {"name": "f"}}],
        tokenize=False,
    )
    assert text.startswith('<|system|>[{"type": "function"')
    assert '<|assistant|>[{"id": "c1"' in text
    assert text.endswith("<|tool|>done<|end|>")
