"""The application that is measured, audited if its environment says so, and the request that it is asked with."""

from __future__ import annotations

from fastapi import FastAPI

import tron_audit_otel as audit

METHOD = "DELETE"
ROUTE = "/api/v1/instances/{instance_id}"
PATH = "/api/v1/instances/abc-123"
ATTRIBUTES_MAX = 8

HEADERS = {
    "host": "api.example.com",
    "user-agent": "curl/8.5.0",
    "accept": "*/*",
    "authorization": "Bearer made-up",
    "x-request-id": "7d0c1d6e-2f0f-4b58-9a53-0b8d2f6f2d10",
}
EXTRA = {f"x-attribute-{number}": f"value-{number}" for number in range(1, ATTRIBUTES_MAX + 1)}
"""Sent always; how many of them are recorded is for the policy."""

app = FastAPI(title="growth")


@app.delete(ROUTE, status_code=204)
async def delete_instance(instance_id: str) -> None:  # noqa: ARG001 - as the route has it
    """Do what a handler must do for its record, and nothing else."""
    audit.set_actor("alice@example.com")


@app.get("/health")
async def check_health() -> None:
    """Say that it runs; there is no record of it."""


audit.instrument(app)
