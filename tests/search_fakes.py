"""Fakes of Splunk's and Datadog's search, for want of the real ones: each answers as its documentation shows.

What a fake takes is what its documentation allows, read by a parser of its own, so that a query which only our own
code understands finds nothing. VictoriaLogs and OpenSearch are real, in tests/integration.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote

from requests.structures import CaseInsensitiveDict

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    Reply = tuple[int, Mapping[str, str], bytes]


class Server:
    """An HTTP server on the loopback address."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, Mapping[str, str], str]] = []
        """Path, headers and body of each request; what is no text is told in escapes."""
        self.faults: list[Reply] = []
        """Given first, one each."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, body: bytes, headers: Mapping[str, str], /) -> Reply:
        """Answers a question."""
        raise NotImplementedError

    def page(self) -> str:
        """What a GET shows."""
        return ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = CaseInsensitiveDict(self.headers.items())
                fake.asked.append((self.path, headers, body.decode(errors="backslashreplace")))
                status, given, content = fake.faults.pop(0) if fake.faults else fake.answer(body, headers)
                self.send_response(status)
                for name, value in {**given, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                content = fake.page().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's signature
                pass

        return Handler


def fault(status: int, body: str = "", **headers: str) -> Reply:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body.encode()


class FakeSplunk(Server):
    """Knows the two searches that may be asked, by Splunk's own rules: a phrase has wildcards and no case."""

    def __init__(self, *stored: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(context)
        self.stored = stored

    def answer(self, body: bytes, _: Mapping[str, str]) -> Reply:
        [search] = parse_qs(body.decode())["search"]
        base = r'search index="[^"]+" sourcetype="tron:audit"'
        take = r'eval tron_record_id=json_extract\(_raw, "record_id"\)'
        end = "stats count by tron_record_id"
        if by_index := re.fullmatch(rf"{base} \((.*)\) \| {take} \| {end}", search):
            wanted = [re.escape(each).replace(r"\*", ".*") for each in self._strings(by_index[1])]
            found = [each for each in self.stored if any(re.search(one, each, re.IGNORECASE) for one in wanted)]
        elif by_reading := re.fullmatch(rf"{base} \| {take} \| where (.*) \| {end}", search):
            terms = by_reading[1].replace("tron_record_id=urldecode(", "").replace(")", "")
            wanted = [unquote(each) for each in self._strings(terms)]
            found = [each for each in self.stored if each in wanted]
        else:
            return fault(400, '{"messages":[{"type":"FATAL","text":"Error in \'search\' command"}]}')
        rows: list[dict[str, Any]] = [
            {"result": {"tron_record_id": each, "count": "1"}} for each in sorted(set(found))
        ] or [{}]
        rows[-1]["lastrow"] = True
        # What a search that is under way says before it is through, which must not count.
        preview = {"preview": True, "offset": 0, "lastrow": True, "result": {"tron_record_id": "preview", "count": "1"}}
        lines = [preview, *({"preview": False, "offset": offset, **row} for offset, row in enumerate(rows))]
        return fault(200, "".join(f"{json.dumps(line)}\n" for line in lines))

    @staticmethod
    def _strings(text: str) -> list[str]:
        assert re.fullmatch(r'"[^"\\]+"( OR "[^"\\]+")*', text), f"no list of strings: {text}"
        return re.findall(r'"([^"]+)"', text)


class FakeDatadog(Server):
    """Gives whole logs, a page at a time; `repeated` says how often each is stored."""

    def __init__(self, *stored: str, flat: bool = False, repeated: Callable[[str], int] = lambda _: 1) -> None:
        super().__init__()
        self.stored = stored
        self._flat = flat
        self._repeated = repeated

    def answer(self, body: bytes, _: Mapping[str, str]) -> Reply:
        asked = json.loads(body)
        wanted = set(datadog_terms(asked["filter"]["query"]))
        logs = [each for each in self.stored if each in wanted for _ in range(self._repeated(each))]
        begin = int(asked["page"].get("cursor", "0"))
        end = begin + asked["page"]["limit"]
        page = {"page": {"after": str(end)}} if end < len(logs) else {}
        data = [{"id": "AAAA", "type": "log", "attributes": self._attributes(each)} for each in logs[begin:end]]
        return fault(200, json.dumps({"data": data, "meta": {"status": "done", **page}}))

    def _attributes(self, record_id: str) -> dict[str, Any]:
        nested = {"audit.record.id": record_id} if self._flat else {"audit": {"record": {"id": record_id}}}
        return {"service": "platform-api", "status": "info", "attributes": nested}


def datadog_terms(query: str) -> Iterator[str]:
    """The terms of `@audit.record.id:(a OR b)`, by the documented syntax; nothing else may be in it."""
    prefix = "@audit.record.id:("
    assert query.startswith(prefix)
    at, end = len(prefix), len(query) - 1
    assert query[end] == ")"
    while at < end:
        term, at = _term(query, at)
        yield term
        assert at == end or query.startswith(" OR ", at), f"something else at {at}: {query}"
        at += len(" OR ")


def _term(query: str, at: int) -> tuple[str, int]:
    if query[at] == '"':
        closed = query.index('"', at + 1)
        assert "\\" not in query[at:closed]
        return query[at + 1 : closed], closed + 1
    term = ""
    while at < len(query) - 1 and query[at] != " ":
        if query[at] == "\\":
            at += 1
        else:
            assert query[at] not in '=-!&|><(){}[]"*:\\# ', f"an operator at {at}: {query}"
        term += query[at]
        at += 1
    return term, at
