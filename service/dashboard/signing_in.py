"""Signing in with a key, and out again."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from service.dashboard import sessions
from service.dashboard.page_route import COOKIE, PageRoute
from service.dashboard.rendering import page
from service.dashboard.sessions import Kind
from service.deps import DatabaseDep
from service.errors import ApiError, unauthorized
from service.settings import Settings

router = APIRouter(route_class=PageRoute, include_in_schema=False)

HOMES = {Kind.PROJECT: "/app", Kind.OPERATOR: "/dashboard"}


@router.get("/")
def root(request: Request) -> Response:
    signed_in = request.state.signed_in
    return RedirectResponse("/signin" if signed_in is None else HOMES[signed_in.kind], status_code=303)


@router.get("/signin")
def show_sign_in(request: Request, next: str = "") -> Response:
    return page(request, "signin.html.j2", next=next, problem=None)


@router.post("/signin")
def sign_in(
    request: Request,
    database: DatabaseDep,
    key: Annotated[str, Form(max_length=512)] = "",
    next: Annotated[str, Form(max_length=2048)] = "",
) -> Response:
    settings: Settings = request.state.settings
    key = key.strip()
    address = request.client.host if request.client else None
    try:
        # As with the API: an address that guesses is slowed down.
        with request.state.rate_limiter.watching(address, f"Bearer {key}"), database.transaction() as session:
            made = sessions.sign_in(session, key, now=time.time(), ttl_seconds=settings.session_ttl_seconds)
            if made is None:
                raise unauthorized()
    except ApiError as error:
        problem = (
            "This key is not valid: it may be mistyped, expired or revoked."
            if error.status == 401
            else error.message
        )
        return page(request, "signin.html.j2", status=error.status, next=next, problem=problem)
    token, kind = made
    response = RedirectResponse(_inside(next, kind), status_code=303)
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(settings.session_ttl_seconds),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
        path="/",
    )
    return response


@router.post("/signout")
def sign_out(
    request: Request,
    database: DatabaseDep,
) -> Response:
    token = request.cookies.get(COOKIE)
    if token:
        with database.transaction() as session:
            sessions.sign_out(session, token)
    response = RedirectResponse("/signin", status_code=303)
    response.delete_cookie(COOKIE, path="/")
    return response


def _inside(next: str, kind: Kind) -> str:
    """`next` where it is a page of this kind on this server: no link to /signin sends anybody elsewhere."""
    parts = urlsplit(next)
    home = HOMES[kind]
    plain = next.isprintable() and "\\" not in next and not parts.scheme and not parts.netloc
    return next if plain and (parts.path == home or parts.path.startswith(f"{home}/")) else home
