"""The story that the demo plays: real HTTP requests, each with the records that it must leave behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable

ALICE = "alice@example.com"
BOB = "bob@example.com"
NOBODY = "anonymous"
DELETED = "webapps/web-shop"
"""What alice deletes: the record that the story ends with."""
DELETED_IN_OUTAGE = "instances/inst-idle"
"""What she deletes while the Collector is dead."""
SHOP_POD = "/webapps/web-shop/pods/shop-0"
REQUEST_SECONDS_MAX = 60.0
ENDLESS_LINES = 100_000  # at 50 lines a second, longer than anybody waits: the client leaves


@dataclass(frozen=True, order=True)
class Fact:
    """What an auditor must find: a record that says this."""

    actor: str
    action: str
    resource: str
    status: str
    """The HTTP status; empty for a fact that is no request."""
    outcome: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.actor} {self.action} {self.resource} {self.status or '-'} {self.outcome}"


def _of_the_trail(action: str) -> Fact:
    return Fact("tron_audit_otel", action, "audit/trail", "", "success")


START = _of_the_trail("START")
"""Each process of the API says that its part of the trail begins."""
ADOPT = _of_the_trail("ADOPT")
"""It took over what a dead one had on disk."""


class TrafficError(Exception):
    """The API gave no answer at all; the message says to what."""


@dataclass(frozen=True)
class Step:
    """One thing that happens, and the facts that it must leave behind: one, or none, or two."""

    title: str
    act: Callable[[], object]
    facts: tuple[Fact, ...]

    def play(self) -> None:
        """Do it. A refusal, or a crash that is answered with 500, is part of the story.

        Raises:
            TrafficError: There was no answer.
        """
        try:
            self.act()
        except (httpx.HTTPError, WebSocketException, OSError) as error:
            raise TrafficError(f"{self.title}: the API gave no answer ({type(error).__name__}: {error})") from error


class Client:
    """Somebody who uses the API, and remembers the session."""

    def __init__(self, base_url: str, headers: dict[str, str] | None = None) -> None:
        """Talk to the API at ``base_url``: as nobody, until logged in, or as the headers say."""
        self.http = httpx.Client(
            base_url=f"{base_url}/api/v1",
            headers=headers,
            timeout=REQUEST_SECONDS_MAX,
            # uvicorn closes a connection after a crash, and the next request on it would find it closing.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # a proxy of the environment must not get between this machine and itself
        )

    def send(self, method: str, path: str, body: Any = None) -> httpx.Response:  # noqa: ANN401 - any JSON
        """Send a request and wait for the whole answer."""
        return self.http.request(method, path, json=body)

    def log_in(self, email: str, password: str) -> None:
        """Log in, and stay so if it worked."""
        answer = self.send("POST", "/auth/login", {"email": email, "password": password})
        if answer.is_success:
            self.http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def run(self, pod: str, *command: str) -> None:
        """Run a command in a pod."""
        self.send("POST", f"{pod}/exec", {"command": command, "container_name": "app"})

    def open_terminal(self, pod: str, *command: str) -> None:
        """Run a command in a pod over a WebSocket."""
        url = f"{self.http.base_url.copy_with(scheme='ws')}{pod.lstrip('/')}/terminal"
        session = {"Authorization": self.http.headers["Authorization"]}
        with connect(url, additional_headers=session, proxy=None) as websocket:
            websocket.send(json.dumps({"command": command, "container_name": "app"}))
            websocket.recv()

    def leave_stream(self, path: str) -> None:
        """Begin to read a stream, and hang up."""
        with self.http.stream("GET", path) as answer:
            next(answer.iter_text())


def story(base_url: str) -> tuple[Step, ...]:
    """Return everything that happens, in order."""
    alice, bob, nobody = Client(base_url), Client(base_url), Client(base_url)
    pipeline = Client(base_url, {"X-Api-Token": "tok-1-secret"})
    return (
        *_logins(alice, bob),
        *_changes(alice),
        *_commands(alice, bob, pipeline),
        *_refusals(alice, bob, nobody),
        *_endings(alice),
        *_noise(alice, nobody),
    )


def outage(base_url: str) -> tuple[Step, ...]:
    """Return what alice does while the Collector is dead. She logs in for it: this needs no story before it."""
    alice = Client(base_url)
    return (
        _alice_logs_in(alice),
        _step(
            "alice changes a secret",
            lambda: alice.send("PUT", "/secrets/database-url", {"value": "never-in-a-record"}),
            (ALICE, "UPDATE", "secrets/database-url", 204, "success"),
        ),
        _step(
            "alice runs a command in a pod",
            lambda: alice.run("/workers/work-mail/pods/mail-0", "whoami"),
            (ALICE, "EXEC", "workers/work-mail/pods/mail-0", 200, "success"),
        ),
        _step(
            "alice deletes an instance",
            lambda: alice.send("DELETE", "/instances/inst-idle"),
            (ALICE, "DELETE", DELETED_IN_OUTAGE, 204, "success"),
        ),
    )


def refusal(base_url: str) -> tuple[Step, ...]:
    """Return what alice does while a SIEM refuses its records. It needs no story before it either."""
    alice = Client(base_url)
    return (
        _alice_logs_in(alice),
        _step(
            "alice runs a command in a pod",
            lambda: alice.run("/workers/work-mail/pods/mail-0", "whoami"),
            (ALICE, "EXEC", "workers/work-mail/pods/mail-0", 200, "success"),
        ),
    )


def _alice_logs_in(alice: Client) -> Step:
    return _step(
        "alice logs in",
        lambda: alice.log_in(ALICE, "alice-password"),
        (ALICE, "LOGIN", f"users/{ALICE}", 200, "success"),
    )


def facts(steps: tuple[Step, ...]) -> tuple[Fact, ...]:
    """Return all that the steps leave behind."""
    return tuple(fact for step in steps for fact in step.facts)


def _step(title: str, act: Callable[[], object], *facts: tuple[str, str, str, int | None, str]) -> Step:
    return Step(
        title,
        act,
        tuple(
            Fact(actor, action, resource, "" if status is None else str(status), outcome)
            for actor, action, resource, status, outcome in facts
        ),
    )


def _logins(alice: Client, bob: Client) -> tuple[Step, ...]:
    return (
        _step(
            "somebody tries alice's account with a wrong password",
            lambda: alice.log_in(ALICE, "wrong"),
            (f"{NOBODY} ({ALICE}?)", "LOGIN", f"users/{ALICE}", 401, "failure"),
        ),
        _step(
            "alice logs in",
            lambda: alice.log_in(ALICE, "alice-password"),
            (ALICE, "LOGIN", f"users/{ALICE}", 200, "success"),
        ),
        _step(
            "bob logs in",
            lambda: bob.log_in(BOB, "bob-password"),
            (BOB, "LOGIN", f"users/{BOB}", 200, "success"),
        ),
    )


def _changes(alice: Client) -> tuple[Step, ...]:
    instance = {"name": "prod", "replicas": 4}
    cluster = {"api_address": "https://10.0.0.1:6443", "token": "never-in-a-record"}
    return (
        _step(
            "alice lists the instances",
            lambda: alice.send("GET", "/instances/"),
            (ALICE, "READ", "instances", 200, "success"),
        ),
        _step(
            "alice reads a secret",
            lambda: alice.send("GET", "/secrets/database-url"),
            (ALICE, "READ", "secrets/database-url", 200, "success"),
        ),
        _step(
            "alice connects a cluster",
            lambda: alice.send("POST", "/clusters/", cluster),
            (ALICE, "CREATE", "clusters", 201, "success"),
        ),
        _step(
            "alice resizes an instance",
            lambda: alice.send("PUT", "/instances/inst-prod", instance),
            (ALICE, "UPDATE", "instances/inst-prod", 200, "success"),
        ),
        _step(
            "alice brings the clusters in line",
            lambda: alice.send("POST", "/instances/inst-prod/sync"),
            (ALICE, "UPDATE", "instances/inst-prod", 200, "success"),
        ),
        _step(
            "alice makes a backup; the platform deletes the oldest",
            lambda: alice.send("POST", "/instances/inst-prod/backups"),
            (ALICE, "CREATE", "instances/inst-prod", 202, "success"),
            ("backup-retention", "DELETE", "backups/backup-1", None, "success"),
        ),
    )


def _commands(alice: Client, bob: Client, pipeline: Client) -> tuple[Step, ...]:
    shop, mail = "webapps/web-shop/pods/shop-0", "workers/work-mail/pods/mail-0"
    return (
        _step(
            "alice runs a command in a pod",
            lambda: alice.run(SHOP_POD, "ls", "/app"),
            (ALICE, "EXEC", shop, 200, "success"),
        ),
        _step(
            "alice runs a command that fails, and the API answers 200",
            lambda: alice.run(SHOP_POD, "cat", "/missing"),
            (ALICE, "EXEC", shop, 200, "failure"),
        ),
        _step(
            "alice runs a command that never ends",
            lambda: alice.run(SHOP_POD, "sleep", "infinity"),
            (ALICE, "EXEC", shop, 504, "failure"),
        ),
        _step(
            "bob runs a command, and may not",
            lambda: bob.run(SHOP_POD, "cat", "/etc/shadow"),
            (BOB, "EXEC", shop, 403, "failure"),
        ),
        _step(
            "a build pipeline runs a command with its API token",
            lambda: pipeline.run("/workers/work-mail/pods/mail-0", "whoami"),
            ("token:ci", "EXEC", mail, 200, "success"),
        ),
        _step(
            "alice runs a command over a WebSocket",
            lambda: alice.open_terminal(SHOP_POD, "find", "/"),
            (ALICE, "EXEC", shop, 101, "success"),
        ),
    )


def _refusals(alice: Client, bob: Client, nobody: Client) -> tuple[Step, ...]:
    return (
        _step(
            "bob looks at another organization",
            lambda: bob.send("GET", "/organizations/globex"),
            (BOB, "READ", "organizations/globex", 403, "failure"),
        ),
        _step(
            "alice sends an instance without a name",
            lambda: alice.send("POST", "/instances/", {}),
            (ALICE, "CREATE", "instances", 422, "failure"),
        ),
        _step(
            "nobody in particular asks for users",
            lambda: nobody.send("GET", "/users/"),
            (NOBODY, "READ", "users", 401, "failure"),
        ),
        _step(
            "nobody in particular tries a path",
            lambda: nobody.send("GET", "/.env"),
            (NOBODY, "READ", "unrouted", 404, "failure"),
        ),
    )


def _endings(alice: Client) -> tuple[Step, ...]:
    return (
        _step(
            "alice asks what a replica costs, and the API crashes",
            lambda: alice.send("GET", "/instances/inst-idle/cost"),
            (ALICE, "READ", "instances/inst-idle", 500, "failure"),
        ),
        _step(
            "alice reads a log to its end",
            lambda: alice.send("GET", f"{SHOP_POD}/logs"),
            (ALICE, "READ", "webapps/web-shop/pods/shop-0", 200, "success"),
        ),
        _step(
            "alice follows a log, and hangs up",
            lambda: alice.leave_stream(f"{SHOP_POD}/logs?lines={ENDLESS_LINES}"),
            (ALICE, "READ", "webapps/web-shop/pods/shop-0", 200, "unknown"),
        ),
        _step(
            "alice deletes a webapp",
            lambda: alice.send("DELETE", "/webapps/web-shop"),
            (ALICE, "DELETE", DELETED, 204, "success"),
        ),
    )


def _noise(alice: Client, nobody: Client) -> tuple[Step, ...]:
    """Return what nobody wants a record of."""
    return (
        _step("the portal polls whether the platform is set up", lambda: nobody.send("GET", "/setup/status")),
        _step("a load balancer asks for health", lambda: nobody.http.get(nobody.http.base_url.join("/health"))),
        _step("somebody reads the documentation", lambda: nobody.http.get(nobody.http.base_url.join("/docs"))),
        _step("a URL lacks its slash: a redirect", lambda: alice.send("GET", "/instances")),
    )
