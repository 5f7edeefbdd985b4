"""What happens in a real platform API, and what an auditor wants to read of it.

Each test is a row of that table, run against the example API with its policy file. The source address behind proxies
is a table of its own, beside the code that reads forwarded headers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from examples import platform_api
from examples.platform_api.app import PORTAL, create_app
from tron_audit_otel import AuditConfig
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _pytest.mark import ParameterSet

    from tron_audit_otel.testing import Captured

POLICY = Path(platform_api.__file__).with_name("policy.yaml")
PATH_CHARACTERS_MAX = 1024
ALICE, BOB = "alice@example.com", "bob@example.com"
SHOP = "/api/v1/webapps/web-shop/pods/shop-0"
EXECUTOR = "/api/v1/webapps/web-shop/pods/executor-0"
MAIL = "/api/v1/workers/work-mail/pods/mail-0"

SECRETS = ("-password", "wrong-guess", "-secret", "hunter2", "code-of-alice", "sso-state", "cluster-token")
"""Parts of the passwords, tokens and values that pass through the API in these tests: no record may have one."""

FACTS = {
    "name": "event_name",
    "actor": "audit.actor.id",
    "actor_type": "audit.actor.type",
    "claimed": "audit.actor.claimed",
    "action": "audit.action",
    "resource": "audit.resource",
    "outcome": "audit.outcome",
    "status": "http.response.status_code",
    "error": "error.type",
    "route": "http.route",
    "path": "url.path",
    "command": "process.command_args",
    "container": "container.name",
    "exit_code": "process.exit.code",
    "stdout": "audit.exec.stdout.text",
    "stderr": "audit.exec.stderr.text",
}


@dataclass
class Api:
    """The example API with a client, and the records that it has left behind."""

    client: TestClient
    captured: Captured

    def send(self, method: str, path: str, as_: str | None = None, machine: str | None = None, **request: Any) -> int:
        """Send a request as a user, as a machine with its API token, or as nobody; return the answer's status."""
        headers = request.pop("headers", {})
        if as_ is not None:
            headers |= self.session(as_)
        if machine is not None:
            headers |= {"X-Api-Token": f"{machine}-secret"}
        return self.client.request(method, path, headers=headers, **request).status_code

    def session(self, name: str) -> dict[str, str]:
        """Return the header of a user who has logged in."""
        return {"Authorization": f"Bearer {self.log_in(name)['access_token']}"}

    def log_in(self, name: str) -> dict[str, str]:
        """Log in as a user of the seed, and leave no record of it."""
        login = {"email": f"{name}@example.com", "password": f"{name}-password"}
        tokens: dict[str, str] = self.client.post("/api/v1/auth/login", json=login).json()
        self.captured.clear()
        return tokens

    def run(self, pod: str, *command: str, as_: str = "alice") -> int:
        """Run a command in a pod."""
        return self.send("POST", f"{pod}/exec", as_, json={"command": command, "container_name": "app"})

    def records(self) -> list[dict[str, Any]]:
        """Return the attributes of each record, and its name; none of them may have a secret in it."""
        found = [dict(each.attributes or {}) | {"event_name": each.event_name} for each in self.captured.log_records]
        everything = json.dumps([found, [each.body for each in self.captured.log_records]], default=str)
        assert not [secret for secret in SECRETS if secret in everything]
        return found

    def record(self) -> dict[str, Any]:
        """Return the record, of which there must be exactly one."""
        found = self.records()
        assert len(found) == 1, found
        return found[0]


@pytest.fixture
def api() -> Iterator[Api]:
    app = create_app()
    with (
        capture(app, AuditConfig(enabled=True, policy_file=POLICY)) as captured,
        TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client,
    ):
        yield Api(client, captured)


def row(happens: str, wanted: str, act: Callable[[Api], int], **facts: object) -> ParameterSet:
    """A row of the table: what happens, what the auditor wants, how it is done, what the record must say."""
    return pytest.param(act, facts, id=f"{happens} / {wanted}")


