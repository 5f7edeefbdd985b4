"""Tenants. One of them must never see another's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, HTTPException
from pydantic import BaseModel, StringConstraints

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep, require_same_organization
from examples.platform_api.store import Organization, new_id

router = APIRouter(prefix="/organizations", tags=["organizations"])


class OrganizationCreate(BaseModel):
    """A new tenant."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=80)]


class Invitation(BaseModel):
    """Whom to invite."""

    email: str


@router.get("/")
async def list_organizations(caller: CurrentCaller, store: StoreDep) -> list[Organization]:
    """List the caller's organizations: one."""
    return [store.organizations[caller.organization_id]]


@router.post("/", status_code=201)
def create_organization(body: OrganizationCreate, _caller: CurrentAdmin, store: StoreDep) -> Organization:
    """Found an organization."""
    organization = Organization(new_id("org"), body.name)
    store.organizations[organization.id] = organization
    return organization


@router.get("/{organization_id}")
async def get_organization(organization_id: str, caller: CurrentCaller, store: StoreDep) -> Organization:
    """Show one organization; 403 for another tenant's, whether it exists or not."""
    require_same_organization(caller, organization_id)
    return store.organizations[organization_id]


@router.post("/{organization_id}/invitations", status_code=202)
async def invite(
    organization_id: str,
    invitation: Invitation,
    background: BackgroundTasks,
    caller: CurrentAdmin,
    store: StoreDep,
) -> dict[str, str]:
    """Invite a person. The mail goes out after the answer, and the record does not wait for it."""
    require_same_organization(caller, organization_id)
    if store.user_by_email(invitation.email) is not None:
        raise HTTPException(409, "already a user")
    background.add_task(store.mails.append, f"You are invited to {organization_id}")
    return {"status": "invited"}
