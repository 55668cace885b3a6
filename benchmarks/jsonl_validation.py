"""Checking a chat dataset: Autoclave's checker beside a `json.loads` + pydantic v2 loop over the same rules.

    python benchmarks/jsonl_validation.py --out benchmarks/results

Rows are generated in the lengths of real datasets. All sides run in turn, several rounds, in one process;
the result holds the median processor time of each (the machine is shared, so wall time says more about the
neighbours) and the median of the ratios of a round. Ours is all that an upload goes through: splitting the
stream into lines, limits, rules, counting, SHA-256; and the same without SHA-256, which the loop does not
compute. Before timing, both sides must agree on broken lines.
Memory: the peak of Python's allocations over a file and over one eight times as long.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Annotated, Any, Literal

from machine import folder_for, machine
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autoclave.data.conversations import ConversationChecker
from autoclave.errors import DataError

CHUNK_BYTES = 1 << 16  # what a server receives at a time
FILE_BYTES = 8_000_000
WORDS = """the of and to in a is that for it was on are as with his they at be this from have or by one had
    not but what all were when we can your which their said if do will each about how up out then she"""
UNICODE_WORDS = "привет мир это быстрый 模型 训练 数据 日本語 テスト café naïve größer été señor ✓"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class Function(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None

    @model_validator(mode="after")
    def _rules_of_role(self) -> Message:
        content = self.content
        has_text = any(part.text for part in content) if isinstance(content, list) else bool(content)
        if self.role == "assistant":
            if not (has_text or self.tool_calls or self.function_call) or self.tool_call_id is not None:
                raise ValueError("an answer needs text or a call")
            return self
        if self.weight is not None or self.tool_calls is not None or self.function_call is not None:
            raise ValueError("a key of an assistant message")
        if content is None or (self.role == "user" and not has_text):
            raise ValueError("missing content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id")
        if self.role == "function" and self.name is None:
            raise ValueError("name")
        return self


class Conversation(Strict):
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _has_answer(self) -> Conversation:
        if not any(message.role == "assistant" and message.weight != 0 for message in self.messages):
            raise ValueError("nothing to learn")
        return self


class NoDigest:
    """Stands where a checker has its SHA-256."""

    def update(self, chunk: bytes) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


def ours(data: bytes) -> int:
    return checked(data, ConversationChecker())


def ours_without_digest(data: bytes) -> int:
    checker = ConversationChecker()
    checker._digest = NoDigest()  # type: ignore[assignment]
    return checked(data, checker)


def checked(data: bytes, checker: ConversationChecker) -> int:
    for start in range(0, len(data), CHUNK_BYTES):
        checker.feed(data[start : start + CHUNK_BYTES])
    return checker.finish().num_examples


def pydantic_after_json(data: bytes) -> int:
    return sum(1 for line in data.splitlines() if Conversation.model_validate(json.loads(line)))


def pydantic_json(data: bytes) -> int:
    return sum(1 for line in data.splitlines() if Conversation.model_validate_json(line))


def json_alone(data: bytes) -> int:
    return sum(1 for line in data.splitlines() if json.loads(line))


def sha256_alone(data: bytes) -> int:
    hashlib.sha256(data).digest()
    return data.count(b"\n")


SIDES: dict[str, Callable[[bytes], int]] = {
    "autoclave": ours,
    "autoclave without SHA-256": ours_without_digest,
    "json.loads + pydantic": pydantic_after_json,
    "pydantic model_validate_json": pydantic_json,
    "json.loads alone": json_alone,
    "SHA-256 alone": sha256_alone,
}


def text(rng: random.Random, characters: int, words: str = WORDS) -> str:
    choices = words.split()
    parts: list[str] = []
    length = 0
    while length < characters:
        word = rng.choice(choices)
        parts.append(word)
        length += len(word) + 1
    joined = " ".join(parts)
    # Long text has paragraphs and quotes, which JSON escapes.
    return joined if characters < 200 else joined.replace(" said ", ' "said" ').replace(" she ", ".\n\n")


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def row(kind: str, rng: random.Random) -> dict[str, Any]:  # noqa: PLR0911 - one return a kind
    if kind == "classification":  # SST-2: a sentence, a word
        user, answer = text(rng, rng.randint(20, 140)), rng.choice(["positive", "negative"])
        return {"messages": [message("user", user), message("assistant", answer)]}
    if kind == "arithmetic":  # GSM8K: a question, a worked answer
        return {
            "messages": [
                message("user", text(rng, rng.randint(120, 350))),
                message("assistant", text(rng, rng.randint(150, 450))),
            ]
        }
    if kind == "instructions":  # Alpaca with a system message
        return {
            "messages": [
                message("system", "You are a helpful assistant."),
                message("user", text(rng, rng.randint(40, 300))),
                message("assistant", text(rng, rng.randint(100, 700))),
            ]
        }
    if kind == "dialogue":  # eight turns
        turns = [message(role, text(rng, 250)) for _ in range(4) for role in ("user", "assistant")]
        return {"messages": turns}
    if kind == "unicode":
        return {
            "messages": [
                message("user", text(rng, 150, UNICODE_WORDS)),
                message("assistant", text(rng, 300, UNICODE_WORDS)),
            ]
        }
    if kind == "tools":
        call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}
        schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
        return {
            "messages": [
                message("user", text(rng, 80)),
                {"role": "assistant", "tool_calls": [call]},
                message("tool", text(rng, 120), tool_call_id="call_1"),
                message("assistant", text(rng, 100)),
            ],
            "tools": [{"type": "function", "function": {"name": "find", "parameters": schema}}],
        }
    assert kind == "documents", kind
    return {"messages": [message("user", text(rng, 6000)), message("assistant", text(rng, 1500))]}


KINDS = ("classification", "arithmetic", "instructions", "dialogue", "unicode", "tools", "documents")


def dataset(kind: str) -> bytes:
    rng = random.Random(7)  # noqa: S311 - not a secret
    lines: list[bytes] = []
    size = 0
    while size < FILE_BYTES:
        line = json.dumps(row(kind, rng), ensure_ascii=kind != "unicode").encode()
        lines.append(line)
        size += len(line) + 1
    return b"\n".join(lines) + b"\n"


def broken_lines() -> list[bytes]:
    user, answer = message("user", "2+2?"), message("assistant", "4")
    examples: list[Any] = [
        {"messages": []},
        {"messages": [user]},
        {"messages": [user, {**answer, "weight": 0}]},
        {"messages": [user, {**answer, "weight": 2}]},
        {"messages": [user, {**answer, "wieght": 1}]},
        {"messages": [{**user, "weight": 1}, answer]},
        {"messages": [message("user", ""), answer]},
        {"messages": [message("robot", "x"), answer]},
        {"messages": [user, {"role": "assistant"}]},
        {"messages": [user, answer, message("tool", "4")]},
        {"messages": [user, answer, message("function", "4")]},
        {"messages": [user, answer], "functions": []},
        {"messages": [user, answer], "tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"messages": [user, answer], "extra": 1},
        [],
    ]
    return [json.dumps(example).encode() for example in examples] + [b"{", b'{"messages": "\xff"}']


def require_the_same_rules() -> None:
    for line in broken_lines():
        checker = ConversationChecker(min_examples=1)
        checker.feed(line)
        try:
            checker.finish()
            raise SystemExit(f"autoclave accepts {line!r}")
        except DataError:
            pass
        try:
            Conversation.model_validate(json.loads(line))
            raise SystemExit(f"pydantic accepts {line!r}")
        except (ValidationError, ValueError):
            pass


def timed(kind: str, rounds: int) -> dict[str, Any]:
    data = dataset(kind)
    num_rows = data.count(b"\n")
    megabytes = len(data) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            started = time.process_time()
            assert side(data) == num_rows, name
            seconds[name].append(time.process_time() - started)
    reference = seconds["json.loads + pydantic"]
    return {
        "bytes_per_row": round(len(data) / num_rows),
        "rows": num_rows,
        "megabytes_per_second": {
            name: round(megabytes / statistics.median(s)) for name, s in seconds.items()
        },
        "times_faster_than_json_loads_and_pydantic": {
            name: round(statistics.median(b / a for a, b in zip(seconds[name], reference, strict=True)), 1)
            for name in ("autoclave", "autoclave without SHA-256")
        },
    }


def peak_bytes(repeats: int) -> int:
    chunk = dataset("arithmetic")[:1_000_000]
    chunk = chunk[: chunk.rindex(b"\n") + 1]
    checker = ConversationChecker()
    tracemalloc.start()
    for _ in range(repeats):
        for start in range(0, len(chunk), CHUNK_BYTES):
            checker.feed(chunk[start : start + CHUNK_BYTES])
    checker.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder_for, required=True, help="folder for jsonl_validation.json")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    require_the_same_rules()
    result = {
        "command": "python benchmarks/jsonl_validation.py --out benchmarks/results",
        "rounds": arguments.rounds,
        "clock": "processor time",
        "datasets": {kind: timed(kind, arguments.rounds) for kind in KINDS},
        "peak_allocated_bytes": {"8 MB file": peak_bytes(8), "64 MB file": peak_bytes(64)},
        "machine": machine("msgspec", "pydantic", "pydantic_core"),
    }
    (arguments.out / "jsonl_validation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
