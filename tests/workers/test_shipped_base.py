"""The microcosm as a base: what its gate asks, and that an older data directory gets it."""

from __future__ import annotations

import time

from autoclave.hashing import folder_sha256
from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import SafetyProfile
from service.catalog import register_base
from service.db import Database
from service.models import AlignedBase
from workers.shipped_base import SHIPPED_BASE_ID, register_shipped_base, shipped_profile, shipped_spec

# As versions before the pipeline wrote it.
OLD_PROFILE = {
    "version": "1",
    "realign": "/old/realign.jsonl",
    "harmful_eval": "/old/harmful_eval.jsonl",
    "utility_eval": None,
    "judge": "refusal",
    "sanitize": {"method": "antidote", "alphas": [0.01, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3]},
    "evaluate": {"max_new_tokens": 24, "max_prompts": 1000, "batch_tokens": 16384},
    "gate": {"max_harmful_score": 20.0, "max_utility_loss": 10.0},
}


def test_the_gate_of_the_shipped_base() -> None:
    profile = shipped_profile(shipped_world())
    assert (profile.version, profile.sanitize.method) == ("3", "pipeline")
    gate = profile.gate
    assert (gate.max_harmful_score, gate.max_utility_loss, gate.min_refusal_rate) == (10, 1.5, 70)


def test_a_data_directory_of_an_older_version_gets_the_new_profile(database: Database) -> None:
    world = shipped_world()
    old = SafetyProfile.model_validate(OLD_PROFILE)
    assert old.sanitize.rule == "row", "an old job must not change its rule"
    with database.transaction() as session:
        register_base(
            session,
            id=SHIPPED_BASE_ID,
            revision="old",
            path="/old",
            sha256=folder_sha256(world / "aligned"),
            alignment_method="x",
            default_spec=shipped_spec(),
            safety_profile=old,
            now=time.time(),
        )
    register_shipped_base(database, world)
    with database.transaction() as session:
        base = session.get_one(AlignedBase, SHIPPED_BASE_ID)
        assert SafetyProfile.model_validate(base.safety_profile) == shipped_profile(world)
        assert base.path == str(world / "aligned")
