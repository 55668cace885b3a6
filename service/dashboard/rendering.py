"""Pages from templates: one environment, everything escaped, a missing value is an error and not a blank."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.dashboard import words
from service.errors import ApiError

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": CONTENT_SECURITY_POLICY, "cache-control": "no-store"}
# htmx: styles of its own and evaluating strings are both against the policy; answers with an error are shown.
HTMX_CONFIG = json.dumps(
    {
        "includeIndicatorStyles": False,
        "allowEval": False,
        "selfRequestsOnly": True,
        "historyCacheSize": 0,
        "scrollIntoViewOnBoost": False,
        "responseHandling": [
            {"code": "204", "swap": False},
            {"code": "[23]..", "swap": True},
            {"code": "[45]..", "swap": False, "error": True},
        ],
    }
)
UNCHANGED = Response(status_code=204, headers={"cache-control": "no-store"})
"""For a fragment that asks again and has not changed: htmx leaves what is there."""


@cache
def asset(name: str) -> str:
    """The URL of a file in `static`; it changes with the file, so browsers may keep it for ever."""
    content = resources.files("service.dashboard").joinpath("static", name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("service.dashboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"asset": asset, "htmx_config": HTMX_CONFIG}
    made.filters |= words.FILTERS
    return made


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page, or a fragment: whatever `template` says. It finds `signed_in` (may be None), `csrf` and
    `path` besides what is given."""
    signed_in = getattr(request.state, "signed_in", None)
    html = (
        environment()
        .get_template(template)
        .render(
            signed_in=signed_in,
            csrf="" if signed_in is None else signed_in.csrf,
            path=request.url.path,
            **context,
        )
    )
    return HTMLResponse(html, status_code=status, headers=HEADERS)


def markup(html: str) -> Markup:
    """HTML that was made by this package's own drawings, which escape what they are given."""
    return Markup(html)  # noqa: S704


def error_page(request: Request, error: ApiError) -> Response:
    """A fragment is not replaced by an error: the page says so in its banner (static/app.js)."""
    if "hx-request" in request.headers or "x-csrf-token" in request.headers:
        answer = error.response(dict(error.headers))
    else:
        answer = page(request, "error.html.j2", status=error.status, error=error)
        answer.headers.update(error.headers)
    return answer
