"""A moderation endpoint as a judge, against a server on a loopback port."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from autoclave.errors import JudgeError
from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.judges.moderations import ModerationsJudge
from autoclave.evaluation.judges.names import JudgeName
from tests.receiver import Receiver, running_receiver

KEY = "sk-very-secret"


def reply(handler: BaseHTTPRequestHandler, content: Any, status: int = 200, **headers: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def result_of(text: str) -> dict[str, Any]:
    """The world's harm is the word "zug"; "tov" is a category that is not flagged below one half."""
    return {
        "flagged": "zug" in text,
        "categories": {"zug": "zug" in text, "tov": False, "unused": None},
        "category_scores": {"zug": 0.9 if "zug" in text else 0.1, "tov": 0.4 if "tov" in text else 0.0},
    }


def texts_of(receiver: Receiver) -> list[list[str]]:
    return [json.loads(message.body)["input"] for message in receiver.received]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with running_receiver() as receiver:

        def answer(handler: BaseHTTPRequestHandler) -> None:
            texts = texts_of(receiver)[-1]
            reply(handler, {"id": "x", "results": [result_of(text) for text in texts]})

        receiver.answer = answer
        yield receiver


def name_of(server: Receiver, options: str = "") -> str:
    return f"moderations:http://127.0.0.1:{server.port}/v1/moderations{options}"


def patient(server: Receiver, options: str = "") -> tuple[ModerationsJudge, list[float]]:
    """A judge that does not wait but says how long it would have."""
    waited: list[float] = []
    return ModerationsJudge(JudgeName.parse(name_of(server, options)), sleep=waited.append), waited


def in_turn(receiver: Receiver, *answers: Callable[[BaseHTTPRequestHandler], None]) -> None:
    """The first requests are answered so, all later ones as before."""
    ordinary, left = receiver.answer, list(answers)
    assert ordinary is not None

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (left.pop(0) if left else ordinary)(handler)

    receiver.answer = answer


ANSWERS = ["take the zug", "I cannot do that.", "", "get the tov", "I cannot, but zug", "   "]


def test_verdicts(server: Receiver) -> None:
    judge = load_judge(name_of(server, "#model=m-1&key_env=JUDGE_KEY"))
    assert KEY not in judge.name
    verdicts = judge.judge(["how"] * 6, ANSWERS)
    assert [v.harmful for v in verdicts] == [True, False, False, False, True, False]
    assert [v.refused for v in verdicts] == [False, True, False, False, False, False]
    assert verdicts[0].scores == {"zug": 0.9, "tov": 0.0}
    harm = HarmfulnessResult.of(verdicts)
    assert harm.category_scores == {"zug": pytest.approx(100 / 3), "tov": 0.0}
    assert harm.num_undecided == 0
    (message,) = server.received
    assert (message.path, message.headers["authorization"]) == ("/v1/moderations", f"Bearer {KEY}")
    assert json.loads(message.body) == {"model": "m-1", "input": [a for a in ANSWERS if a.strip()]}


def test_a_threshold_replaces_the_flags(server: Receiver) -> None:
    verdicts = load_judge(name_of(server, "#threshold=0.3")).judge(["how"] * 6, ANSWERS)
    assert [v.categories for v in verdicts] == [("zug",), (), (), ("tov",), ("zug",), ()]
    assert [v.harmful for v in verdicts] == [True, False, False, True, True, False]
    assert "authorization" not in server.received[0].headers
    assert "model" not in json.loads(server.received[0].body)


def test_batches_keep_their_order(server: Receiver) -> None:
    answers = ["zug" if i % 3 == 0 else f"text {i}" for i in range(10)]
    verdicts = load_judge(name_of(server, "#batch_size=4")).judge(["how"] * 10, answers)
    assert [v.harmful for v in verdicts] == [i % 3 == 0 for i in range(10)]
    assert [len(texts) for texts in texts_of(server)] == [4, 4, 2]


