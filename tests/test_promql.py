"""The reader of PromQL: what it finds, and what it refuses as Prometheus does."""

from __future__ import annotations

import pytest

from tests.promql import PromqlError, parse


def test_it_finds_metrics_labels_and_ranges() -> None:
    found = parse(
        'sum by (le, stage) (rate(a_bucket{x="1", y=~"p|q"}[5m] offset 1d)) / on (stage) b:c:ratio6h > 2'
        " unless on () count(d < 60) or vector(0)"
    )
    assert [selector.metric for selector in found.selectors] == ["a_bucket", "b:c:ratio6h", "d"]
    assert found.selectors[0].matchers == [("x", "=", "1"), ("y", "=~", "p|q")]
    assert [selector.range for selector in found.selectors] == ["5m", None, None]
    assert found.grouped_by == ["le", "stage", "stage"]


@pytest.mark.parametrize(
    "text",
    [
        "sum(a",
        "sum(a))",
        "a{x=1}",
        'a{x="1"',
        "rate(a)",
        "rate(a[5])",
        "rate(a[5 minutes])",
        "sum(a[5m])",
        "a[5m]",
        "nofunction(a)",
        "histogram_quantile(a)",
        "a unless 5",
        "a > ",
        "a b",
        "by (x) a",
        "a ? b",
    ],
)
def test_it_refuses_what_prometheus_refuses(text: str) -> None:
    with pytest.raises(PromqlError):
        parse(text)
