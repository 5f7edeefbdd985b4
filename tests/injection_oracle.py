"""What the record of a hostile request must hold, worked out from what was sent and not from what was recorded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from tests.injection import PATHS
from tron_audit_otel import redact
from tron_audit_otel.policy import HTTP_METHODS
from tron_audit_otel.resource import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.injection import Ask

LINE_MAX = 1_024
EXEC_MAX = 4_096
SENTENCE_MAX, PART_MAX = 2_048, 256
ESCAPE_MAX = 10
"""Characters of the longest escape: so many may be missing where a text was cut, for none is cut in two."""
_PARTIAL = re.compile(rb"%[0-9A-Fa-f]?$")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_ACTIONS = {"GET": "READ", "POST": "CREATE", "PUT": "UPDATE", "PATCH": "UPDATE", "DELETE": "DELETE", "HEAD": "READ"}


@dataclass(frozen=True)
class Line:
    """A text: on one line, bounded, and to be had back as it was; of one that was cut, the beginning."""

    sent: str
    max: int = LINE_MAX
    keep: str = ""
    is_cut: bool | None = None
    """None: by the mark at its end."""
    slack: int = 0

    def holds(self, found: Any) -> bool:
        if not isinstance(found, str) or len(found) > self.max or not _is_printable(found, self.keep):
            return False
        if not self.is_cut and is_shown(self.sent, found):
            return True
        head = found if self.is_cut else found.removesuffix(redact.CUT)
        is_cut = self.is_cut if self.is_cut is not None else head != found
        is_full = len(found) > self.max - ESCAPE_MAX - self.slack
        return is_cut and is_full and is_shown(self.sent, head, whole=False)


@dataclass(frozen=True)
class Encoded:
    """A part of a URL, percent-encoded."""

    sent: bytes
    max: int = LINE_MAX
    is_segment: bool = False

    def holds(self, found: Any) -> bool:
        if not isinstance(found, str) or len(found) > self.max or (self.is_segment and "/" in found):
            return False
        head = found.rstrip(redact.CUT)  # of a part that was cut before, there are two
        if not (head.isascii() and _is_printable(head)):
            return False
        if head == found:
            return unquote_to_bytes(found) == self.sent
        return len(found) > self.max - ESCAPE_MAX and self.sent.startswith(
            unquote_to_bytes(_PARTIAL.sub(b"", head.encode()))
        )


@dataclass(frozen=True)
class Lines:
    """Several lines."""

    sent: tuple[str, ...]

    def holds(self, found: Any) -> bool:
        return (
            isinstance(found, list | tuple)
            and len(found) == len(self.sent)
            and all(Line(sent).holds(each) for sent, each in zip(self.sent, found, strict=True))
        )


@dataclass(frozen=True)
class Command:
    """A command's arguments, as many as there is room for."""

    sent: tuple[str, ...]
    is_cut: bool

    def holds(self, found: Any) -> bool:
        if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
            return False
        used = sum(map(len, found)) + len(found)
        if used > EXEC_MAX + 1 or not all(map(_is_printable, found)):
            return False
        if not self.is_cut:
            return len(found) == len(self.sent) and all(map(is_shown, self.sent, found))
        *whole, last = found
        return (
            used > EXEC_MAX - ESCAPE_MAX
            and all(map(is_shown, self.sent, whole))
            and Line(self.sent[len(whole)], max=len(last)).holds(last)
        )


@dataclass(frozen=True)
class Kind:
    """A value of a type."""

    of: type | tuple[type, ...]

    def holds(self, found: Any) -> bool:
        return isinstance(found, self.of) and not (isinstance(found, bool) and self.of is int)


class _Uuid:
    def holds(self, found: Any) -> bool:
        return isinstance(found, str) and _UUID.fullmatch(found) is not None


BLANK = re.compile("[ \u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00013441\U00013442\U0001d159]")


