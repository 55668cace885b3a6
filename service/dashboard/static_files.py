"""Scripts and styles of the pages, from the package itself."""

from __future__ import annotations

from importlib import resources

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope


class VersionedFiles(StaticFiles):
    """A URL with a version is kept by browsers for ever (`rendering.asset` changes it with the content)."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        versioned = scope["query_string"].startswith(b"v=")
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if versioned else "no-cache"
        return response


def static_files() -> VersionedFiles:
    return VersionedFiles(directory=str(resources.files("service.dashboard").joinpath("static")))
