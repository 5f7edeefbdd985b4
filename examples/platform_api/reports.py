"""Reports: an application of its own, mounted under ``/reports``. Its requests are audited with the rest."""

from __future__ import annotations

from fastapi import FastAPI

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep
from examples.platform_api.store import new_id


def create_reports() -> FastAPI:
    """Return the sub-application; whoever mounts it sets its ``state.store``."""
    reports = FastAPI(title="Reports", docs_url=None, redoc_url=None, openapi_url=None)

    @reports.get("/usage")
    async def get_usage(caller: CurrentCaller, store: StoreDep) -> dict[str, int]:
        """Count what the caller's organization has."""
        mine = [each for each in store.components.values() if each.organization_id == caller.organization_id]
        return {"components": len(mine)}

    @reports.post("/exports", status_code=201)
    async def create_export(_caller: CurrentAdmin) -> dict[str, str]:
        """Write a report to be fetched later."""
        return {"id": new_id("export")}

    return reports