def by_alice(action: str, resource: str, outcome: str = "success", **facts: object) -> dict[str, object]:
    """Return the facts of something that alice did."""
    return {"actor": ALICE, "actor_type": "user", "action": action, "resource": resource, "outcome": outcome} | facts


def by_nobody(action: str, resource: str, **facts: object) -> dict[str, object]:
    """Return the facts of something that failed because nobody was logged in."""
    return {
        "actor": None,
        "actor_type": "anonymous",
        "action": action,
        "resource": resource,
        "outcome": "failure",
    } | facts


ROWS = (
    row(
        "login",
        "that user, LOGIN",
        lambda api: api.send("POST", "/api/v1/auth/login", json={"email": ALICE, "password": "alice-password"}),
        **by_alice("LOGIN", f"users/{ALICE}", status=200),
    ),
    row(
        "login by form in a sync endpoint",
        "that user, LOGIN",
        lambda api: api.send("POST", "/api/v1/auth/login/form", data={"username": ALICE, "password": "alice-password"}),
        **by_alice("LOGIN", f"users/{ALICE}", status=200),
    ),
    row(
        "token refresh",
        "that user, LOGIN",
        lambda api: api.send(
            "POST", "/api/v1/auth/refresh", json={"refresh_token": api.log_in("alice")["refresh_token"]}
        ),
        **by_alice("LOGIN", f"users/{ALICE}", status=200),
    ),
    row(
        "login refused with 401",
        "anonymous, the claimed e-mail kept apart, failure",
        lambda api: api.send("POST", "/api/v1/auth/login", json={"email": ALICE, "password": "wrong-guess"}),
        **by_nobody("LOGIN", f"users/{ALICE}", status=401, claimed=ALICE),
    ),
    row(
        "login by form refused with 401",
        "anonymous, the claimed e-mail kept apart, failure",
        lambda api: api.send("POST", "/api/v1/auth/login/form", data={"username": ALICE, "password": "wrong-guess"}),
        **by_nobody("LOGIN", f"users/{ALICE}", status=401, claimed=ALICE),
    ),
    row(
        "SSO callback answers 302",
        "the user, LOGIN, never the query",
        lambda api: api.send("GET", "/api/v1/auth/sso/callback?code=code-of-alice&state=sso-state"),
        **by_alice("LOGIN", f"users/{ALICE}", status=302, path="/api/v1/auth/sso/callback"),
    ),
    row(
        "unhandled exception",
        "the actor, failure",
        lambda api: api.send("GET", "/api/v1/instances/inst-idle/cost", "alice"),
        **by_alice("READ", "instances/inst-idle", "failure", status=500, error="ZeroDivisionError"),
    ),
    row(
        "exec refused by a dependency",
        "EXEC with its command, failure",
        lambda api: api.run(SHOP, "cat", "/etc/shadow", as_="bob"),
        **by_alice("EXEC", SHOP.removeprefix("/api/v1/"), "failure", actor=BOB, status=403),
        command=("cat", "/etc/shadow"),
        container="app",
    ),
    row(
        "exec refused before login",
        "EXEC with its command, failure",
        lambda api: api.send("POST", f"{SHOP}/exec", json={"command": ["cat", "/etc/shadow"], "container_name": "app"}),
        **by_nobody("EXEC", SHOP.removeprefix("/api/v1/"), status=401),
        command=("cat", "/etc/shadow"),
        container="app",
    ),
    row(
        "exec refused by validation",
        "EXEC with its command, failure",
        lambda api: api.send("POST", f"{SHOP}/exec", "alice", json={"command": ["ls", "/app"], "container_name": 7}),
        **by_alice("EXEC", SHOP.removeprefix("/api/v1/"), "failure", status=422),
        command=("ls", "/app"),
    ),
    row(
        "exec in a pod that is not there",
        "EXEC with its command, failure",
        lambda api: api.run("/api/v1/webapps/web-shop/pods/gone-0", "ls", "/app"),
        **by_alice("EXEC", "webapps/web-shop/pods/gone-0", "failure", status=404),
        command=("ls", "/app"),
        container="app",
    ),
    row(
        "exec",
        "command, container, output, return code",
        lambda api: api.run(SHOP, "ls", "/app"),
        name="tron.audit.exec",
        **by_alice("EXEC", SHOP.removeprefix("/api/v1/"), status=200),
        command=("ls", "/app"),
        container="app",
        stdout="app.py\nrequirements.txt\n",
        stderr="",
        exit_code=0,
    ),
    row(
        "exec that sets audit_exec_payload",
        "command, container, output, return code",
        lambda api: api.run(MAIL, "ls", "/app"),
        name="tron.audit.exec",
        **by_alice("EXEC", MAIL.removeprefix("/api/v1/"), status=200),
        command=("ls", "/app"),
        container="app",
        stdout="app.py\nrequirements.txt\n",
        stderr="",
        exit_code=0,
    ),
    row(
        "exec whose command failed, answered with 200",
        "return code 1, failure",
        lambda api: api.run(SHOP, "cat", "/missing"),
        **by_alice("EXEC", SHOP.removeprefix("/api/v1/"), "failure", status=200),
        exit_code=1,
        stderr="cat: /missing: No such file or directory\n",
    ),
    row(
        "exec whose command failed, in audit_exec_payload",
        "return code 1, failure",
        lambda api: api.run(MAIL, "cat", "/missing"),
        **by_alice("EXEC", MAIL.removeprefix("/api/v1/"), "failure", status=200),
        exit_code=1,
        stderr="cat: /missing: No such file or directory\n",
    ),
    row(
        "exec that timed out",
        "EXEC with its command, failure",
        lambda api: api.run(SHOP, "sleep", "infinity"),
        **by_alice("EXEC", SHOP.removeprefix("/api/v1/"), "failure", status=504),
        command=("sleep", "infinity"),
        exit_code=None,
    ),
    row(
        "exec that timed out, in audit_exec_payload",
        "EXEC with its command, failure",
        lambda api: api.run(MAIL, "sleep", "infinity"),
        **by_alice("EXEC", MAIL.removeprefix("/api/v1/"), "failure", status=500),
        command=("sleep", "infinity"),
        exit_code=None,
    ),
    row(
        "logs of a pod named executor-0",
        "READ",
        lambda api: api.send("GET", f"{EXECUTOR}/logs?lines=2", "alice"),
        name="tron.audit.request",
        **by_alice("READ", EXECUTOR.removeprefix("/api/v1/"), status=200),
    ),
    row(
        "delete of a pod named executor-0",
        "DELETE",
        lambda api: api.send("DELETE", EXECUTOR, "alice"),
        name="tron.audit.request",
        **by_alice("DELETE", EXECUTOR.removeprefix("/api/v1/"), status=204),
    ),
    row(
        "POST .../sync",
        "UPDATE, by policy",
        lambda api: api.send("POST", "/api/v1/instances/inst-prod/sync", "alice"),
        **by_alice("UPDATE", "instances/inst-prod", status=200),
    ),
    row(
        "POST .../settings/reset",
        "UPDATE, by policy",
        lambda api: api.send("POST", "/api/v1/settings/reset", "alice"),
        **by_alice("UPDATE", "settings/reset", status=200),
    ),
    row(
        "pod name containing %0A",
        "percent-encoded, not another pod's name",
        lambda api: api.send("GET", "/api/v1/webapps/web-shop/pods/shop-0%0A/logs", "alice"),
        **by_alice("READ", "webapps/web-shop/pods/shop-0%0A", "failure", status=404),
        path="/api/v1/webapps/web-shop/pods/shop-0%0A/logs",
    ),
    row(
        "PUT /auth/me changes the e-mail",
        "the actor as authenticated, before the change",
        lambda api: api.send("PUT", "/api/v1/auth/me", "alice", json={"email": "eve@example.com"}),
        **by_alice("UPDATE", f"users/{ALICE}", status=200),
    ),
    row(
        "API token named like a user",
        "a token, with its id",
        lambda api: api.send("GET", "/api/v1/users/", machine="tok-3"),
        **by_alice("READ", "users", actor="tok-3", actor_type="token", status=200),
    ),
    row(
        "API token named like a user, in audit_actor",
        "a token, not that user",
        lambda api: api.send("GET", "/api/v1/instances/", machine="tok-3"),
        **by_alice("READ", "instances", actor=f"token:{ALICE}", actor_type="token", status=200),
    ),
    row(
        "unknown API token",
        "anonymous",
        lambda api: api.send("GET", "/api/v1/users/", machine="stolen"),
        **by_nobody("READ", "users", status=401),
    ),
    row(
        "secrets read",
        "READ, never filtered out",
        lambda api: api.send("GET", "/api/v1/secrets/database-url", "alice"),
        **by_alice("READ", "secrets/database-url", status=200),
    ),
    row(
        "cluster created with its token in the body and in the answer",
        "no bodies in records",
        lambda api: api.send("POST", "/api/v1/clusters/", "alice", json={"api_address": "a", "token": "cluster-token"}),
        **by_alice("CREATE", "clusters", status=201),
    ),
    row(
        "404 probe",
        "anonymous, bounded path, by policy",
        lambda api: api.send("GET", "/wp-admin/" + "x" * 5000),
        **by_nobody("READ", "unrouted", status=404, route=None),
        path="/wp-admin/" + "x" * (PATH_CHARACTERS_MAX - len("/wp-admin/…")) + "…",
    ),
    row(
        "405",
        "anonymous, bounded path, by policy",
        lambda api: api.send("PATCH", "/api/v1/settings/"),
        **by_nobody("UPDATE", "unrouted", status=405, path="/api/v1/settings/"),
    ),
    row(
        "another tenant's organization",
        "the actor, failure",
        lambda api: api.send("GET", "/api/v1/organizations/globex", "alice"),
        **by_alice("READ", "organizations/globex", "failure", status=403),
    ),
    row(
        "validation error in a sync endpoint",
        "the actor, failure",
        lambda api: api.send("POST", "/api/v1/instances/", "alice", json={}),
        **by_alice("CREATE", "instances", "failure", status=422),
    ),
    row(
        "mail sent in the background after the answer",
        "one record, of the request",
        lambda api: api.send(
            "POST", "/api/v1/organizations/acme/invitations", "alice", json={"email": "x@example.com"}
        ),
        **by_alice("CREATE", "organizations/acme", status=202),
    ),
    row(
        "mounted sub-application",
        "one record, with the whole route",
        lambda api: api.send("POST", "/reports/exports", "alice"),
        **by_alice("CREATE", "reports/exports", status=201, route="/reports/exports"),
    ),
)

