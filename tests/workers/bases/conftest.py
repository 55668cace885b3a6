"""What a registration names, as the API's tests have it; a hub of ours."""

from __future__ import annotations

from tests.autoclave.hub.conftest import cache, hub, model
from tests.service.bases.conftest import admin, body, models, profile, settings

__all__ = ["admin", "body", "cache", "hub", "model", "models", "profile", "settings"]