def is_shown(sent: str, shown: str, *, whole: bool = True) -> bool:
    """Whether what is shown gives back what was sent, or how it begins, but for what was taken for a secret."""
    parts = [redact.unescape(part) for part in shown.split(redact.MASK)]
    if len(parts) == 1:
        return parts[0] == sent if whole else sent.startswith(parts[0])
    if redact.unescape(shown) == sent:  # the client wrote it
        return True
    masked = re.compile("(?s:.+?)".join(map(re.escape, parts)))
    return (masked.fullmatch if whole else masked.match)(sent) is not None


def _is_printable(text: str, keep: str = "") -> bool:
    return text.isprintable() or all(character.isprintable() or character in keep for character in text)


class Expected(NamedTuple):
    """A record: its event's name, and all its attributes: each by its value, or by what tells whether it `holds`."""

    event: str
    attributes: dict[str, Any]


def problems(ask: Ask, client: str, event: str, body: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Tells what of a record is not as it must be."""
    expected = expect(ask, client, found)
    if event != expected.event:
        yield f"is a {event}, not a {expected.event}"
    if found.keys() != expected.attributes.keys():
        yield f"has or lacks {sorted(found.keys() ^ expected.attributes.keys())}"
    for name, value in expected.attributes.items():
        if name not in found:
            continue
        if not (value.holds(found[name]) if hasattr(value, "holds") else _same(found[name], value)):
            yield f"{name} is {str(found[name])[:300]!r}, not {str(value)[:300]!r}"
    if body != sentence(found):
        yield f"says {body[:300]!r}, not {sentence(found)[:300]!r}"


def _same(found: Any, value: Any) -> bool:
    return type(found) is type(value) and bool(found == value)


def sentence(found: Mapping[str, Any], part_max: int | None = None) -> str:
    """Gives a record's sentence, by its attributes; of a long one the parts are cut."""

    def part(name: str) -> str:
        text = str(found.get(name, ""))
        text = text if part_max is None else redact.clipped(text, part_max)
        return text if name == "error.type" else BLANK.sub(lambda blank: quote(blank[0]), text)

    actor = part("audit.actor.id") or found["audit.actor.type"]
    if claimed := found.get("audit.actor.claimed"):
        actor += f" (claimed {encode(claimed)})"
    source = f" from {found['client.address']}" if "client.address" in found else ""
    end = ", ".join(part(name) for name in ("http.response.status_code", "error.type") if name in found)
    outcome = found["audit.outcome"] + (f" ({end})" if end else "")
    said = f"{actor} {found['audit.action']} {part('audit.resource') or '/'}{source}: {outcome}"
    return said if part_max is not None or len(said) <= SENTENCE_MAX else sentence(found, PART_MAX)


def expect(ask: Ask, client: str, found: Mapping[str, Any]) -> Expected:
    """Says what a request's record must be."""
    of_kind = {"exec": "tron.audit.exec", "run": "tron.audit.exec", "fact": "tron.audit.event"}
    attributes = {
        "audit.record.id": _Uuid(),
        "audit.schema.version": "1.0",
        "audit.sequence.number": Kind(int),
        "audit.duration_ms": Kind((float, int)),
        **_actor(ask, found),
        **_what(ask, found),
        **_result(ask),
    }
    if ask.kind not in ("fact", "run"):
        attributes |= _http(ask, client)
    if ask.kind in ("exec", "run"):
        attributes |= _execution(ask, found)
    return Expected(of_kind.get(ask.kind, "tron.audit.request"), attributes)


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _actor(ask: Ask, found: Mapping[str, Any]) -> dict[str, Any]:
    if ask.kind == "login":
        return {"audit.actor.type": "anonymous", "audit.actor.claimed": Line(_text(ask.claimed))}
    if ask.kind == "nowhere":
        return {"audit.actor.type": "anonymous"}
    if ask.kind == "run":
        return {"audit.actor.type": "system"}
    name = _text(ask.actor if ask.state_actor is None else ask.state_actor)
    if ask.state_actor is not None and not name:
        return {"audit.actor.type": "anonymous"}
    if name.startswith("token:"):
        return {"audit.actor.id": Line(name), "audit.actor.type": "token"}
    also = {"user.email" if "@" in str(found.get("audit.actor.id")) else "user.id": Line(name)} if name else {}
    return {"audit.actor.id": Line(name), "audit.actor.type": "user", **also}


def _what(ask: Ask, found: Mapping[str, Any]) -> dict[str, Any]:
    """The action, and what it was done to."""
    name = found.get("audit.resource", "")
    # As a server decodes it, which is what the application is routed by.
    end = ask.path.removeprefix(PATHS[ask.kind]).removesuffix("/things/7") if ask.kind in PATHS else ""
    decoded = end.encode("utf-8", "surrogatepass")
    action, resource, kind, target = _ACTIONS.get(ask.method, "OTHER"), b"", "", b""
    match ask.kind:
        case "item" if ask.resource is not None:
            return {"audit.action": _action(ask, action), **_named(ask.resource, name)}
        case "item":
            action, resource, kind, target = _action(ask, action), b"items/" + decoded, "items", decoded
        case "nowhere":
            return {"audit.action": action, "audit.resource": Encoded(_sent_path(ask).strip(b"/"))}
        case "exec":
            action, resource, kind, target = "EXEC", b"pods/web-0", "pods", b"web-0"
        case "login":
            claimed = str(found.get("audit.actor.claimed")).encode()
            action, resource, kind, target = "LOGIN", b"users/" + claimed, "users", claimed
        case "mounted":
            resource, kind, target = b"tenants/" + decoded + b"/things/7", "things", b"7"
        case "websocket":
            action, resource, kind, target = "READ", b"ws/" + decoded, "ws", decoded
        case "run" if ask.container:
            container = str(found.get("container.name")).encode()
            action, resource, kind, target = "EXEC", b"containers/" + container, "containers", container
        case "run":
            return {"audit.action": "EXEC", **_named("containers", name)}
        case _:
            return {"audit.action": "DELETE", **_named(ask.resource, name)}
    named = {"audit.resource": Encoded(resource), "audit.target.id": Encoded(target, is_segment=True)}
    return {"audit.action": action, "audit.target.type": kind, **named}


def _action(ask: Ask, by_method: str) -> str:
    if ask.action is None:
        return by_method
    return ask.action if re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", ask.action) else "OTHER"


def _named(sent: Any, found: str) -> dict[str, Any]:
    """A name that the application gives; its last two segments are type and id."""
    text = _text(sent)
    stripped = text.strip("/")
    parent, _, last = found.rpartition("/")
    parts = {"audit.target.type": parent.rpartition("/")[2] or None, "audit.target.id": last} if parent else {}
    parts = parts or {"audit.target.type": found or None}
    return {
        "audit.resource": Line(stripped, slack=len(text) - len(stripped)),
        **{name: value for name, value in parts.items() if value is not None},
    }


def _result(ask: Ask) -> dict[str, Any]:
    outcome = "success"
    if ask.kind in ("nowhere", "login") or (ask.kind == "exec" and ask.error_message is not None):
        outcome = "failure"
    if ask.kind == "item" and ask.outcome in ("failure", "unknown", "success"):
        outcome = ask.outcome
    return {"audit.outcome": outcome}


def _http(ask: Ask, client: str) -> dict[str, Any]:
    forwarding = {b"forwarded", b"x-forwarded-for"} & {name for name, _ in ask.headers}
    found: dict[str, Any] = {
        "client.address": client,
        "network.peer.address": client,
        "audit.source_ip.rule": "peer",
        "audit.source_ip.suspect": bool(forwarding),
        **({} if ask.user_agent is None else {"user_agent.original": Line(_header(ask.user_agent))}),
        "url.path": Encoded(_sent_path(ask)),
        "http.response.status_code": {"nowhere": 404, "login": 401, "websocket": 101}.get(ask.kind, 200),
        "http.request.method": ask.method if ask.method in HTTP_METHODS else "_OTHER",
    }
    if ask.kind == "websocket":
        found |= {"http.request.method": "GET", "audit.websocket.close_code": ask.close_code}
    elif ask.method not in HTTP_METHODS:
        found["http.request.method_original"] = Line(ask.method)
    parameter = {"item": "{item}", "websocket": "{room}", "mounted": "{tenant}/things/{thing}"}.get(ask.kind, "")
    if ask.kind == "exec":
        found["http.route"] = "/api/v1/pods/{pod}/exec"
    elif ask.kind != "nowhere":
        found["http.route"] = PATHS[ask.kind] + parameter
    if ask.kind == "item":
        for name in ("x-request-id", "x-forwarded-for", "referer", "cookie"):
            if values := tuple(_header(value) for key, value in ask.headers if key == name.encode()):
                found[f"http.request.header.{name}"] = Lines(values)
    return found


def _sent_path(ask: Ask) -> bytes:
    return unquote_to_bytes(ask.raw_path) if ask.end_decoded is None else ask.path.encode("utf-8", "surrogatepass")


def _header(value: bytes) -> str:
    return value.decode("latin-1")


def _execution(ask: Ask, found: Mapping[str, Any]) -> dict[str, Any]:
    command, container = ask.command, ask.container
    asked = dict(_asked(ask)) if ask.kind == "exec" else {}
    command = asked.get("command") if command is None else command
    container = asked.get("container") if container is None else container
    expected: dict[str, Any] = {}
    if command is not None:
        sent = tuple(map(_text, command)) if isinstance(command, list) else (_text(command),)
        is_cut = bool(found.get("audit.exec.command.truncated", False))
        expected["process.command_args"] = Command(sent, is_cut)
        if is_cut:
            expected["audit.exec.command.truncated"] = True
        if "audit.exec.command.masked" in found and redact.MASK in "".join(found.get("process.command_args", ())):
            expected["audit.exec.command.masked"] = Kind(int)
    if container is not None:
        expected["container.name"] = Line(_text(container))
    if ask.command is None and ask.error_message is None:
        return expected
    if ask.error_message is not None:
        expected["error.message"] = Line(_text(ask.error_message))
        expected["error.type"] = "exec_error" if ask.is_original else Line(_text(ask.error_type))
    return (
        expected
        | {"process.exit.code": 0}
        | _output("stdout", ask.stdout, found)
        | _output("stderr", ask.stderr, found)
    )


def _output(name: str, sent: str | bytes, found: Mapping[str, Any]) -> dict[str, Any]:
    text = _text(sent)
    raw = sent if isinstance(sent, bytes) else sent.encode("utf-8", "surrogatepass")
    shown = str(found.get(f"audit.exec.{name}.text"))
    is_cut = bool(found.get(f"audit.exec.{name}.truncated"))
    expected: dict[str, Any] = {
        f"audit.exec.{name}.text": Line(text, EXEC_MAX, keep="\n\t", is_cut=is_cut),
        f"audit.exec.{name}.length": len(text),
        f"audit.exec.{name}.truncated": is_cut if len(text) <= EXEC_MAX else True,
    }
    if f"audit.exec.{name}.sha256" not in found:  # whoever guesses a secret must not be able to check it
        return expected | ({f"audit.exec.{name}.masked": Kind(int)} if redact.MASK in shown else {})
    return expected | {f"audit.exec.{name}.sha256": hashlib.sha256(raw).hexdigest()}


def _asked(ask: Ask) -> Iterator[tuple[str, Any]]:
    """The command and the container that the request itself tells, the body's before the query's."""
    fields: dict[bytes, list[str]] = {}
    for pair in ask.query.split(b"&") if len(ask.query) <= 65_536 and ask.query.count(b"&") < 1_024 else ():
        key, _, value = (unquote_to_bytes(part) for part in pair.replace(b"+", b" ").partition(b"="))
        if value:
            fields.setdefault(key, []).append(value.decode("utf-8", "surrogateescape"))
    for place in ("command", "container"):
        if values := fields.get(place.encode()):
            yield place, values if len(values) > 1 else values[0]
    try:
        body = json.loads(ask.body) if len(ask.body) <= 65_536 else None
    except (ValueError, RecursionError):
        return
    for place, names in (("command", ("command",)), ("container", ("container", "container_name"))):
        for name in names:
            if isinstance(body, dict) and body.get(name) is not None:
                yield place, body[name]