UNRECORDED: dict[str, Callable[[Api], int]] = {
    "missing slash": lambda api: api.send("POST", "/api/v1/instances", "alice", json={"name": "new"}),
    "CORS preflight": lambda api: api.send(
        "OPTIONS",
        "/api/v1/instances/inst-prod",
        headers={"Origin": PORTAL, "Access-Control-Request-Method": "DELETE"},
    ),
    "docs": lambda api: api.send("GET", "/docs"),
    "OpenAPI schema": lambda api: api.send("GET", "/openapi.json"),
    "docs redirect": lambda api: api.send("GET", "/docs/oauth2-redirect"),
    "health": lambda api: api.send("GET", "/health"),
    "setup polling": lambda api: api.send("GET", "/api/v1/setup/status"),
}


@pytest.mark.parametrize(("act", "facts"), ROWS)
def test_row(api: Api, act: Callable[[Api], int], facts: dict[str, object]) -> None:
    status = act(api)
    record = api.record()
    assert {name: record.get(FACTS[name]) for name in facts} == facts
    assert record["http.response.status_code"] == status


@pytest.mark.parametrize("happens", UNRECORDED)
def test_row_without_a_record(api: Api, happens: str) -> None:
    assert UNRECORDED[happens](api) < 400
    assert api.records() == []


