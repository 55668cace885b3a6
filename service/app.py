"""The API as an ASGI application: built from settings, nothing global.

`service.main` serves it; tests build it with a database and a storage of their own. Interactive
documentation pages are off (they load scripts from a CDN); the description is at /openapi.json.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI

from service import description, errors, health, repeats, schema
from service.adapters import by_model as adapters_by_model
from service.adapters import endpoints as adapters
from service.adapters import public_endpoints as links
from service.audit import endpoints as audit_logs
from service.bases import endpoints as bases
from service.catalog import endpoints as catalog
from service.catalog import model_limits
from service.checkpoints import endpoints as checkpoints
from service.dashboard import routers as pages
from service.dashboard.static_files import static_files
from service.datasets import endpoints as datasets
from service.db import Database
from service.deps import AuthenticatedRoute, State
from service.errors import ErrorBody
from service.files import endpoints as files
from service.jobs import endpoints as jobs
from service.jobs.feed import EventFeed
from service.metrics.api import ApiMetrics
from service.middleware import RequestContext
from service.observed import Observed
from service.organization import endpoints as projects
from service.pace import Pace
from service.permissions import endpoints as permissions
from service.quotas import endpoints as quotas
from service.quotas.limits import rate_limiter_from_settings
from service.recent_answers import RecentAnswers
from service.reports import endpoints as reports
from service.settings import Settings
from service.storage import Storage, storage_from_url
from service.together import Together
from service.tracing import Tracer
from service.uploads import endpoints as uploads
from service.webhooks import endpoints as webhooks

# For everything else. Dozens of threads that each work for a millisecond hold each other up: with the usual
# 40, an answer takes half as much processor time again (benchmarks/job_requests.py).
REQUEST_THREADS = 12
# An upload holds a thread as long as its client sends; it must not take those of other requests.
MAX_CONCURRENT_UPLOADS = 16
# Looking closely at a dataset keeps a processor busy for seconds; others wait for their turn.
MAX_CONCURRENT_INSPECTIONS = 2


def create_app(
    settings: Settings,
    *,
    database: Database | None = None,
    storage: Storage | None = None,
    metrics: ApiMetrics | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """`database` and `storage` are opened from the settings where not given, and then closed too.
    `metrics` counts requests; serving them is the caller's (`service.main`), never this application's.

    Starting the application raises SchemaError if the database is not migrated.
    """
    app = FastAPI(
        title="Autoclave",
        version="1",
        summary="Fine-tuning in which no adapter leaves unsterilised; OpenAI-compatible.",
        lifespan=_lifespan(settings, database, storage),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own spans and logs hold paths, queries and texts of exceptions: tenants' data, and links
        # that are permissions. Ours (`service.observed`) hold none of it.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.recent_answers = recent = RecentAnswers()
    app.add_middleware(RequestContext, recent=recent)
    app.add_middleware(Observed, metrics=metrics or ApiMetrics(), tracer=tracer or Tracer())
    errors.install(app)
    repeats.install(app)
    app.include_router(health.router)
    v1 = APIRouter(
        prefix="/v1",
        route_class=AuthenticatedRoute,
        responses={status: {"model": ErrorBody} for status in ("4XX", "5XX")},
    )
    # adapters_by_model before catalog, whose /models/{model:path} would match its route as well.
    nouns = (
        files,
        uploads,
        datasets,
        jobs,
        reports,
        checkpoints,
        adapters,
        adapters_by_model,
        links,
        catalog,
        model_limits,
        webhooks,
        quotas,
        permissions,
        projects,
        audit_logs,
        bases,
    )
    for noun in nouns:
        v1.include_router(noun.router)
    app.include_router(v1)
    for router in pages.ROUTERS:
        app.include_router(router)
    app.mount("/static", static_files())
    description.install(app)
    return app


def _lifespan(
    settings: Settings, database: Database | None, storage: Storage | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[State]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        opened = database or Database.from_url(settings.database_url)
        # Also where `service.main` finds it, to end the streams before the server waits for them.
        app.state.event_feed = feed = EventFeed(opened)
        limiter = rate_limiter_from_settings(settings, opened)
        try:
            schema.require_head(opened.engine)
            to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
            yield State(
                settings=settings,
                database=opened,
                storage=storage or storage_from_url(settings.storage_url),
                upload_threads=CapacityLimiter(MAX_CONCURRENT_UPLOADS),
                event_feed=feed,
                inspection_threads=CapacityLimiter(MAX_CONCURRENT_INSPECTIONS),
                rate_limiter=limiter,
                admissions=Together(),
                pace=Pace(),
            )
        finally:
            feed.close()
            limiter.close()
            if database is None:
                opened.close()

    return lifespan
