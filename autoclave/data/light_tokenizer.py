"""A base's tokenizer and chat template without torch and transformers: what the API process can read.

Writes conversations exactly as transformers does with the same folder (a test compares both on the shipped
base), through the same `templates.render`. Needs the package tokenizers. A template is code of
the operator's base, not of a tenant; it still runs in jinja2's sandbox.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from autoclave.errors import ModelError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokens(NamedTuple):
    """`offsets` are characters [start, end) of the text, one pair per token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class _GenerationBlock(Extension):
    """`{% generation %}` marks answers in some templates; it writes nothing itself."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class LightTokenizer:
    """Raises ModelError, saying what is missing (no path: tenants may read it), for a folder without
    tokenizer.json or chat template, or if a package is not installed."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ModelError(f"the package {error.name} is not installed on this server.") from error
        folder = Path(folder)
        config = _json_file(folder / "tokenizer_config.json") if folder.is_dir() else None
        if not (folder / "tokenizer.json").is_file() or config is None:
            raise ModelError("the files of the base are not on this server, or have no tokenizer.json.")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare exceptions
            raise ModelError("the tokenizer.json of the base cannot be read.") from error
        # Lengths are measured whole; what a job cuts or pads is its own decision.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = {name: _token_text(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        self.chat_template = _chat_template(folder, config)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(self.chat_template)
        except TemplateError as error:
            raise ModelError(f"the chat template of the base cannot be compiled: {error}") from error

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Any = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """transformers' method of this name, for text."""
        assert not tokenize, "this tokenizer writes text; `encode` makes tokens"
        if not messages:  # transformers refuses it too
            raise ValueError("there is no message before the first answer, so nothing that it answers.")
        return self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special,
        )

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Special tokens come from the text only, as in `tokens.encode`."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [Tokens(encoding.ids, encoding.offsets) for encoding in encodings]


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    template: Any = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several by name, in older configurations
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if not isinstance(template, str) or not template:
        raise ModelError("the base has no chat template.")
    return template


def _json_file(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _token_text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Unlike jinja2's own filter, no escaping for HTML: models read the text.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
