"""The setup assistant, which the portal polls every few seconds until the platform is ready."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/setup", tags=["setup"])


@router.get("/status")
async def get_setup_status() -> dict[str, bool]:
    """Say whether the platform is set up. ``policy.yaml`` keeps the polling out of the audit trail."""
    return {"initialized": True}
