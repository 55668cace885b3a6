"""AlpacaEval-style comparison: a judge says which of two answers is better, in both orders. Torch-free.

Every verdict is written to a journal when it comes, under a digest of what was asked and of whom. A run that
failed or was killed asks only what is not there; a score is made of all verdicts or not at all.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from autoclave.evaluation.tasks.chat_endpoint import ChatEndpoint
from autoclave.evaluation.tasks.pairwise_prompt import PROMPT_VERSION, comparison
from autoclave.evaluation.tasks.pairwise_score import Compared, win_rate
from autoclave.evaluation.tasks.pairwise_verdict import read_verdict
from autoclave.progress import Progress, ProgressCallback


class Pair(NamedTuple):
    instruction: str
    answer: str
    reference: str


def compare(
    pairs: Sequence[Pair],
    endpoint: ChatEndpoint,
    journal: Path,
    *,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """`win_rate` of the pairs with the judge's name. An empty answer is shown as none. Raises JudgeError;
    what was judged until then is in the journal."""
    asked = [
        comparison(pair.instruction, _shown(first), _shown(second))
        for pair in pairs
        for first, second in ((pair.answer, pair.reference), (pair.reference, pair.answer))
    ]
    keys = [_key(endpoint, messages) for messages in asked]
    known = _read(journal)
    todo = [i for i in dict(zip(keys, range(len(keys)), strict=True)).values() if keys[i] not in known]
    done, writing = len(set(keys)) - len(todo), threading.Lock()
    _begin(journal)

    def judged(index: int) -> None:
        text = endpoint.ask(asked[index])
        with writing, journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": keys[index], "text": text}) + "\n")
            known[keys[index]] = text

    with ThreadPoolExecutor(endpoint.spec.parallel) as pool:
        try:
            for future in as_completed([pool.submit(judged, index) for index in todo]):
                future.result()
                done += 1
                if on_progress:
                    on_progress(Progress("compare", done, len(set(keys))))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    verdicts = [read_verdict(known[key]) for key in keys]
    compared = [
        Compared(as_a, as_b, len(pair.answer), len(pair.reference))
        for pair, as_a, as_b in zip(pairs, verdicts[::2], verdicts[1::2], strict=True)
    ]
    return {
        **win_rate(compared),
        "judge_model": endpoint.spec.model,
        "prompt_version": PROMPT_VERSION,
    }


def instruction_of(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The text of a single message, else all of them with their roles."""
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _shown(answer: str) -> str:
    return answer if answer.strip() else "(no answer)"


def _key(endpoint: ChatEndpoint, messages: Sequence[dict[str, str]]) -> str:
    asked = json.dumps([endpoint.spec.url, endpoint.spec.model, endpoint.spec.max_tokens, list(messages)])
    return hashlib.sha256(asked.encode()).hexdigest()


def _begin(journal: Path) -> None:
    """A line that a kill cut off ends here, so that the next one begins a line of its own."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    if journal.is_file() and not journal.read_bytes().endswith(b"\n"):
        with journal.open("ab") as file:
            file.write(b"\n")


def _read(journal: Path) -> dict[str, str]:
    """A line that a kill cut off is left out, and asked again."""
    known: dict[str, str] = {}
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["text"]
            except (ValueError, KeyError, TypeError):
                continue
    return known
