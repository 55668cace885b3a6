"""Answers from an endpoint: the same as in this process, or an error that says why, and never a part."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from autoclave.errors import EndpointError
from autoclave.evaluation.evaluate import evaluate_folder
from autoclave.evaluation.generate import generate_ids
from autoclave.generation.answers import Answer, num_cut_off
from autoclave.generation.endpoint import EndpointGenerator
from autoclave.generation.kept_answers import KeptAnswers
from autoclave.generation.static_batches import StaticBatches
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.progress import Progress
from autoclave.spec import EvaluateSpec
from tests.autoclave.generation.stub_endpoint import Reply, choice, serving

PROMPTS: list[Any] = [[{"role": "user", "content": "w" * n + str(n)}] for n in (1, 9, 3, 30, 14, 2, 21)]


@pytest.fixture(scope="module")
def base(base_dir: Path) -> LoadedBase:
    return load_base(base_dir)


@pytest.fixture
def model_server(base: LoadedBase) -> Any:
    """Greedy answers of the base to token ids."""
    lock = threading.Lock()

    def reply(path: str, body: dict[str, Any]) -> Reply:
        assert path == "/v1/completions"
        with lock:
            stop = frozenset({base.tokenizer.eos_token_id})
            most = body["max_tokens"]
            [ids] = generate_ids(base.model, [body["prompt"]], stop_ids=stop, max_new_tokens=most)
        ended = len(ids) < most
        text = base.tokenizer.decode(ids, skip_special_tokens=True)
        return choice(text, tokens=len(ids) + ended, reason="stop" if ended else "length")

    with serving(reply) as server:
        yield server


def test_the_same_answers_as_in_this_process(base: LoadedBase, model_server: Any) -> None:
    base.model.generation_config.eos_token_id = base.tokenizer.eos_token_id
    seen: list[Progress] = []
    remote = EndpointGenerator(f"{model_server.url}/completions#model=m&concurrency=3", base.tokenizer)
    answers = remote.answer(PROMPTS, max_new_tokens=12, on_progress=seen.append)
    assert answers == StaticBatches(base.model, base.tokenizer).answer(PROMPTS, max_new_tokens=12)
    assert {(b["model"], b["temperature"], b["n"]) for b in model_server.requests} == {("m", 0.0, 1)}
    assert 1 <= model_server.most_at_once <= 3
    assert [p.step for p in seen] == list(range(1, len(PROMPTS) + 1))
    assert all("authorization" not in headers for headers in model_server.headers)


def test_a_base_is_measured_through_an_endpoint(base_dir: Path, model_server: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"messages": prompt}) + "\n" for prompt in PROMPTS))
    options: dict[str, Any] = {"prompts_file": file, "judge_name": "refusal", "device": "cpu"}
    options["spec"] = EvaluateSpec(max_new_tokens=12)
    name = f"{model_server.url}/completions#model=m"
    here = evaluate_folder(base_dir, **options)
    there = evaluate_folder(base_dir, answers_from=name, **options)
    assert (here.pop("answers_from"), there.pop("answers_from")) == ("static-batches", name)
    assert here.pop("why_static_batches") == "continuous batches are for CUDA"
    assert there.pop("why_static_batches") is None
    assert (there.pop("device"), there.pop("dtype")) == (None, None)
    del here["device"], here["dtype"]
    assert there == here
    assert here["num_cut_off"] > 0


def test_chats_go_as_messages_and_a_key_from_the_environment(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWERS_KEY", "secret")
    with serving(lambda path, body: choice(path, tokens=4, chat=True)) as server:
        name = f"{server.url}/chat/completions#model=org/m&key_env=ANSWERS_KEY"
        [answer] = EndpointGenerator(name, base.tokenizer).answer(PROMPTS[:1], max_new_tokens=9)
        assert answer == Answer("/v1/chat/completions", 3, cut_off=False)
        assert server.requests == [
            {
                "model": "org/m",
                "messages": PROMPTS[0],
                "temperature": 0.0,
                "n": 1,
                "seed": 0,
                "max_tokens": 9,
            }
        ]
        assert server.headers[0]["authorization"] == "Bearer secret"
        assert "secret" not in name


def test_a_busy_server_is_asked_again(base: LoadedBase) -> None:
    left = [429, 503, 200]
    waits: list[float] = []
    with serving(
        lambda path, body: choice("x", tokens=2) if (status := left.pop(0)) == 200 else (status, {})
    ) as server:
        generator = EndpointGenerator(f"{server.url}/completions#model=m", base.tokenizer, sleep=waits.append)
        assert generator.answer(PROMPTS[:1], max_new_tokens=4) == [Answer("x", 1, False)]
    assert 0.3 < waits[0] < waits[1]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            (404, {"error": "the prompt"}),
            "status 404 after 1 attempt. Nothing was scored. Are path and model",
        ),
        ((500, {}), "status 500 after 2 attempts"),
        ((302, {}), "status 302"),
        ((200, b"no json"), "no JSON"),
        ((200, {"choices": []}), "no single choice"),
        ((200, [1]), "no single choice"),
        (choice("x", tokens=2, reason="content_filter"), "finish_reason 'content_filter'"),
        (choice("x", tokens=2, reason="length"), "cut an answer after 2 of 4 tokens"),
        ((200, {**choice("x", tokens=2)[1], "usage": {"completion_tokens": "2"}}), "wrong type"),
    ],
)
def test_what_is_no_answer_is_named(base: LoadedBase, reply: Reply, words: str) -> None:
    with serving(lambda path, body: reply) as server:
        name = f"{server.url}/completions#model=m&max_attempts=2"
        generator = EndpointGenerator(name, base.tokenizer, sleep=lambda _: None)
        with pytest.raises(EndpointError, match=words) as raised:
            generator.answer(PROMPTS, max_new_tokens=4)
    assert "the prompt" not in str(raised.value)


def test_a_server_that_hangs_or_is_not_there(base: LoadedBase) -> None:
    release = threading.Event()

    def hang(path: str, body: dict[str, Any]) -> Reply:
        release.wait(5)
        return 200, {}

    with serving(hang) as server:
        name = f"{server.url}/completions#model=m&max_attempts=1&timeout_seconds=0.1"
        with pytest.raises(EndpointError, match="no answer in time after 1 attempt"):
            EndpointGenerator(name, base.tokenizer).answer(PROMPTS[:1], max_new_tokens=4)
        release.set()
    with pytest.raises(EndpointError, match="no connection"):
        EndpointGenerator(name, base.tokenizer).answer(PROMPTS[:1], max_new_tokens=4)


def test_after_a_failure_in_the_middle_only_the_rest_is_asked(base: LoadedBase, tmp_path: Path) -> None:
    is_broken = [True]

    def reply(path: str, body: dict[str, Any]) -> Reply:
        if is_broken[0] and len(server.requests) > 4:
            return 400, {}
        return choice(f"{len(body['prompt'])} ids", tokens=3)

    with serving(reply) as server:
        name = f"{server.url}/completions#model=m&concurrency=1"
        kept = KeptAnswers(EndpointGenerator(name, base.tokenizer), tmp_path / "kept.jsonl", of={})
        with pytest.raises(EndpointError, match="status 400"):
            kept.answer(PROMPTS, max_new_tokens=5)
        is_broken[0] = False
        server.requests.clear()
        answers = kept.answer(PROMPTS, max_new_tokens=5)
        assert (kept.num_resumed, len(server.requests)) == (4, len(PROMPTS) - 4)
        server.requests.clear()
        assert answers == EndpointGenerator(name, base.tokenizer).answer(PROMPTS, max_new_tokens=5)
        assert num_cut_off(answers) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ftp://host/v1/completions#model=m", "no http or https URL"),
        ("http://host/v1/completions", "name the model"),
        ("http://host/v1#model=m", "must end in /v1/completions"),
        ("http://me:secret@host/v1/completions#model=m", "must not hold a user name"),
        ("http://host/v1/completions#model=m&model=n", "stands twice"),
        ("http://host/v1/completions#model", "no list of options"),
        ("http://host/v1/completions#model=m&top_k=1", 'unknown option "top_k"'),
        ("http://host/v1/completions#model=m&concurrency=0", "concurrency must be a whole number"),
        ("http://host/v1/completions#model=m&max_attempts=1.5", "max_attempts must be a whole number"),
        ("http://host/v1/completions#model=m&timeout_seconds=x", "timeout_seconds must be a number"),
        (
            "http://host/v1/completions#model=m&key_env=NOT_SET_ANYWHERE",
            "NOT_SET_ANYWHERE .key_env. is not set",
        ),
    ],
)
def test_names_that_cannot_be_used(name: str, words: str) -> None:
    with pytest.raises(EndpointError, match=words) as raised:
        EndpointGenerator(name, None)
    assert "secret" not in str(raised.value)
