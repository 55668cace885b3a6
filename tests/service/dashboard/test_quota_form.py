from __future__ import annotations

import pytest

from service.dashboard.quota_form import read_quotas
from service.errors import ApiError


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("storage_bytes", "2000000000", 2_000_000_000),
        ("storage_bytes", "1,500 MB", 1_500_000_000),
        ("storage_bytes", "1.5 TiB", 3 * 2**39),
        ("storage_bytes", "0", 0),
        ("gpu_seconds", "200 h", 720_000),
        ("gpu_seconds", "90min", 5400),
        ("concurrent_jobs", " 8 ", 8),
    ],
)
def test_numbers(name: str, text: str, number: int) -> None:
    assert read_quotas({name: text}) == {name: number}


def test_what_is_empty_is_left_out() -> None:
    assert read_quotas({"queued_jobs": " ", "gpu_seconds": ""}) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("concurrent_jobs", "8 GB"),
        ("concurrent_jobs", "-1"),
        ("concurrent_jobs", "1.5"),
        ("concurrent_jobs", "many"),
        ("concurrent_jobs", str(2**31)),
        ("storage_bytes", "5 h"),
        ("storage_bytes", "99999999 TB"),
        ("gpu_seconds", "1e9"),
    ],
)
def test_what_is_no_number(name: str, text: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_quotas({name: text})
    assert refused.value.status == 400
    assert refused.value.param == name
