"""Settings of the platform as a whole."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep
from examples.platform_api.store import DEFAULT_SETTINGS

router = APIRouter(prefix="/settings", tags=["settings"])


class SettingChange(BaseModel):
    """The new value of a setting."""

    value: str


@router.get("/")
async def get_settings(_caller: CurrentCaller, store: StoreDep) -> dict[str, str]:
    """Show all settings."""
    return store.settings


@router.put("/{name}")
async def change_setting(name: str, body: SettingChange, _caller: CurrentAdmin, store: StoreDep) -> dict[str, str]:
    """Change a setting."""
    if name not in DEFAULT_SETTINGS:
        raise HTTPException(404, "no such setting")
    store.settings[name] = body.value
    return {name: body.value}


@router.post("/reset")
async def reset_settings(_caller: CurrentAdmin, store: StoreDep) -> dict[str, str]:
    """Go back to the defaults. By its effect an UPDATE; ``policy.yaml`` says so."""
    store.settings = dict(DEFAULT_SETTINGS)
    return store.settings
