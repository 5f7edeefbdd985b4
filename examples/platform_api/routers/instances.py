"""Instances: the environments in which webapps and workers run.

This router still uses ``legacy_admin`` and ``legacy_caller``: nothing in it knows of the library but the last lines.
"""

from __future__ import annotations

from fastapi import APIRouter, BackgroundTasks, HTTPException
from pydantic import BaseModel, Field

import tron_audit_otel as audit
from examples.platform_api.auth import Caller, LegacyAdmin, LegacyCaller, StoreDep, require_same_organization
from examples.platform_api.store import Instance, Store, new_id

router = APIRouter(prefix="/instances", tags=["instances"])

BACKUPS_KEPT = 2


class InstanceCreate(BaseModel):
    """A new instance."""

    name: str = Field(min_length=1, max_length=40)
    replicas: int = Field(default=1, ge=0, le=20)


def _find(store: Store, caller: Caller, instance_id: str) -> Instance:
    instance = store.instances.get(instance_id)
    if instance is None:
        raise HTTPException(404, "no such instance")
    require_same_organization(caller, instance.organization_id)
    return instance


@router.get("/")
def list_instances(caller: LegacyCaller, store: StoreDep) -> list[Instance]:
    """List the instances of the caller's organization."""
    return [each for each in store.instances.values() if each.organization_id == caller.organization_id]


@router.post("/", status_code=201)
def create_instance(body: InstanceCreate, caller: LegacyAdmin, store: StoreDep) -> Instance:
    """Create an instance."""
    instance = Instance(new_id("inst"), caller.organization_id, body.name, body.replicas)
    store.instances[instance.id] = instance
    return instance


@router.get("/{instance_id}")
def get_instance(instance_id: str, caller: LegacyCaller, store: StoreDep) -> Instance:
    """Show an instance."""
    return _find(store, caller, instance_id)


@router.put("/{instance_id}")
def update_instance(instance_id: str, body: InstanceCreate, caller: LegacyAdmin, store: StoreDep) -> Instance:
    """Rename or resize an instance."""
    instance = _find(store, caller, instance_id)
    instance.name, instance.replicas = body.name, body.replicas
    return instance


@router.delete("/{instance_id}", status_code=204)
def delete_instance(instance_id: str, caller: LegacyAdmin, store: StoreDep) -> None:
    """Delete an instance."""
    del store.instances[_find(store, caller, instance_id).id]


@router.post("/{instance_id}/sync")
def sync_instance(instance_id: str, caller: LegacyAdmin, store: StoreDep) -> Instance:
    """Bring the clusters in line with the database. By its effect an UPDATE; ``policy.yaml`` says so."""
    instance = _find(store, caller, instance_id)
    instance.synced = True
    return instance


@router.get("/{instance_id}/cost")
def get_cost_per_replica(instance_id: str, caller: LegacyCaller, store: StoreDep) -> dict[str, int]:
    """Show what a replica costs. Crashes for an instance that is scaled to zero: every API has such a bug."""
    instance = _find(store, caller, instance_id)
    return {"cents": instance.monthly_cost_cents // instance.replicas}


@router.post("/{instance_id}/backups", status_code=202)
async def back_up(
    instance_id: str,
    background: BackgroundTasks,
    caller: LegacyAdmin,
    store: StoreDep,
) -> dict[str, str]:
    """Make a backup; the oldest ones are deleted after the answer."""
    instance = _find(store, caller, instance_id)
    backup_id = new_id("backup")
    instance.backups.append(backup_id)
    background.add_task(_expire_backups, instance)
    return {"id": backup_id}


def _expire_backups(instance: Instance) -> None:
    while len(instance.backups) > BACKUPS_KEPT:
        backup_id = instance.backups.pop(0)
        # No request asked for this deletion, so no request's record tells of it. The fact gets a record of its own.
        audit.record(action="DELETE", resource=f"backups/{backup_id}", actor="backup-retention", actor_type="system")
