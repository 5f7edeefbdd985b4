"""The platform API. Two lines of this file are about auditing: the import, and the last one.

Run it with ``uvicorn examples.platform_api.app:app``. It records nothing unless ``AUDIT_LOG_ENABLED=true``.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware

import tron_audit_otel as audit
from examples.platform_api.reports import create_reports
from examples.platform_api.routers import (
    auth,
    clusters,
    components,
    instances,
    organizations,
    secrets,
    settings,
    setup,
    tokens,
    users,
)
from examples.platform_api.store import seeded

PORTAL = "https://portal.example.com"


def create_app() -> FastAPI:
    """Return the API with a fresh store, not audited yet: tests instrument it in their own way."""
    app = FastAPI(title="Platform API (example)")
    app.state.store = seeded()
    app.add_middleware(CORSMiddleware, allow_origins=[PORTAL], allow_methods=["*"], allow_headers=["*"])

    v1 = APIRouter(prefix="/api/v1")
    for router in (
        auth.router,
        setup.router,
        organizations.router,
        users.router,
        tokens.router,
        instances.router,
        components.webapps,
        components.workers,
        settings.router,
        secrets.router,
        clusters.router,
    ):
        v1.include_router(router)
    app.include_router(v1)

    reports = create_reports()
    reports.state.store = app.state.store
    app.mount("/reports", reports)

    @app.get("/health", include_in_schema=False)
    async def check_health() -> dict[str, str]:
        return {"status": "healthy"}

    return app


app = create_app()
audit.instrument(app)