def test_the_request_that_follows_a_slash_redirect_is_recorded_once(api: Api) -> None:
    body = {"name": "new"}
    answer = api.client.post("/api/v1/instances", json=body, headers=api.session("alice"), follow_redirects=True)
    assert [each.status_code for each in (*answer.history, answer)] == [307, 201]
    assert api.record()["audit.resource"] == "instances"


def test_two_tokens_of_one_name_are_two_actors(api: Api) -> None:
    for token in ("tok-1", "tok-2"):
        api.send("GET", "/api/v1/users/", machine=token)
    assert [record["audit.actor.id"] for record in api.records()] == ["tok-1", "tok-2"]


def test_the_actor_after_a_change_of_e_mail_is_the_new_one(api: Api) -> None:
    session = api.session("alice")
    api.send("PUT", "/api/v1/auth/me", headers=session, json={"email": "alice@acme.example"})
    api.send("GET", "/api/v1/auth/me", headers=session)
    assert [record["audit.actor.id"] for record in api.records()] == [ALICE, "alice@acme.example"]


def test_a_header_is_recorded_where_a_rule_names_it_and_nowhere_else(api: Api) -> None:
    session = api.session("alice") | {"X-Request-Id": "req-1", "X-Other": "cluster-token"}
    api.send("POST", "/api/v1/clusters/", headers=session, json={"api_address": "a", "token": "b"})
    api.send("GET", "/api/v1/clusters/", headers=session)
    created, read = api.records()
    assert created["http.request.header.x-request-id"] == ("req-1",)
    assert not [name for name in read if name.startswith("http.request.header.")]


