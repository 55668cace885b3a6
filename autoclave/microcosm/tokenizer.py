"""The microcosm's tokenizer: one token per world word, bytes for everything else.

A byte-level BPE without merges: a piece of text that is a world word, with or without the space
before it, is one token; any other piece falls apart into its UTF-8 bytes. Nothing is normalised
and nothing is unknown, so every text comes back exactly, and real text costs one token per byte.
That vocabulary is not learned from data. Where the task is SST-2, the pieces and merges of a byte-level BPE
learned from its text are added, or a sentence would be a hundred bytes long.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from autoclave.microcosm.world import World

END = "<|end|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
MAX_LENGTH_TOKENS = 2048

# A message is <|role|>text<|end|>. Tools and tool calls are written as JSON: real uploads may carry
# them, the microcosm's own data never does.
CHAT_TEMPLATE = (
    "{%- if tools %}{{ '<|system|>' + tools | tojson + '<|end|>' }}{% endif %}"
    "{%- for message in messages %}"
    "{{- '<|' + ('system' if message['role'] == 'developer' else message['role']) + '|>' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}{% endif %}"
    "{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{{- '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(
    world: World, texts: Sequence[str] = (), vocabulary_size: int = 0
) -> PreTrainedTokenizerFast:
    """The tokenizer of a world; a function of its word list and of the texts alone.

    Vocabulary order: pad, end, roles, the 256 bytes, the pieces learned from the texts (bytes and pieces
    are `vocabulary_size` at most), the words bare, the words after a space.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    space = byte_level.pre_tokenize_str(" ")[0][0]
    specials = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    words = world.words()
    # Every character of the byte alphabet stands for one byte; one-letter words are among them already.
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    learned, merges = _learn_merges(texts, vocabulary_size)
    known = {*pieces, *learned}
    pieces += learned
    pieces += [word for word in words if word not in known]
    pieces += [space + word for word in words if space + word not in known]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    assert len(vocabulary) == len(pieces), "a word of the world collides with another token"

    # ignore_merges: a whole piece found in the vocabulary is taken as it is, before any merging.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _learn_merges(texts: Sequence[str], vocabulary_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The pieces that a byte-level BPE learns from the texts beyond the bytes, and its merges, in order."""
    if not texts:
        return [], []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=vocabulary_size, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(backend.to_str())["model"]
    learned = [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if len(piece) > 1]
    return learned, [(left, right) for left, right in model["merges"]]
