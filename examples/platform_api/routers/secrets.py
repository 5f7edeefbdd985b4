"""Secrets. That somebody read one is worth a record; what it said is not in it."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep
from examples.platform_api.store import Secret

router = APIRouter(prefix="/secrets", tags=["secrets"])


class SecretChange(BaseModel):
    """The new value of a secret."""

    value: str


@router.get("/")
async def list_secrets(caller: CurrentCaller, store: StoreDep) -> list[str]:
    """List the names."""
    return [name for organization_id, name in store.secrets if organization_id == caller.organization_id]


@router.get("/{name}")
async def read_secret(name: str, caller: CurrentAdmin, store: StoreDep) -> Secret:
    """Show a secret's value."""
    secret = store.secrets.get((caller.organization_id, name))
    if secret is None:
        raise HTTPException(404, "no such secret")
    return secret


@router.put("/{name}", status_code=204)
async def write_secret(name: str, body: SecretChange, caller: CurrentAdmin, store: StoreDep) -> None:
    """Set a secret."""
    store.secrets[caller.organization_id, name] = Secret(name, caller.organization_id, body.value)
