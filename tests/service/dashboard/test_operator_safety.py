from __future__ import annotations

import time

from autoclave.spec import GateSpec, SafetyProfile
from service.db import Database
from tests.builders import BASE_ID, Tenant, make_base
from tests.service.dashboard.conftest import Browser
from tests.service.dashboard.rows import make_measured_job


def test_nothing_measured_yet(operator: Browser) -> None:
    page = operator.get("/dashboard/safety").text
    assert "No job has been measured yet" in page
    assert "No base model is registered" in page


def test_all_jobs_together(operator: Browser, database: Database, tenant: Tenant) -> None:
    gate = GateSpec(max_harmful_score=7.0, max_utility_loss=4.0)
    profile = SafetyProfile(version="v9", realign="/secret/r", harmful_eval="/e", judge="exact:/w", gate=gate)
    with database.transaction() as session:
        make_base(session, safety_profile=profile)
        for after in (1.0, 2.0, 3.0):
            make_measured_job(session, tenant.project_id, after=after)
        refused = make_measured_job(session, tenant.project_id, after=50.0, result="refused")
        waived = make_measured_job(session, tenant.project_id, after=30.0, result="waived", base=20.0)
        lossy = make_measured_job(session, tenant.project_id, utility=(90.0, 70.0))
    page = operator.get("/dashboard/safety").text
    assert "60.0 % → " in page
    assert "<svg" in page
    refusals = page.split("Refused by the gate</h2>")[1].split("</section>")[0]
    assert refused.id in refusals
    assert "the harmful score is too high" in refusals
    assert "16.7 %" in page, "one of six"
    waivers = page.split("Released by waiver</h2>")[1].split("</section>")[0]
    assert waived.id in waivers
    assert "ticket 4711" in waivers
    losses = page.split("Utility lost</h2>")[1]
    assert lossy.id in losses
    assert "20.0 points" in losses
    assert refused.id not in losses
    bases = page.split("Base models</h2>")[1].split("</section>")[0]
    assert "harmful at most 7.0 %, utility lost at most 4 points" in bases
    assert "v9" in bases
    assert "/secret" not in page
    controls = page.split("Is the judge steady?")[1].split("</section>")[0]
    assert "moved" in controls
    assert "8.0 points" in controls


def test_filters(operator: Browser, database: Database, tenant: Tenant) -> None:
    with database.transaction() as session:
        old = make_measured_job(
            session, tenant.project_id, at=time.time() - 200 * 86_400, utility=(90.0, 82.0)
        )
    assert "No job was measured in this time" in operator.get("/dashboard/safety").text
    everything = operator.get("/dashboard/safety?days=all").text
    assert old.id in everything
    assert old.id not in operator.get("/dashboard/safety?days=all&loss=10").text
    assert old.id in operator.get(f"/dashboard/safety?days=all&base={BASE_ID}").text
    assert old.id not in operator.get("/dashboard/safety?days=all&base=other").text
    assert operator.get("/dashboard/safety?days=nonsense&loss=nan").status_code == 200
