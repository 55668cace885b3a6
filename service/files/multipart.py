"""A multipart/form-data body as it arrives: small fields are kept, the file is passed through.

Starlette's own parser spools the file to disk before an endpoint sees it; here a file is checked
and stored while its client still sends. Knows nothing of what the file holds.
"""

from __future__ import annotations

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import ApiError, invalid

FILE_PART = "file"
MAX_FIELDS_BYTES = 64 * 1024
MAX_FIELDS = 32


class UploadForm:
    """`feed` it the body; `fields` and `filename` fill up. `file_part` names the part that is the file.
    Raises ApiError 400 and 415."""

    def __init__(self, content_type: str, *, file_part: str = FILE_PART) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise ApiError(
                415,
                f"Send the file as multipart/form-data, in the field {file_part!r}.",
                code="unsupported_content_type",
            )
        self._file_part = file_part
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._complete = False
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._part: str | None = None
        self._field = bytearray()
        self._fields_bytes = 0
        self._file_data: list[bytes] = []
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except ValueError as error:
            raise _malformed(str(error)) from error

    def feed(self, chunk: bytes) -> bytes:
        """The bytes of the file that this piece of the body brought; often none."""
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise _malformed(str(error)) from error
        data = b"".join(self._file_data)
        self._file_data.clear()
        return data

    def finish(self) -> None:
        """The body has ended: was it whole, and did it bring a file?"""
        if not self._complete:
            raise _malformed("it ends before its closing boundary")
        if self.filename is None:
            raise invalid(
                f"Missing required parameter: {self._file_part!r}.",
                param=self._file_part,
                code="missing_required_parameter",
            )

    def _begin_part(self) -> None:
        self._disposition = b""
        self._part = None

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if name in self.fields or (name == self._file_part and self.filename is not None):
            raise invalid(f"The field {name!r} is given twice.", param=name)
        if name == self._file_part:
            self.filename = display_name(options.get(b"filename", b""))
        elif len(self.fields) == MAX_FIELDS:
            raise _malformed(f"it has more than {MAX_FIELDS} fields")
        self._part = name

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._file_part:
            self._file_data.append(data[start:end])
            return
        self._fields_bytes += end - start
        if self._fields_bytes > MAX_FIELDS_BYTES:
            raise _malformed(
                f"its fields other than {self._file_part!r} hold more than {MAX_FIELDS_BYTES} bytes"
            )
        self._field += data[start:end]

    def _end_part(self) -> None:
        if self._part is not None and self._part != self._file_part:
            self.fields[self._part] = self._field.decode("utf-8", "replace")
            self._field.clear()

    def _end(self) -> None:
        self._complete = True


def _malformed(reason: str) -> ApiError:
    return invalid(f"The multipart body cannot be read: {reason}.", param=None, code="invalid_multipart")


def display_name(raw: bytes) -> str:
    """The last part of a client's file name without control characters; never used as a path."""
    name = raw.decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in name if character.isprintable())[:255] or "upload"
