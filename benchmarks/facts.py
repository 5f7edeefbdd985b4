"""The facts of a request that the other designs send: what our own record of it has, under the same names."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

EVENT_NAME = "tron.audit.request"
HEALTH = "/health"
"""Asked while the server starts; of no variant's records, by our default policy either."""

_ACTIONS = {"GET": "READ", "POST": "CREATE"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What an audit record says."""

    began_ns: int
    ended_ns: int
    body: str
    attributes: dict[str, str | int | float | bool]


def gather(scope: Scope, status: int, began_ns: int, number: int) -> Facts:
    """Tells what became of the request that began then, as of now."""
    ended_ns = time.time_ns()
    route: str = scope["route"].path_format
    values: dict[str, str] = scope["path_params"]
    action = _ACTIONS[scope["method"]]
    resource = route.strip("/").format(**values)
    target, _, target_id = resource.partition("/")
    address: str = scope["client"][0]
    agent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"user-agent"), "")
    attributes: dict[str, str | int | float | bool] = {
        "audit.record.id": str(uuid.uuid4()),
        "audit.schema.version": "1.0",
        "audit.sequence.number": number,
        "audit.actor.type": "anonymous",
        "audit.action": action,
        "audit.resource": resource,
        "audit.target.type": target,
        "audit.outcome": "success",
        "audit.duration_ms": (ended_ns - began_ns) / 1e6,
        "client.address": address,
        "network.peer.address": address,
        "audit.source_ip.rule": "peer",
        "audit.source_ip.suspect": False,
        "http.request.method": scope["method"],
        "http.route": route,
        "url.path": scope["path"],
        "http.response.status_code": status,
        "user_agent.original": agent,
    }
    if target_id:
        attributes["audit.target.id"] = target_id
    sentence = f"anonymous {action} {resource} from {address}: success ({status})"
    return Facts(began_ns, ended_ns, sentence, attributes)