def test_what_a_background_task_deletes_has_a_record_of_its_own(api: Api) -> None:
    assert api.send("POST", "/api/v1/instances/inst-prod/backups", "alice") == 202
    deleted, created = sorted(api.records(), key=lambda record: str(record["audit.action"]), reverse=True)
    assert (created["audit.actor.id"], created["audit.resource"]) == (ALICE, "instances/inst-prod")
    assert (deleted["audit.actor.id"], deleted["audit.actor.type"]) == ("backup-retention", "system")
    assert (deleted["event_name"], deleted["audit.resource"]) == ("tron.audit.event", "backups/backup-1")


def test_long_output_is_cut_visibly(api: Api) -> None:
    assert api.run(SHOP, "find", "/") == 200
    record = api.record()
    assert len(record["audit.exec.stdout.text"]) == 4096
    assert record["audit.exec.stdout.truncated"] is True
    assert record["audit.exec.stdout.length"] == len("".join(f"/usr/lib/file-{n}\n" for n in range(2_000)))


def test_a_terminal_over_a_websocket_is_one_exec(api: Api) -> None:
    with api.client.websocket_connect(f"{SHOP}/terminal", headers=api.session("alice")) as terminal:
        terminal.send_json({"command": ["whoami"], "container_name": "app"})
        assert terminal.receive_json()["stdout"] == "app\n"
        assert terminal.receive()["type"] == "websocket.close"  # who leaves before it cuts the handler off
    record = api.record()
    facts = by_alice("EXEC", SHOP.removeprefix("/api/v1/"), status=101, command=("whoami",), exit_code=0)
    assert {name: record.get(FACTS[name]) for name in facts} == facts


def test_a_terminal_that_is_refused_is_one_failed_exec(api: Api) -> None:
    with (
        pytest.raises(WebSocketDenialResponse),
        api.client.websocket_connect(f"{SHOP}/terminal", headers=api.session("bob")),
    ):
        pass
    record = api.record()
    facts = by_alice("EXEC", SHOP.removeprefix("/api/v1/"), "failure", actor=BOB, status=403)
    assert {name: record.get(FACTS[name]) for name in facts} == facts


def test_the_example_is_not_audited_unless_it_is_asked_to_be() -> None:
    app = create_app()
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "healthy"}
