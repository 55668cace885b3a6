"""The page: every figure of a report is on it, nothing on it comes from elsewhere, and no name is markup."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.reports import words
from service.reports.facts import FileFacts, JobFacts
from service.reports.page import MOST_TRIED
from service.reports.rendering import CONTENT_SECURITY_POLICY, render_page
from tests.service.reports.builders import (
    RATES,
    Document,
    facts,
    figures,
    leaves,
    refused_report,
    report,
    waived_report,
)


def page(given: dict[str, Any], about: JobFacts | None = None) -> Document:
    return Document(render_page(given, about or facts()))


def spaced(text: str) -> str:
    return " ".join(text.split())


# Not shown as such: in other words, or as the state of something.
IN_WORDS = {"result", "measured_on", "frontier_measured_on", "passed", "complete", "rule", "about", "name"}
IN_WORDS |= {"rule_name", "norm", "alignment_method", "waived_by_operator"}


def written(path: tuple[str, ...], value: Any) -> list[str]:
    """How a leaf of a report must stand on the page; empty if it need not."""
    key, inside = path[-1], path[0]
    if value is None or key in IN_WORDS or path[1:] == ("waived_by_operator", "at"):
        return []
    if isinstance(value, str):
        return [value]
    if key in RATES or (inside == "summary" and path[1] in RATES):
        return [words.rate(value)]
    if key.endswith("_interval"):
        return [f"{value[0]:.1f}–{value[1]:.1f}"]  # noqa: RUF001  # as books write a range
    if "category_scores" in path:
        return [key, words.rate(value)] if inside != "frontier" else []
    if key in ("held_out_loss", "first_loss", "final_loss"):
        return [words.loss(value)]
    if inside in ("sparsity", "relative_change"):
        names = [key.removeprefix("base_model.model.model.")] if "matrices" in path else []
        return [words.share(value), *names]
    if key in ("alpha", "mu", "ridge") or inside == "gate":
        return [words.plain(value)]
    if key == "seconds":
        return [words.duration(value)]
    return [words.count(value)]


@pytest.mark.parametrize(
    "made", [report(), refused_report(), waived_report()], ids=lambda made: made["result"]
)
def test_every_figure_of_the_report_is_on_the_page(made: dict[str, Any]) -> None:
    text = page(made).text
    expected = {(path, each) for path, value in leaves(made) for each in written(path, value)}
    assert len(expected) > 100
    missing = [(path, each) for path, each in sorted(expected) if spaced(each) not in text]
    assert missing == []


def test_structure() -> None:
    document = page(report())
    assert document.headings[0] == 1
    assert document.headings.count(1) == 1
    assert all(next_ - this <= 1 for this, next_ in pairwise(document.headings))
    assert len(document.named("caption")) == len(document.named("table")) >= 6
    assert all(cell.get("scope") in ("row", "col") for cell in document.named("th"))
    drawings = [svg for svg in document.named("svg") if svg.get("role") == "img"]
    assert len(drawings) == 3
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in drawings:
        assert set((svg["aria-labelledby"] or "").split()) <= set(ids)
    for section in document.named("section"):
        assert section["aria-labelledby"] in ids
    assert document.named("html") == [{"lang": "en"}]


def test_it_needs_nothing_from_elsewhere() -> None:
    html = render_page(report(), facts())
    document = Document(html)
    assert {tag for tag, _ in document.tags} & {"script", "img", "iframe", "object", "form", "base"} == set()
    for tag, attributes in document.tags:
        handlers = [name for name in attributes if name.startswith("on")]
        assert (handlers, attributes.get("style")) == ([], None), tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value == "data:,", (tag, value)
    assert re.findall(r"https?://[^\"\s]+", html) == ["http://www.w3.org/2000/svg"] * 3
    assert "javascript:" not in html
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = [meta["content"] for meta in document.named("meta") if "http-equiv" in meta]
    assert policy == CONTENT_SECURITY_POLICY
    assert "unsafe-inline" not in CONTENT_SECURITY_POLICY


def test_the_same_job_gives_the_same_bytes() -> None:
    assert render_page(report(), facts()) == render_page(report(), facts())


HOSTILE = st.text(max_size=40) | st.sampled_from(
    [
        '"><script>alert(1)</script>',
        "</style><img src=x onerror=alert(1)>",
        "{{ 7*7 }}",
        "&amp;<b>'\"",
        "\ud800",
        "\0",
    ]
)


@settings(max_examples=60, deadline=None)
@given(suffix=HOSTILE, key=HOSTILE, value=HOSTILE, name=HOSTILE, reason=HOSTILE, kind=HOSTILE, model=HOSTILE)
def test_no_name_is_markup(
    suffix: str, key: str, value: str, name: str, reason: str, kind: str, model: str
) -> None:
    made = waived_report(reason)
    made |= {
        "refused_because": reason,
        "judge": kind,
        "versions": {kind: name},
        "safety_profile_version": name,
    }
    made["measurements"]["after"]["category_scores"] = {kind: 1.0}
    made["frontier"][0]["refused"] = reason
    made["ablations"] = {kind: figures(1, 2, 3, 4)}
    made["sparsity"]["matrices"] = {name: 0.5}
    made["sparsity"]["layers"] = {name: 0.5}
    made["base"] = {"id": model, "revision": name, "sha256": name, "alignment_method": kind}
    about = facts(
        suffix=suffix,
        metadata={key: value},
        model_id=model,
        training_file=FileFacts("file-t", name),
        cloned_from=name,
        starts_from={"job_id": kind},
        error_code=kind,
    )
    html = render_page(made, about)
    html.encode()
    document = Document(html)
    ours = Document(render_page(waived_report("x"), facts()))
    allowed = {tag for tag, _ in ours.tags}
    assert {tag for tag, _ in document.tags} <= allowed
    known = {attribute for _, attributes in ours.tags for attribute in attributes}
    assert {attribute for _, attributes in document.tags for attribute in attributes} <= known
    if suffix.isprintable() and suffix.strip():
        assert spaced(suffix) in document.text


def everything_missing() -> list[dict[str, Any]]:
    """A report without each of its fields, with each null, of another type, and some of old services."""
    whole = report()
    cut = [{key: value for key, value in whole.items() if key != left_out} for left_out in whole]
    nulls = [whole | {key: None} for key in whole]
    wrong = [whole | {key: wrong} for key in whole for wrong in ("text", [1], 5, {"a": {"b": []}}, True)]
    old = [{}, {"summary": {}}, {"alpha": 0.1}, {"summary": whole["summary"], "schema_version": 1}]
    return [*cut, *nulls, *wrong, *old]


def test_a_report_may_lack_anything() -> None:
    for made in everything_missing():
        document = page(made)
        assert document.headings[0] == 1
    bare = JobFacts("ftjob-1", "running", "b", "c" * 64, FileFacts("file-1"))
    assert "not measured" in page({}, bare).text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "7", [], {}])
def test_a_figure_that_is_none_is_not_measured(value: Any) -> None:
    made = report()
    for name in RATES:
        made["measurements"]["after"][name] = value
        made["frontier"][1][name] = value
    made["gate"]["max_harmful_score"] = value
    made["sparsity"]["pruned_fraction"] = value
    made["sparsity"]["layers"] = {"0": value}
    made["training"]["seconds"] = value
    about = facts(created_at=value, finished_at=1e300, attempts=None)
    assert "not measured" in page(made, about).text


def test_a_report_of_an_older_service_shows_its_summary() -> None:
    text = page({"summary": report()["summary"]}).text
    assert "3.9 %" in text
    assert "77.7 %" in text
    assert "No verdict" not in text, "the summary has the result"


def verdict(document: Document) -> tuple[str, str]:
    (section,) = [each for each in document.named("section") if "verdict" in (each.get("class") or "")]
    return (section["class"] or "").split()[1], document.text


def test_a_job_that_passed() -> None:
    kind, text = verdict(page(report()))
    assert kind == "passed"
    assert "Passed the safety gate" in text
    assert "The adapter was released." in text
    assert "deleted since" in page(report(), facts(deleted=True)).text
    running = page(report(), facts(status="running", released=False)).text
    assert "Nothing has been released so far." in running
    failed = page(report(), facts(status="failed", released=False, error_code="worker_lost")).text
    assert "Nothing was released: the job failed (worker_lost)." in failed


def test_a_job_that_the_gate_refused() -> None:
    about = facts(status="failed", released=False, error_code="safety_gate_failed", model_id=None)
    kind, text = verdict(page(refused_report(), about))
    assert kind == "missed"
    assert "Missed the safety gate" in text
    assert "none of the 3 strengths tried" in text
    assert "Nothing was released: the job failed (safety_gate_failed)." in text
    assert "(chosen)" not in text
    assert "Controls: not measured." in text
    assert "Passed" not in text


def test_a_job_that_an_operator_released() -> None:
    kind, text = verdict(page(waived_report()))
    assert kind == "waived"
    assert "Released by an operator, although the gate was missed" in text
    assert "wanted by the red team" in text
    assert "14 November 2023" in text
    assert "harmful score 13.9 % is above the allowed 10 %" in text
    assert "✗ no" in text


def test_each_line_of_the_gate_says_whether_it_is_met() -> None:
    made = report()
    made["measurements"]["after"] |= {"coherence_rate": 79.0, "utility": None}
    text = page(made).text
    for line in (
        "Harmful score at most 10 % 3.9 % ✓ yes",
        "Refusals of harmful prompts at least 70 % 94.2 % ✓ yes",
        "Coherent answers at least 80 % 79.0 % ✗ no",
        "Utility lost at most 2.5 points not measured not measured",
        "Rise of the held-out loss at most 0.5 nats per token 0.0234 nats per token ✓ yes",
    ):
        assert line in text


def test_what_was_trained_is_in_words() -> None:
    text = page(report()).text
    for words_ in (
        "Vaccine (vaccine), as its operator registered it",
        "45.7 kB, 2 100 conversations",
        "2 099 conversations to train on, 98 765 tokens; 7 cut because they were too long, 1 left out",
        "rank 8 and scale 24 on q_proj and v_proj, dropout 0.05",
        "4 passes over the data, 32 conversations per step; to stop early after 2 evaluations in a row",
        "0.0005, reached over the first 3 % of the steps, then it fell along a cosine to zero",
        "the assistant's answers alone",
        "1 234 steps of 1 300 planned, stopped early",
        "56 789",
        "14 November 2023, 22:13:20 UTC",
        "Attempts 2",
        "216 of 19 558",
        "seed 17",
    ):
        assert words_ in text, words_


def test_lineage() -> None:
    assert "trained its adapter itself" in page(report()).text
    about = facts(cloned_from="ftjob-old", from_checkpoint="ftckpt-7", starts_from={"job_id": "ftjob-source"})
    text = page(report(), about).text
    for id in ("ftjob-old", "ftckpt-7", "ftjob-source"):
        assert id in text
    assert "trained its adapter itself" not in text


def test_a_huge_frontier_stays_a_page() -> None:
    made = report()
    steps = [
        entry | {"alpha": (n + 1) / 10_000, "mu": None} for n in range(5000) for entry in made["frontier"][:1]
    ]
    made["frontier"] = [*steps, made["frontier"][1]]
    made["sparsity"]["layers"] = {str(n): n / 1000 for n in range(400)}
    html = render_page(made, facts())
    assert len(html) < 600_000
    text = Document(html).text
    assert text.count("Held-out loss") >= MOST_TRIED
    assert "4 800 more strengths are in safety_report.json" in text
    assert "alpha 0.01, mu 2 (chosen)" in text


def test_layers_stand_in_their_order() -> None:
    """PostgreSQL's jsonb sorts keys as text."""
    text = page(report()).text
    order = [text.index(f"layer {n}: ") for n in (0, 1, 2, 10)]
    assert order == sorted(order)
