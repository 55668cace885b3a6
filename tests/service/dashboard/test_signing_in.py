from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from service import auth
from service.auth import digest
from service.dashboard.page_route import COOKIE
from service.db import Database
from service.models import ApiKey, OperatorKey, WebSession
from service.operators import revoke_operator_key
from tests.builders import Tenant, make_admin
from tests.service.dashboard.conftest import Browser


def test_a_users_key_opens_the_app_and_an_operators_the_dashboard(
    open_browser: Callable[[], Browser], tenant: Tenant, operator_key: str
) -> None:
    user, operator = open_browser(), open_browser()
    assert user.sign_in(tenant.key).headers["location"] == "/app"
    assert operator.sign_in(operator_key).headers["location"] == "/dashboard"
    assert user.get("/").headers["location"] == "/app"
    assert operator.get("/").headers["location"] == "/dashboard"


def test_nobody_is_signed_in_at_first(browser: Browser) -> None:
    assert browser.get("/").headers["location"] == "/signin"
    answer = browser.get("/app/nothing?page=2")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/signin?next=/app/nothing%3Fpage%3D2"


def test_a_polling_fragment_of_somebody_signed_out_sends_the_page_to_sign_in(browser: Browser) -> None:
    headers = {"hx-request": "true", "hx-current-url": "http://testserver/app/jobs/x?tab=1"}
    answer = browser.get("/app/jobs/x/live", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/signin?next=/app/jobs/x%3Ftab%3D1"


def test_one_kind_of_key_does_not_open_the_others_pages(user: Browser, operator: Browser) -> None:
    assert user.get("/dashboard/nothing").status_code == 403
    assert operator.get("/app/nothing").status_code == 403
    assert "Not allowed" in user.get("/dashboard/nothing").text


@pytest.mark.parametrize("kind", ["wrong", "empty", "expired", "revoked", "admin"])
def test_keys_that_open_nothing(browser: Browser, database: Database, tenant: Tenant, kind: str) -> None:
    now = time.time()
    with database.transaction() as session:
        options = {"project_id": tenant.project_id, "name": "x", "now": now}
        expired = auth.create_api_key(session, **options, expires_at=now - 1)[1]
        row, revoked = auth.create_api_key(session, **options)
        auth.revoke_api_key(session, key_id=row.id, now=now)
    admin = make_admin(database, tenant.organization_id)["Authorization"].removeprefix("Bearer ")
    keys = {"wrong": "sk-wrong", "empty": "", "expired": expired, "revoked": revoked, "admin": admin}
    answer = browser.sign_in(keys[kind])
    assert answer.status_code == 401
    assert "This key is not valid" in answer.text
    assert COOKIE not in answer.cookies


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(browser: Browser, tenant: Tenant) -> None:
    cookie = browser.sign_in(tenant.key).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/" in cookie


def test_the_database_keeps_no_cookie(browser: Browser, tenant: Tenant, database: Database) -> None:
    token = browser.sign_in(tenant.key).cookies[COOKIE]
    with database.snapshot() as session:
        rows = session.scalars(select(WebSession)).all()
    assert [row.token_sha256 for row in rows] == [digest(token)]


def test_a_session_ends_with_its_key(user: Browser, database: Database, tenant: Tenant) -> None:
    assert user.get("/app/nothing").status_code == 404
    with database.transaction() as session:
        key = session.scalars(select(ApiKey)).one()
        auth.revoke_api_key(session, key_id=key.id, now=time.time())
    assert user.get("/app/nothing").status_code == 303


def test_an_operators_session_ends_with_its_key(operator: Browser, database: Database) -> None:
    assert operator.get("/dashboard/nothing").status_code == 404
    with database.transaction() as session:
        key = session.scalars(select(OperatorKey)).one()
        revoke_operator_key(session, key_id=key.id, now=time.time())
    assert operator.get("/dashboard/nothing").status_code == 303


def test_a_session_ends_by_itself(user: Browser, database: Database) -> None:
    with database.transaction() as session:
        session.scalars(select(WebSession)).one().expires_at = time.time() - 1
    assert user.get("/app/nothing").status_code == 303


def test_signing_in_clears_away_what_has_ended(
    open_browser: Callable[[], Browser], database: Database, tenant: Tenant
) -> None:
    open_browser().sign_in(tenant.key)
    with database.transaction() as session:
        session.scalars(select(WebSession)).one().expires_at = time.time() - 1
    open_browser().sign_in(tenant.key)
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(WebSession)) == 1


def test_signing_out_ends_the_session_on_the_server(
    user: Browser, open_browser: Callable[[], Browser]
) -> None:
    token = user.client.cookies[COOKIE]
    assert user.post("/signout").headers["location"] == "/signin"
    thief = open_browser()
    thief.client.cookies[COOKIE] = token
    assert thief.get("/app/nothing").status_code == 303


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_a_form_without_the_token_changes_nothing(user: Browser, token: str) -> None:
    answer = user.post("/signout", token=token)
    assert answer.status_code == 403
    assert user.get("/app/nothing").status_code == 404, "still signed in"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_a_form_of_another_site_is_refused(browser: Browser, tenant: Tenant, headers: dict[str, str]) -> None:
    answer = browser.client.post("/signin", data={"key": tenant.key}, headers=headers, follow_redirects=False)
    assert answer.status_code == 403
    assert COOKIE not in answer.cookies


@pytest.mark.parametrize(
    ("next", "location"),
    [
        ("/app/files?page=2", "/app/files?page=2"),
        ("https://evil.example/app", "/app"),
        ("//evil.example/app", "/app"),
        ("/\\evil.example", "/app"),
        ("/app/\\..\\x", "/app"),
        ("/dashboard", "/app"),
        ("javascript:alert(1)", "/app"),
        ("/apple", "/app"),
    ],
)
def test_signing_in_leads_nowhere_else(browser: Browser, tenant: Tenant, next: str, location: str) -> None:
    assert browser.sign_in(tenant.key, next=next).headers["location"] == location


def test_pages_load_nothing_from_elsewhere(browser: Browser) -> None:
    answer = browser.get("/signin")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "http://" not in answer.text
    assert "https://" not in answer.text


def test_scripts_and_styles_are_kept_by_browsers(browser: Browser) -> None:
    page = browser.get("/signin").text
    url = page.split('<script src="')[1].split('"')[0]
    answer = browser.get(url)
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
    assert browser.get("/static/../rendering.py").status_code == 404


def test_an_unknown_page_says_so(user: Browser) -> None:
    answer = user.get("/app/no/such/page")
    assert answer.status_code == 404
    assert "There is no page /app/no/such/page" in answer.text


def test_an_operator_key_opens_no_route_of_the_api(browser: Browser, operator_key: str) -> None:
    answer = browser.get("/v1/files", headers={"authorization": f"Bearer {operator_key}"})
    assert answer.status_code == 401
