"""What a client reads when something goes wrong: OpenAI's error shape, for every status, always.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null, ...}}

Business errors are raised as `ApiError` and carry their status. The handlers below turn everything
else that can go wrong into the same shape; nothing here ever shows a path, a query or a traceback.
The codes are listed in docs/api.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.description import methods_of
from service.storage import StorageCorruptError, StorageFullError, StorageUnavailableError


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with status 4xx or 5xx."""

    error: ErrorDetail


log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ApiError(Exception):
    """`extra` is added to the error object for what a machine may want to read (never required),
    `headers` to the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type or ("server_error" if status >= 500 else "invalid_request_error")
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            **self.extra,
        }
        return JSONResponse({"error": error}, status_code=self.status, headers=headers)


def not_found(noun: str, id: str, *, param: str, code: str) -> ApiError:
    """The same words for what never existed, was deleted, or belongs to somebody else."""
    return ApiError(404, f"No such {noun}: {id!r}", param=param, code=code)


def invalid(message: str, *, param: str | None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unauthorized() -> ApiError:
    """One answer for a missing, malformed, wrong, expired and revoked key."""
    return ApiError(
        401,
        "Incorrect API key provided. Send a valid key as 'Authorization: Bearer <key>'; "
        "your operator creates keys with: autoclave admin create-key",
        code="invalid_api_key",
    )


def forbidden(message: str, *, code: str) -> ApiError:
    """For a valid key that may not do this at all; what belongs to somebody else is `not_found`."""
    return ApiError(403, message, code=code, type="permission_error")


def internal() -> ApiError:
    return ApiError(
        500,
        "The server had an error while processing your request. Try again; if it stays, "
        "tell your operator the request id (header x-request-id).",
        code="internal_error",
    )


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(InterfaceError, _database_error)
    app.add_exception_handler(PoolTimeoutError, _database_error)
    app.add_exception_handler(StorageUnavailableError, _storage_error)


def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return error.response(challenge | error.headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        answer = ApiError(404, f"Invalid URL ({where})", code="unknown_url")
    elif error.status_code == 405:
        answer = ApiError(405, f"Method not allowed ({where})", code="method_not_allowed")
    elif error.status_code == 413:
        answer = ApiError(413, str(error.detail), code="request_too_large")
    elif error.status_code == 400:
        # FastAPI's word for a body that it could not parse for another reason than bad JSON.
        answer = ApiError(400, "The request body cannot be parsed.", code="invalid_json")
    else:
        answer = ApiError(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The router names the methods of one of its routes; the path may have several.
        headers["Allow"] = ", ".join(methods_of(request.app, request.url.path)) or headers.get("Allow", "")
    return answer.response(headers)


def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    kind, location = str(first["type"]), first["loc"]
    if kind == "json_invalid":
        return invalid(
            f"The request body is not valid JSON: {first.get('ctx', {}).get('error', 'cannot be parsed')}.",
            param=None,
            code="invalid_json",
        ).response()
    # ("body", "method", "type") is OpenAI's "method.type"; a problem of the whole body has no param.
    param = ".".join(str(part) for part in location[1:]) or None
    if kind == "missing":
        return invalid(
            f"Missing required parameter: {param!r}."
            if param
            else "The request needs a JSON object as body.",
            param=param,
            code="missing_required_parameter",
        ).response()
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: {param!r}.", param=param, code="unknown_parameter").response()
    message = str(first["msg"]).removeprefix("Value error, ")
    if kind in ("model_attributes_type", "dict_type"):
        message = "must be a JSON object"
    return invalid(f"Invalid value for {param or 'body'!r}: {message}.", param=param).response()


def _database_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, DBAPIError) and _is_disk_full(error):
        log.error("database_full", error=type(error).__name__, exc_info=error)
        return _full().response()
    log.error("database_unavailable", error=type(error).__name__, exc_info=error)
    return ApiError(
        503, "The database does not answer. Try again in a moment.", code="database_unavailable"
    ).response()


def _storage_error(_request: Request, error: Exception) -> Response:
    log.error("storage_failed", error=type(error).__name__, exc_info=error)
    if isinstance(error, StorageFullError):
        return _full().response()
    if isinstance(error, StorageCorruptError):
        return internal().response()
    return ApiError(
        503, "The storage does not answer. Try again in a moment.", code="storage_unavailable"
    ).response({"Retry-After": "5"})


def _is_disk_full(error: DBAPIError) -> bool:
    # PostgreSQL's DiskFull, and the words of SQLite's SQLITE_FULL.
    return getattr(error.orig, "sqlstate", None) == "53100" or "disk is full" in str(error.orig)


def _full() -> ApiError:
    return ApiError(
        507,
        "The server has no room left to store this; nothing of it was kept. Tell your operator, or delete "
        "files that you no longer need.",
        code="storage_full",
    )
