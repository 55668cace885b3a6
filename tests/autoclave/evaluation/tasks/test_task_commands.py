"""`autoclave task` on the tiny base; the judge is a server on a loopback port that likes long answers."""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.errors import JudgeError
from autoclave.evaluation.tasks.chat_endpoint import ChatEndpoint, ChatEndpointSpec
from autoclave.evaluation.tasks.pairwise import Pair, compare
from autoclave.modelling.adapters import attach, save_adapter
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec
from tests.receiver import Receiver, running_receiver

PAIRS = [Pair("q0", "long answer", "short"), Pair("q1", "no", "longer"), Pair("q2", "same", "size")]


def reply(handler: BaseHTTPRequestHandler, content: Any, status: int = 200, **headers: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def says(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def longer_of(body: bytes) -> str:
    text = json.loads(body)["messages"][1]["content"]
    a, b = (re.search(rf"\[ANSWER {n} (\w+)\]\n(.*?)\n\[END", text, re.DOTALL)[2] for n in "AB")  # type: ignore[index]
    return f"VERDICT: {'TIE' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running_receiver() as receiver:
        receiver.answer = lambda handler: reply(handler, says(longer_of(receiver.received[-1].body)))
        yield receiver


def endpoint(server: Receiver, **options: Any) -> tuple[ChatEndpoint, list[float]]:
    """One that does not wait but says how long it would have; one request at a time, so that the server knows
    which is the last."""
    waited: list[float] = []
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    spec = ChatEndpointSpec(**{"url": url, "model": "judge", "parallel": 1, **options})
    return ChatEndpoint(spec, sleep=waited.append), waited


def test_each_pair_is_asked_in_both_orders(server: Receiver, tmp_path: Path) -> None:
    judge, _ = endpoint(server)
    result = compare(PAIRS, judge, tmp_path / "journal")
    assert (result["num_wins"], result["num_losses"], result["num_ties"]) == (1, 1, 1)
    assert (result["win_rate"], result["judge_model"]) == (50.0, "judge")
    bodies = [json.loads(received.body) for received in server.received]
    assert len(bodies) == 6
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in bodies} == {
        ("judge", 0, 1024)
    }
    texts = [body["messages"][1]["content"] for body in bodies[:2]]
    assert [text.index("long answer") < text.index("short") for text in texts] == [True, False]


def test_a_judge_who_likes_the_first_place_gives_half(server: Receiver, tmp_path: Path) -> None:
    server.answer = lambda handler: reply(handler, says("VERDICT: A"))
    result = compare(PAIRS, endpoint(server)[0], tmp_path / "journal")
    assert (result["win_rate"], result["num_inconsistent"]) == (50.0, 3)


def failing_after(server: Receiver, count: int, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
    ordinary = server.answer
    assert ordinary is not None

    def some(handler: BaseHTTPRequestHandler) -> None:
        (ordinary if len(server.received) <= count else answer)(handler)

    server.answer = some


def test_a_failure_in_the_middle_scores_nothing_and_is_gone_on_from(server: Receiver, tmp_path: Path) -> None:
    good = server.answer
    journal = tmp_path / "journal"
    failing_after(server, 3, lambda handler: reply(handler, {"error": "secret words"}, 401))
    with pytest.raises(JudgeError, match=r"status 401 after 1 attempt\. Nothing was scored; .*kept") as error:
        compare(PAIRS, endpoint(server)[0], journal)
    assert "secret words" not in str(error.value)
    assert len(journal.read_text().splitlines()) == 3
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # as a kill leaves it
    server.answer, before = good, len(server.received)
    result = compare(PAIRS, endpoint(server)[0], journal)
    assert len(server.received) - before == 3
    assert result == compare(PAIRS, endpoint(server)[0], tmp_path / "other")
    assert result == compare(PAIRS, endpoint(server)[0], journal)
    # Another judge is another question.
    before = len(server.received)
    compare(PAIRS, endpoint(server, model="other")[0], journal)
    assert len(server.received) - before == 6


def test_busy_servers_are_asked_again(server: Receiver, tmp_path: Path) -> None:
    ordinary = server.answer
    assert ordinary is not None
    in_turn = [
        lambda handler: reply(handler, {}, 429, retry_after="7"),
        lambda handler: reply(handler, {}, 503),
        lambda handler: handler.connection.close(),
    ]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (in_turn.pop(0) if in_turn else ordinary)(handler)

    server.answer = answer
    judge, waited = endpoint(server)
    assert compare(PAIRS[:1], judge, tmp_path / "journal")["num_wins"] == 1
    assert len(waited) == 3
    assert waited[0] == 7
    assert waited[2] > waited[1] > 0.5


def test_attempts_end(server: Receiver) -> None:
    server.answer = lambda handler: reply(handler, {}, 503)
    judge, waited = endpoint(server, max_attempts=3)
    with pytest.raises(JudgeError, match="status 503 after 3 attempts"):
        judge.ask([{"role": "user", "content": "x"}])
    assert len(waited) == 2


def test_a_silent_server_times_out(server: Receiver) -> None:
    gone = threading.Event()
    server.answer = lambda handler: gone.wait(5) and None
    judge, _ = endpoint(server, max_attempts=1, timeout_seconds=0.05)
    with pytest.raises(JudgeError, match="no answer in time after 1 attempt"):
        judge.ask([{"role": "user", "content": "x"}])
    gone.set()


@pytest.mark.parametrize(
    "content", [b"no json", {"choices": []}, {"error": {}}, {"choices": [{"text": "x"}]}]
)
def test_what_is_no_chat_completion(content: Any, server: Receiver) -> None:
    server.answer = lambda handler: reply(handler, content)
    with pytest.raises(JudgeError, match="did not answer with a chat completion"):
        endpoint(server)[0].ask([{"role": "user", "content": "x"}])


def test_redirects_are_not_followed(server: Receiver) -> None:
    server.answer = lambda handler: reply(handler, {}, 307, location="http://127.0.0.1:1/")
    with pytest.raises(JudgeError, match="status 307"):
        endpoint(server)[0].ask([{"role": "user", "content": "x"}])


def test_the_key_is_sent_and_not_shown(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCLAVE_JUDGE_KEY", "sk-very-secret")
    server.answer = lambda handler: reply(handler, {}, 403)
    with pytest.raises(JudgeError) as error:
        endpoint(server, key_env="AUTOCLAVE_JUDGE_KEY")[0].ask([{"role": "user", "content": "x"}])
    assert server.received[0].headers["authorization"] == "Bearer sk-very-secret"
    assert "sk-" not in str(error.value)
    monkeypatch.setenv("AUTOCLAVE_JUDGE_KEY", " ")
    with pytest.raises(JudgeError, match="AUTOCLAVE_JUDGE_KEY"):
        endpoint(server, key_env="AUTOCLAVE_JUDGE_KEY")


@pytest.mark.parametrize("url", ["ftp://h/x", "h", "http://", "http://h:99999999/"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(JudgeError, match="no http or https URL"):
        ChatEndpoint(ChatEndpointSpec(url=url, model="m"))


def test_a_url_with_a_password_is_not_repeated() -> None:
    with pytest.raises(JudgeError) as error:
        ChatEndpoint(ChatEndpointSpec(url="https://u:hunter2@h/", model="m"))
    assert "hunter2" not in str(error.value)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    rows = [[("user", f"q{i}"), ("assistant", "ab" * i)] for i in range(1, 4)]
    lines = ({"messages": [{"role": role, "content": text} for role, text in row]} for row in rows)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["task", *map(str, arguments)])


def test_pairwise_from_the_command(base_dir: Path, data: Path, server: Receiver, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    arguments = ("pairwise", "--base", base_dir, "--data", data, "--url", url, "--judge-model", "j")
    rest = ("--out", tmp_path / "out", "--max-new-tokens", 4, "--parallel", 1, "--device", "cpu")
    first = call(*arguments, *rest)
    assert first.exit_code == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["num_pairs"] == 3
    assert result["mean_reference_length"] == 4
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert "win rate" in first.stderr
    asked = len(server.received)
    assert json.loads(call(*arguments, *rest).stdout) == result
    assert len(server.received) == asked  # answers and verdicts were kept


def test_loss_from_the_command(base_dir: Path, data: Path) -> None:
    result = json.loads(call("loss", "--base", base_dir, "--data", data, "--device", "cpu").stdout)
    assert (result["num_examples"], result["num_tokens"]) == (3, 2 + 4 + 6 + 3)  # with an end of turn each
    assert result["perplexity"] == pytest.approx(math.exp(result["held_out_loss"]))
    assert 3 < result["held_out_loss"] < 9  # random weights, 262 tokens
    cut = call("loss", "--base", base_dir, "--data", data, "--device", "cpu", "--max-seq-length", 8)
    assert cut.exit_code == 0 or "no answer begins within" in cut.stderr


def test_what_lm_eval_is_given(base_dir: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which is not installed where this is built: it asks the model something."""
    base = load_base(base_dir)
    model = attach(base.model, LoraSpec(r=2), seed=0)
    save_adapter(model, data.parent / "a", base_name="b", base_revision=None, base_sha256=base.sha256)
    given: dict[str, Any] = {}

    def simple_evaluate(model: Any, tasks: list[str], **options: Any) -> dict[str, Any]:
        given.update(options)
        if tasks == ["nothing"]:
            raise KeyError("nothing")
        ids = model.tokenizer("abc", return_tensors="pt", add_special_tokens=False)["input_ids"]
        logits = model.pretrained(input_ids=ids).logits
        return {"results": {name: {"acc,none": float(logits.isfinite().all())} for name in tasks}}

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", SimpleNamespace(HFLM=SimpleNamespace))
    arguments = ("lm-eval", "--base", base_dir, "--adapter", data.parent / "a", "--device", "cpu")
    result = call(*arguments, "--tasks", "arc_easy, other", "--limit", 3, "--num-fewshot", 0)
    assert result.exit_code == 0, result.stderr
    tasks = json.loads(result.stdout)["tasks"]
    assert [tasks[name]["metrics"]["acc"]["value"] for name in ("arc_easy", "other")] == [1.0, 1.0]
    assert (given["limit"], given["num_fewshot"], given["batch_size"]) == (3, 0, 8)
    assert "task_manager" not in given
    own = data.parent / "own"
    own.mkdir()
    nowhere = call(*arguments, "--tasks", "mine", "--include-path", own)
    assert nowhere.exit_code == 2
    assert "holds no task of lm-eval" in nowhere.stderr
    (own / "mine.yaml").write_text("task: mine\n")
    found = SimpleNamespace(TaskManager=lambda include_path: f"tasks of {include_path}")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", found)
    assert call(*arguments, "--tasks", "mine", "--include-path", own).exit_code == 0
    assert given["task_manager"] == f"tasks of {own}"
    refused = call(*arguments, "--tasks", "nothing")
    assert refused.exit_code == 2
    assert "lm-eval refuses the tasks nothing" in refused.stderr


def test_lm_eval_that_is_not_there(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = call("lm-eval", "--base", base_dir, "--tasks", "arc_easy")
    assert result.exit_code == 2
    assert "autoclave[lm-eval]" in result.stderr
