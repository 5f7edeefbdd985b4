"""Clusters. Their token goes in with the request and comes out with the answer — and into no record."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from examples.platform_api.auth import CurrentAdmin, CurrentCaller, StoreDep, require_same_organization
from examples.platform_api.store import Cluster, new_id

router = APIRouter(prefix="/clusters", tags=["clusters"])


class ClusterCreate(BaseModel):
    """A cluster to connect."""

    api_address: str
    token: str


class ClusterView(BaseModel):
    """A cluster, without its token."""

    id: str
    api_address: str


@router.get("/")
async def list_clusters(caller: CurrentCaller, store: StoreDep) -> list[ClusterView]:
    """List the clusters of the caller's organization."""
    mine = [cluster for cluster in store.clusters.values() if cluster.organization_id == caller.organization_id]
    return [ClusterView(id=cluster.id, api_address=cluster.api_address) for cluster in mine]


@router.post("/", status_code=201)
async def create_cluster(body: ClusterCreate, caller: CurrentAdmin, store: StoreDep) -> Cluster:
    """Connect a cluster. The answer repeats the token: not wise, but real APIs do."""
    cluster = Cluster(new_id("cluster"), caller.organization_id, body.api_address, body.token)
    store.clusters[cluster.id] = cluster
    return cluster


@router.delete("/{cluster_id}", status_code=204)
async def delete_cluster(cluster_id: str, caller: CurrentAdmin, store: StoreDep) -> None:
    """Disconnect a cluster."""
    cluster = store.clusters.get(cluster_id)
    if cluster is None:
        raise HTTPException(404, "no such cluster")
    require_same_organization(caller, cluster.organization_id)
    del store.clusters[cluster_id]