def test_what_may_pass_is_tried_again(server: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    def cut_off(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    in_turn(
        server,
        lambda handler: reply(handler, {"error": "the text was: zug"}, 503),
        cut_off,
        lambda handler: reply(handler, {}, 429, retry_after="7"),
    )
    judge, waited = patient(server, "#key_env=JUDGE_KEY")
    with caplog.at_level(logging.WARNING):
        assert judge.judge(["how"], ["zug"])[0].harmful
    assert len(server.received) == 4
    assert 0.3 < waited[0] < waited[1] < waited[2] == 7
    assert "status 503" in caplog.text
    assert "zug" not in caplog.text
    assert KEY not in caplog.text


def test_silence_is_no_verdict(server: Receiver) -> None:
    server.answer = lambda handler: time.sleep(0.3)
    judge, waited = patient(server, "#timeout_seconds=0.05&max_attempts=2")
    with pytest.raises(JudgeError, match="no answer in time after 2 attempts"):
        judge.judge(["how"], ["fine"])
    assert len(waited) == 1


@pytest.mark.parametrize(
    ("status", "attempts", "words"),
    [(500, 3, "status 500 after 3 attempts"), (401, 1, "Is the key right"), (404, 1, "/v1/moderations")],
)
def test_failures_are_no_verdict(server: Receiver, status: int, attempts: int, words: str) -> None:
    server.answer = lambda handler: reply(handler, {"error": f"wrong key {KEY} for zug"}, status)
    judge, _ = patient(server, "#key_env=JUDGE_KEY&max_attempts=3")
    with pytest.raises(JudgeError, match=words) as caught:
        judge.judge(["how"], ["zug"])
    assert len(server.received) == attempts
    assert KEY not in str(caught.value)
    assert "zug" not in str(caught.value)


def test_a_failure_in_the_middle_scores_nothing(server: Receiver) -> None:
    in_turn(
        server,
        lambda handler: reply(handler, {"results": [result_of("fine")]}),
        lambda handler: reply(handler, {}, 400),
    )
    judge, _ = patient(server, "#batch_size=1")
    with pytest.raises(JudgeError, match=r"status 400 after 1 attempt\. Nothing was scored"):
        judge.judge(["how"] * 3, ["a", "b", "c"])


def test_redirects_are_not_followed(server: Receiver) -> None:
    for status in (301, 302, 307, 308):
        server.answer = lambda handler, status=status: reply(handler, {}, status, location="/elsewhere")
        judge, _ = patient(server, "#key_env=JUDGE_KEY")
        with pytest.raises(JudgeError, match=f"status {status}"):
            judge.judge(["how"], ["zug"])
    assert {message.path for message in server.received} == {"/v1/moderations"}


def test_nobody_listens() -> None:
    with running_receiver() as server:
        name = name_of(server, "#max_attempts=2")
    judge = ModerationsJudge(JudgeName.parse(name), sleep=lambda seconds: None)
    with pytest.raises(JudgeError, match=r"no connection \(ConnectionRefusedError\) after 2 attempts"):
        judge.judge(["how"], ["zug"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "did not answer with moderation results"),
        (b"\xff", "did not answer with moderation results"),
        ({"results": [{"categories": {}}]}, "did not answer with moderation results"),
        ({"results": [{"flagged": "no"}]}, "did not answer with moderation results"),
        ({"results": []}, "gave 0 results for 1 texts"),
        ({"results": [{"flagged": False}]}, "gives no category_scores"),
        ({"results": [{"flagged": False, "category_scores": {"a": 7}}]}, "not between 0 and 1"),
    ],
)
def test_an_answer_that_says_too_little_is_no_verdict(server: Receiver, content: Any, words: str) -> None:
    server.answer = lambda handler: reply(handler, content)
    judge, _ = patient(server, "#threshold=0.5")
    with pytest.raises(JudgeError, match=words):
        judge.judge(["how"], ["zug"])


def test_what_cannot_be_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    url = "moderations:https://host/v1/moderations"
    cases = [
        ("moderations:ftp://host/x", "no http or https URL"),
        ("moderations:file:///etc/passwd", "no http or https URL"),
        ("moderations:https://host:99999/x", "no http or https URL"),
        (f"moderations:https://me:{KEY}@host/x", "must not hold a user name"),
        (f"{url}#key_env=JUDGE_KEY", "JUDGE_KEY (key_env) is not set"),
        (f"{url}#key=abc", 'unknown option "key"'),
        (f"{url}#timeout_seconds=0", "timeout_seconds must be a number"),
    ]
    for name, words in cases:
        with pytest.raises(JudgeError) as caught:
            load_judge(name)
        assert words in str(caught.value), name
        assert KEY not in str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", "two\nlines")
    with pytest.raises(JudgeError, match="holds no key that a header can carry"):
        load_judge(f"{url}#key_env=JUDGE_KEY")
