"""Webapps and workers: their pods, the pods' logs, and commands in them.

Commands are run in two routers on purpose. ``webapps`` uses ``audit.execution``; ``workers`` sets
``request.state.audit_exec_payload``, as applications do that were written before this library.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import tron_audit_otel as audit
from examples.platform_api import shell
from examples.platform_api.auth import (
    Caller,
    CurrentAdmin,
    CurrentCaller,
    LegacyAdmin,
    StoreDep,
    require_same_organization,
)
from examples.platform_api.store import Component, Store, new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

webapps = APIRouter(prefix="/webapps", tags=["webapps"])
workers = APIRouter(prefix="/workers", tags=["workers"])

LOG_LINES_PER_SECOND = 50


class WebappCreate(BaseModel):
    """A new webapp."""

    name: str = Field(min_length=1, max_length=40)


class Command(BaseModel):
    """A command to run in a pod, as an argument list: nothing here splits strings."""

    command: list[str] = Field(min_length=1)
    container_name: str | None = None


class CommandResult(BaseModel):
    """What the command left behind. A command that failed was still run: the answer is 200."""

    stdout: str
    stderr: str
    return_code: int


def _find(store: Store, caller: Caller, kind: Literal["webapp", "worker"], component_id: str) -> Component:
    component = store.components.get(component_id)
    if component is None or component.kind != kind:
        raise HTTPException(404, f"no such {kind}")
    require_same_organization(caller, component.organization_id)
    return component


def _require_pod(component: Component, pod_name: str) -> None:
    if pod_name not in component.pods:
        raise HTTPException(404, "no such pod")


@webapps.get("/")
async def list_webapps(caller: CurrentCaller, store: StoreDep) -> list[Component]:
    """List the webapps of the caller's organization."""
    mine = [each for each in store.components.values() if each.organization_id == caller.organization_id]
    return [component for component in mine if component.kind == "webapp"]


@webapps.post("/", status_code=201)
async def create_webapp(body: WebappCreate, caller: CurrentAdmin, store: StoreDep) -> Component:
    """Deploy a webapp, with one pod."""
    component = Component(new_id("web"), caller.organization_id, "webapp", body.name, [f"{body.name}-0"])
    store.components[component.id] = component
    return component


@webapps.get("/{webapp_id}")
async def get_webapp(webapp_id: str, caller: CurrentCaller, store: StoreDep) -> Component:
    """Show a webapp."""
    return _find(store, caller, "webapp", webapp_id)


@webapps.delete("/{webapp_id}", status_code=204)
async def delete_webapp(webapp_id: str, caller: CurrentAdmin, store: StoreDep) -> None:
    """Delete a webapp."""
    del store.components[_find(store, caller, "webapp", webapp_id).id]


@webapps.get("/{webapp_id}/pods")
async def list_pods(webapp_id: str, caller: CurrentCaller, store: StoreDep) -> list[str]:
    """List the pods of a webapp."""
    return _find(store, caller, "webapp", webapp_id).pods


@webapps.delete("/{webapp_id}/pods/{pod_name}", status_code=204)
async def delete_pod(webapp_id: str, pod_name: str, caller: CurrentAdmin, store: StoreDep) -> None:
    """Delete a pod: the platform starts another."""
    component = _find(store, caller, "webapp", webapp_id)
    _require_pod(component, pod_name)
    component.pods.remove(pod_name)


@webapps.get("/{webapp_id}/pods/{pod_name}/logs")
async def stream_logs(
    webapp_id: str,
    pod_name: str,
    caller: CurrentCaller,
    store: StoreDep,
    lines: int = 10,
) -> StreamingResponse:
    """Follow a pod's log, line by line. The record comes when the stream ends, or when the client leaves it."""
    _require_pod(_find(store, caller, "webapp", webapp_id), pod_name)
    return StreamingResponse(_log_lines(pod_name, lines), media_type="text/plain")


async def _log_lines(pod_name: str, lines: int) -> AsyncIterator[str]:
    for number in range(lines):
        yield f"{pod_name}: request {number} served\n"
        await asyncio.sleep(1 / LOG_LINES_PER_SECOND)


@webapps.post("/{webapp_id}/pods/{pod_name}/exec")
async def run_in_webapp(
    webapp_id: str,
    pod_name: str,
    body: Command,
    caller: CurrentAdmin,
    store: StoreDep,
) -> CommandResult:
    """Run a command in a pod, and say so with ``audit.execution``.

    The record has the command even if what follows raises: a pod that is not there, or a command that never ends.
    """
    component = _find(store, caller, "webapp", webapp_id)
    with audit.execution(command=body.command, container=body.container_name) as run:
        _require_pod(component, pod_name)
        try:
            result = await shell.run(body.command)
        except shell.CommandTimeoutError as error:
            raise HTTPException(504, str(error)) from error
        run.finish(stdout=result.stdout, stderr=result.stderr, return_code=result.return_code)
    return CommandResult(**result._asdict())


@webapps.websocket("/{webapp_id}/pods/{pod_name}/terminal")
async def open_terminal(
    websocket: WebSocket,
    webapp_id: str,
    pod_name: str,
    caller: CurrentAdmin,
    store: StoreDep,
) -> None:
    """Run one command over a WebSocket: it arrives as the first message, and the output goes back."""
    _require_pod(_find(store, caller, "webapp", webapp_id), pod_name)
    await websocket.accept()
    body = Command.model_validate(await websocket.receive_json())
    with audit.execution(command=body.command, container=body.container_name) as run:
        result = await shell.run(body.command)
        run.finish(stdout=result.stdout, stderr=result.stderr, return_code=result.return_code)
    await websocket.send_json(result._asdict())
    await websocket.close()


@workers.post("/{worker_id}/pods/{pod_name}/exec")
async def run_in_worker(  # noqa: PLR0913, PLR0917 - FastAPI hands a handler what it needs one by one
    worker_id: str,
    pod_name: str,
    body: Command,
    request: Request,
    caller: LegacyAdmin,
    store: StoreDep,
) -> CommandResult:
    """Run a command in a pod, and say so as the original pull request did."""
    _require_pod(_find(store, caller, "worker", worker_id), pod_name)
    asked = {"command": body.command, "container_name": body.container_name}
    try:
        result = await shell.run(body.command)
    except shell.CommandTimeoutError as error:
        request.state.audit_exec_payload = {"request": asked, "response": {"error": str(error)}}
        raise HTTPException(500, f"failed to run the command: {error}") from error
    answer: dict[str, Any] = result._asdict()
    request.state.audit_exec_payload = {"request": asked, "response": answer}
    return CommandResult(**answer)
