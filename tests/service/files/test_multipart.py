"""The streaming form parser: the same result however the network cuts the body."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ApiError
from service.files.multipart import MAX_FIELDS, MAX_FIELDS_BYTES, UploadForm

CONTENT_TYPE = "multipart/form-data; boundary=edge"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    suffix = "" if filename is None else f'; filename="{filename}"'
    return (
        f'--edge\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'.encode()
        + content
        + b"\r\n"
    )


def read(chunks: list[bytes]) -> tuple[UploadForm, bytes]:
    form = UploadForm(CONTENT_TYPE)
    data = b"".join(form.feed(chunk) for chunk in chunks)
    form.finish()
    return form, data


@given(
    content=st.binary(max_size=300)
    | st.sampled_from([b"\r\n--edg", b"\r\n--edgy\r\n", b"--edge", b"\r\n\r\n-"]),
    purpose=st.text(st.characters(codec="utf-8"), max_size=20),
    cuts=st.lists(st.integers(0, 600), max_size=8),
    file_first=st.booleans(),
)
def test_any_cutting_gives_the_same_file(
    content: bytes, purpose: str, cuts: list[int], file_first: bool
) -> None:
    parts = [part("purpose", purpose.encode()), part("file", content, "a.jsonl")]
    body = b"".join(reversed(parts) if file_first else parts) + b"--edge--\r\n"
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    form, data = read([body[start:end] for start, end in itertools.pairwise(edges)])
    assert data == content
    assert form.fields == {"purpose": purpose}
    assert form.filename == "a.jsonl"


@given(body=st.binary(max_size=300), prefix=st.sampled_from([b"", b"--edge\r\n", part("file", b"x", "f")]))
def test_garbage_is_an_error_or_a_form_never_a_crash(body: bytes, prefix: bytes) -> None:
    with contextlib.suppress(ApiError):
        read([prefix + body])


def test_the_file_is_handed_out_while_it_comes() -> None:
    form = UploadForm(CONTENT_TYPE)
    form.feed(part("purpose", b"fine-tune") + part("file", b"", "f").removesuffix(b"\r\n"))
    assert form.feed(b"a" * 1000) == b"a" * 1000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (part("file", b"x", "f"), "closing boundary"),
        (b"--edge\r\nContent-Type: text/plain\r\n\r\nx\r\n--edge--\r\n", "no name"),
        (part("file", b"x", "f") + part("file", b"y", "g") + b"--edge--", "given twice"),
        (part("a", b"x") + part("a", b"y") + b"--edge--", "given twice"),
        (part("a", b"x" * (MAX_FIELDS_BYTES + 1)) + b"--edge--", "more than"),
        (b"".join(part(f"f{i}", b"") for i in range(MAX_FIELDS + 1)) + b"--edge--", "more than"),
        (b"--edge\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "header"),
    ],
)
def test_malformed_forms_are_named(body: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words) as raised:
        read([body])
    assert raised.value.status == 400


def test_other_content_types_are_named() -> None:
    with pytest.raises(ApiError) as raised:
        UploadForm("application/json")
    assert raised.value.status == 415
