"""A model behind an OpenAI-compatible endpoint (vLLM, for one) as a generator: one greedy request per prompt.

`http://host:8000/v1/completions#model=NAME` sends the prompt as token ids, rendered here with the base's own
template: exactly the tokens that the model in this process would see. `.../v1/chat/completions` sends the
messages, and the server's template decides. Several requests run at once; the server does the batching.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import parse_qsl

from autoclave.data.templates import prompt_text
from autoclave.errors import EndpointError
from autoclave.generation.answers import Answer, OnAnswer, Prompt
from autoclave.json_post import JsonPost, Wording, checked_url, host_of, key_of
from autoclave.progress import ProgressCallback, counted

OPTIONS = ("model", "key_env", "timeout_seconds", "max_attempts", "concurrency")
_CHAT, _COMPLETIONS = "/chat/completions", "/completions"
_SEED = 0
_WORDING = Wording(
    EndpointError,
    "endpoint",
    hints={
        400: " Does it know the model and take prompts of this length?",
        404: " Are path and model right?",
    },
)


class EndpointGenerator:
    """One prompt without an answer is an EndpointError for all of them; use `KeptAnswers` to go on later."""

    def __init__(self, name: str, tokenizer: Any, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """`name` is a URL with options after a `#`, written as in a query string; `model` is required.
        Raises EndpointError for what cannot be used. `tokenizer` is that of the base."""
        url, _, written = name.partition("#")
        self.name = name
        options = _options(written)
        self._is_chat, host = _checked_url(url)
        model = options.get("model")
        if not model:
            raise EndpointError(f"{host}: name the model that it serves with #model=NAME.")
        self._model = model
        self._tokenizer = tokenizer
        self._concurrency = int(_number(options, "concurrency", 16, low=1, high=1024, whole=True))
        self._post = JsonPost(
            url,
            _WORDING,
            key=key_of(options.get("key_env"), _WORDING),
            timeout_seconds=_number(options, "timeout_seconds", 600.0, low=0.01, high=86_400.0),
            max_attempts=int(_number(options, "max_attempts", 6, low=1, high=100, whole=True)),
            sleep=sleep,
        )
        self._host = host

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Answer]:
        """Raises EndpointError as soon as one request has failed for good; others that run are waited for,
        none is begun."""
        requests = [self._request(prompt, max_new_tokens) for prompt in prompts]
        answers: dict[int, Answer] = {}
        report = counted("evaluate", len(prompts), on_progress)
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="generate") as pool:
            places: dict[Future[Answer], int] = {
                pool.submit(self._ask, request, max_new_tokens): place
                for place, request in enumerate(requests)
            }
            try:
                for future in as_completed(places):
                    place = places[future]
                    answers[place] = future.result()
                    if on_answer:
                        on_answer(place, answers[place])
                    report(len(answers))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [answers[place] for place in range(len(prompts))]

    def _request(self, prompt: Prompt, max_new_tokens: int) -> dict[str, Any]:
        values: dict[str, Any] = {"model": self._model, "temperature": 0.0, "n": 1, "seed": _SEED}
        values["max_tokens"] = max_new_tokens
        if self._is_chat:
            return values | {"messages": prompt}
        text = prompt_text(self._tokenizer, prompt)
        return values | {"prompt": self._tokenizer(text, add_special_tokens=False)["input_ids"]}

    def _ask(self, request: dict[str, Any], max_new_tokens: int) -> Answer:
        content = self._post.send(request)
        try:
            found = json.loads(content)
        except ValueError:
            raise EndpointError(
                f"the endpoint {self._host} answered with something that is no JSON."
            ) from None
        try:
            [choice] = found["choices"]
            text = choice["message"]["content"] if self._is_chat else choice["text"]
            reason = choice["finish_reason"]
            num_tokens = found["usage"]["completion_tokens"]
        except (KeyError, TypeError, ValueError, IndexError):
            raise EndpointError(
                f"the endpoint {self._host} gave no single choice with a text, a finish_reason and its usage."
            ) from None
        text = "" if text is None else text
        if not isinstance(text, str) or type(num_tokens) is not int or num_tokens < 0:
            raise EndpointError(f"the endpoint {self._host} answered with fields of the wrong type.")
        if reason not in ("stop", "length"):
            raise EndpointError(
                f"the endpoint {self._host} ended an answer with finish_reason {reason!r}: what the model "
                "would have said is not known. Nothing was scored."
            )
        cut_off = reason == "length"
        if cut_off and num_tokens < max_new_tokens:
            raise EndpointError(
                f"the endpoint {self._host} cut an answer after {num_tokens} of {max_new_tokens} tokens. "
                "Serve the model with a longer context."
            )
        # Servers count the token that ends an answer; ours do not.
        return Answer(text, num_tokens if cut_off else max(0, num_tokens - 1), cut_off)


def _options(written: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(written, strict_parsing=True) if written else []
    except ValueError:
        raise EndpointError(
            f'"#{written}" is no list of options; write #option=value&option=value.'
        ) from None
    options = dict(pairs)
    if len(options) < len(pairs):
        raise EndpointError(f'an option stands twice in "#{written}".')
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown is not None:
        raise EndpointError(f'unknown option "{unknown}" of an endpoint; known: {", ".join(OPTIONS)}.')
    return options


def _checked_url(url: str) -> tuple[bool, str]:
    """(whether it is of chats, host and port)"""
    parts = checked_url(url, _WORDING)
    if not parts.path.endswith(_COMPLETIONS):
        raise EndpointError(f'"{url}" must end in /v1/completions or /v1/chat/completions.')
    return parts.path.endswith(_CHAT), host_of(parts)


def _number(
    options: dict[str, str], name: str, default: float, *, low: float, high: float, whole: bool = False
) -> float:
    written = options.get(name)
    if written is None:
        return default
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise EndpointError(f"{name} must be {kind} from {low:g} to {high:g}, got {written!r}.")
    return value
