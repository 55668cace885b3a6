from __future__ import annotations

import pytest

from service import recent_answers
from service.recent_answers import Asked, RecentAnswers, class_of


def add(answers: RecentAnswers, *, status: int = 200, seconds: float = 0.01) -> None:
    answers.add({"type": "http", "method": "GET", "path": "/v1/files"}, status, seconds)


@pytest.mark.parametrize(
    ("method", "path", "asked"),
    [
        ("GET", "/v1/fine_tuning/jobs/ftjob-1", Asked.READ),
        ("POST", "/v1/fine_tuning/jobs", Asked.WRITE),
        ("DELETE", "/v1/files/file-1", Asked.WRITE),
        ("POST", "/v1/files", Asked.UPLOAD),
        ("POST", "/v1/uploads/upload_1/parts", Asked.UPLOAD),
        ("GET", "/v1/files/file-1/content", Asked.UPLOAD),
        ("GET", "/v1/downloads/token", Asked.UPLOAD),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1/adapter/files/x.json", Asked.UPLOAD),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1/events", None),
        ("GET", "/dashboard", Asked.PAGE),
        ("GET", "/dashboard/live", Asked.LIVE),
        ("POST", "/app/jobs", Asked.PAGE),
        ("GET", "/healthz", None),
        ("GET", "/static/app.css", None),
    ],
)
def test_classes(method: str, path: str, asked: Asked | None) -> None:
    assert class_of(method, path) is asked


def test_percentiles_and_shares() -> None:
    answers = RecentAnswers()
    for milliseconds in range(100):
        add(answers, seconds=milliseconds / 1000)
    (found,) = answers.figures()
    assert (found.asked, found.number) == (Asked.READ, 100)
    assert found.p50 == pytest.approx(50)
    assert found.p95 == pytest.approx(95)
    for status in (500, 503, 429, 404, 0):
        add(answers, status=status)
    (found,) = answers.figures()
    assert found.server_errors == pytest.approx(200 / 105)
    assert found.refused_for_rate == pytest.approx(100 / 105)
    assert found.other_client_errors == pytest.approx(100 / 105)


def test_only_so_many_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = RecentAnswers()
    for _ in range(recent_answers.KEPT + 5):
        add(answers)
    assert answers.figures()[0].number == recent_answers.KEPT
    monkeypatch.setattr(recent_answers, "WINDOW_SECONDS", -1.0)
    assert answers.figures() == []
