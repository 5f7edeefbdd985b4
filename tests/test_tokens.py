"""A token that a client puts where no secret belongs is in no attribute of the record."""

from __future__ import annotations

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import tron_audit_otel as audit
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.redact import Redactor
from tron_audit_otel.testing import capture

TOKEN = "gh" + "p_" + "A1b2C3d4E5" * 4
KEY = "k" * 32


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/reset/{token}")
    def reset(token: str) -> None: ...

    @app.get("/login")
    def login() -> None:
        audit.claim_actor(TOKEN)
        audit.annotate(resource=f"links/{TOKEN}/x")

    @app.get("/acts")
    def acts() -> None:
        audit.set_actor(TOKEN)
        audit.record(action="DELETE", resource=f"links/{TOKEN}")

    return app


@pytest.mark.parametrize(
    ("path", "agent", "masked"),
    [
        pytest.param(f"/reset/{TOKEN}", "x", {"url.path", "audit.resource", "audit.target.id"}, id="path"),
        pytest.param(f"/none/{TOKEN}", "x", {"url.path", "audit.resource"}, id="no-route"),
        pytest.param("/reset/x", f"agent {TOKEN}", {"user_agent.original"}, id="user-agent"),
        pytest.param("/login", "x", {"audit.actor.claimed", "audit.resource", "audit.target.type"}, id="told"),
        pytest.param("/acts", "x", {"audit.actor.id", "user.id", "audit.resource", "audit.target.id"}, id="actor"),
    ],
)
def test_a_token_is_masked_wherever_it_stands(path: str, agent: str, masked: set[str]) -> None:
    app = make_app()
    with capture(app, AuditConfig(enabled=True, hash_key=KEY)) as trail:
        TestClient(app).get(path, headers={"user-agent": agent})
        records = trail.records
        bodies = [str(record.body) for record in trail.log_records]
    mask = Redactor(KEY).mask(TOKEN)
    assert TOKEN not in json.dumps([records, bodies])
    found = {name for record in records for name, value in record.items() if mask in str(value)}
    assert found == masked


def test_a_token_that_only_a_parameter_shows_is_masked_there() -> None:
    app = make_app()
    with capture(app) as trail:
        TestClient(app).get(f"/reset/%67{TOKEN[1:]}")
    assert trail.last["audit.resource"] == "reset/[masked]"
    assert trail.last["audit.target.id"] == "[masked]"
    assert trail.last["url.path"] == "/reset/[masked]"
