"""The microcosm's tokenizer: one token per world word, bytes for everything else.

A byte-level BPE without merges: a piece of text that is a world word, with or without the space
before it, is one token; any other piece falls apart into its UTF-8 bytes. Nothing is normalised
and nothing is unknown, so every text comes back exactly, and real text costs one token per byte.
The vocabulary is not learned from data.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
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


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of a world; a function of its word list alone.

    Vocabulary order: pad, end, roles, the 256 bytes, the words bare, the words after a space.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    space = byte_level.pre_tokenize_str(" ")[0][0]
    specials = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    words = world.words()
    # Every character of the byte alphabet stands for one byte; one-letter words are among them already.
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [word for word in words if len(word) > 1]
    pieces += [space + word for word in words]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    assert len(vocabulary) == len(pieces), "a word of the world collides with another token"

    # ignore_merges: a whole piece found in the vocabulary is taken as it is, before any merging.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
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
