from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import socket
import ssl
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tests.search_fakes import FakeDatadog, FakeSplunk, Server, datadog_terms, fault
from tron_audit_otel import search, search_datadog, search_http, search_splunk, search_victorialogs
from tron_audit_otel.archive import Span
from tron_audit_otel.errors import ConfigError, SearchError
from tron_audit_otel.search_datadog import Datadog
from tron_audit_otel.search_elasticsearch import Elasticsearch
from tron_audit_otel.search_http import Client
from tron_audit_otel.search_splunk import Splunk
from tron_audit_otel.search_victorialogs import VictoriaLogs
from tron_audit_otel.tool_config import ToolConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.search_fakes import Reply

SPAN = Span(1_790_000_000_000_000_000, 1_790_000_600_000_000_000)
ID = "0198c5b2-0000-7000-8000-{:012}"
GOLDEN = Path(__file__).parent / "golden" / "siem"
TOKEN = "s3cret-t0ken"  # noqa: S105 - there is no such one

HOSTILE = [
    '") OR record_id IN ("*',
    '" | delete',
    "*",
    "?" * 36,
    "a b",
    "\\",
    '\\"',
    "a\nb",
    "a) OR @usr.id:(*",
    "`macro`",
    "[search index=* | delete]",
    "${VARIABLE}",
    "%22",
    "-x",
    "NOT",
    "OR",
    "ключ",
    "💣",
    "'; --",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


class Canned(Server):
    """Gives the same answer each time."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    def answer(self, *_: object) -> Reply:
        return self._reply


def client(server: Server) -> Client:
    return Client(server.url, {"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_http, "BACKOFF_SECONDS", 0)


# --- Splunk


def test_splunk_gives_those_that_it_has() -> None:
    ids = [ID.format(number) for number in range(600)]
    with FakeSplunk(*ids[:350], "of somebody else") as splunk:
        assert Splunk(client(splunk), "audit").ids(ids, SPAN) == set(ids[:350])
        assert len(splunk.asked) == 2
        path, headers, body = splunk.asked[0]
    assert path == "/services/search/v2/jobs/export"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    form = {name: value for name, [value] in parse_qs(body).items()}
    assert form["search"].startswith('search index="audit" sourcetype="tron:audit" ("0198')
    assert form["output_mode"] == "json"
    assert form["earliest_time"] == "1789999999"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_id_can_break_out_of_splunks_search(hostile: str) -> None:
    with FakeSplunk("a", hostile, "other") as splunk:
        found = Splunk(client(splunk), "audit").ids(["a", hostile], SPAN)
        assert not any("*" in parse_qs(body)["search"][0] for _, _, body in splunk.asked)  # it would match everything
    assert found == {"a", hostile}


def test_an_id_that_splunk_takes_for_another_does_not_count() -> None:
    with FakeSplunk("ABC", "abcd") as splunk:
        assert Splunk(client(splunk)).ids(["abc"], SPAN) == set()


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_what_splunk_is_asked_holds_nothing_but_quoted_ids(ids: list[str]) -> None:
    text = search_splunk.by_reading("*", ids)
    strings = re.findall(r'"([^"]*)"', text)
    assert strings[:3] == ["*", "tron:audit", "record_id"]
    assert [unquote(each) for each in strings[3:]] == ids
    assert all(re.fullmatch(r"[A-Za-z0-9_.~%-]+", each) for each in strings[3:])
    term = 'tron_record_id=urldecode("")'
    assert re.sub(r'"[^"]*"', '""', text) == (
        'search index="" sourcetype="" | eval tron_record_id=json_extract(_raw, "") '
        f"| where {' OR '.join([term] * len(ids))} | stats count by tron_record_id"
    )


@pytest.mark.parametrize("kind", ["ERROR", "FATAL"])
def test_a_search_that_failed_in_splunk_is_no_answer_although_http_says_200(kind: str) -> None:
    row = {"preview": False, "lastrow": True, "messages": [{"type": kind, "text": "Peer idx-2 did not answer"}]}
    with Canned(fault(200, json.dumps(row))) as splunk, pytest.raises(SearchError, match="Peer idx-2 did not answer"):
        Splunk(client(splunk)).ids(["a"], SPAN)


def test_an_answer_of_splunks_that_was_cut_is_no_answer() -> None:
    rows = [
        {"preview": True, "lastrow": True, "result": {"tron_record_id": "b"}},
        {"preview": False, "result": {"tron_record_id": "a"}},
    ]
    with (
        Canned(fault(200, "\n".join(map(json.dumps, rows)))) as splunk,
        pytest.raises(SearchError, match="no last row"),
    ):
        Splunk(client(splunk)).ids(["a", "b"], SPAN)


def test_an_index_that_is_a_search_is_refused() -> None:
    with pytest.raises(ConfigError, match="SPLUNK_INDEX must be the name of an index"):
        search.make("splunk", "splunk", config(SPLUNK_INDEX='a" | delete'))


# --- Datadog


@pytest.mark.parametrize("flat", [True, False])
def test_datadog_gives_those_that_it_has(*, flat: bool) -> None:
    ids = [ID.format(number) for number in range(250)]
    with FakeDatadog(*ids[:150], "of somebody else", flat=flat) as datadog:
        assert Datadog(client(datadog)).ids(ids, SPAN) == set(ids[:150])
        path, _, body = datadog.asked[0]
    assert path == "/api/v2/logs/events/search"
    assert json.loads(body)["filter"]["from"] == "1789999999000"


@pytest.mark.parametrize("hostile", [each for each in HOSTILE if each.isprintable()])
def test_no_id_can_break_out_of_datadogs_search(hostile: str) -> None:
    with FakeDatadog("a", hostile, "other") as datadog:
        assert Datadog(client(datadog)).ids(["a", hostile], SPAN) == {"a", hostile}


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_what_datadog_is_asked_holds_nothing_but_terms(ids: list[str]) -> None:
    terms = list(datadog_terms(search_datadog.query(ids)))
    assert terms == ["".join(c if c.isprintable() else "?" for c in each) for each in ids]


def test_every_page_of_datadogs_is_read() -> None:
    ids = [ID.format(number) for number in range(100)]
    with FakeDatadog(*ids, repeated=lambda each: 3 if each == ids[0] else 1) as datadog:
        assert Datadog(client(datadog)).ids(ids, SPAN) == set(ids)
        assert [json.loads(body)["page"].get("cursor") for _, _, body in datadog.asked] == [None, "100"]


def test_who_sends_one_id_many_times_does_not_keep_us_from_the_others() -> None:
    ids = [ID.format(number) for number in range(100)]
    with FakeDatadog(*ids[:60], repeated=lambda each: 2_000 if each == ids[7] else 1) as datadog:
        assert Datadog(client(datadog)).ids(ids, SPAN) == set(ids[:60])
        assert len(datadog.asked) < 100


def test_logs_that_make_an_answer_too_long_are_asked_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_http, "ANSWER_BYTES_MAX", 2_000)
    ids = [ID.format(number) for number in range(64)]
    with FakeDatadog(*ids) as datadog:
        assert Datadog(client(datadog)).ids(ids, SPAN) == set(ids)


def test_one_log_of_datadogs_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_http, "ANSWER_BYTES_MAX", 10)
    with FakeDatadog("a") as datadog, pytest.raises(SearchError, match="answers with more than"):
        Datadog(client(datadog)).ids(["a", "b"], SPAN)


def test_datadogs_limit_is_waited_for_as_it_asks(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    waits: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=waits.append, time=time.time))
    with FakeDatadog("a") as datadog, caplog.at_level(logging.WARNING):
        datadog.faults = [fault(429, X_RateLimit_Reset="42"), fault(429, X_RateLimit_Reset="99999999")]
        assert Datadog(client(datadog)).ids(["a"], SPAN) == {"a"}
    assert waits == [42, search_http.RETRY_AFTER_SECONDS_MAX]
    assert "asked again in 42 s" in caplog.text


def test_datadogs_answer_without_a_list_is_no_answer() -> None:
    with Canned(fault(200, '{"data": {"id": "a"}}')) as datadog, pytest.raises(SearchError, match="lacks `data`"):
        Datadog(client(datadog)).ids(["a"], SPAN)


def test_a_search_that_timed_out_at_datadog_is_no_answer() -> None:
    body = json.dumps({"data": [], "meta": {"status": "timeout"}})
    with Canned(fault(200, body)) as datadog, pytest.raises(SearchError, match="not whole: timeout"):
        Datadog(client(datadog)).ids(["a"], SPAN)


@pytest.mark.parametrize(
    "log",
    [
        None,
        [],
        {},
        {"attributes": []},
        {"attributes": {"attributes": {"audit": "x"}}},
        {"attributes": {"attributes": 1}},
    ],
)
def test_a_log_of_datadogs_without_an_id_has_none(log: object) -> None:
    assert search_datadog.record_id(log) is None


# --- Elasticsearch: see tests/integration for a real one


def elasticsearch_answer(**changed: Any) -> str:
    answer = {
        "timed_out": False,
        "_shards": {"total": 1, "failed": 0},
        "aggregations": {"ids": {"buckets": [{"key": "a", "doc_count": 2}]}},
    }
    return json.dumps({**answer, **changed})


@pytest.mark.parametrize(
    "changed",
    [{"timed_out": True}, {"_shards": {"total": 2, "failed": 1}}, {"_shards": {}}, {"aggregations": None}],
)
def test_an_answer_of_only_some_of_elasticsearchs_shards_is_no_answer(changed: dict[str, Any]) -> None:
    with Canned(fault(200, elasticsearch_answer(**changed))) as server, pytest.raises(SearchError, match="its answer"):
        Elasticsearch(client(server)).ids(["a", "b"], SPAN)


def test_elasticsearch_without_the_data_stream_has_nothing() -> None:
    answer = elasticsearch_answer(_shards={"total": 0, "failed": 0}, aggregations={})
    with Canned(fault(200, answer)) as server:
        assert Elasticsearch(client(server)).ids(["a"], SPAN) == set()


# --- VictoriaLogs: see tests/integration for a real one


def test_no_query_is_longer_than_victorialogs_takes() -> None:
    ids = [f"{number}\n{'💣' * 50}" for number in range(1_000)]
    with Canned(fault(200)) as server:
        assert VictoriaLogs(client(server), "audit.record.id").ids(ids, SPAN) == set()
        queries = [parse_qs(body)["query"][0] for _, _, body in server.asked]
    assert max(len(query.encode()) for query in queries) <= 16 * 1024
    assert sum(query.count("💣") for query in queries) == 50_000


@given(TEXTS)
def test_an_id_in_a_query_of_victorialogs_is_one_literal_of_gos(text: str) -> None:
    literal = search_victorialogs.quoted(text)
    # Go's grammar for interpreted string literals, less the octal and hexadecimal escapes.
    assert re.fullmatch(r'"(?:[^"\\\n]|\\[abfnrtv\\"]|\\u(?!d[89a-f])[0-9a-f]{4})*"', literal)
    assert json.loads(literal) == text


# --- what all have in common


SEARCHES: list[Callable[[Client], search.Search]] = [
    Splunk,
    Datadog,
    Elasticsearch,
    lambda of: VictoriaLogs(of, "audit.record.id"),
]


@pytest.mark.parametrize("make", SEARCHES)
@pytest.mark.parametrize("body", ["<html>", "[1]", '{"a":', "[" * 100_000, "\x00", "1\n2"])
def test_an_answer_of_something_else_is_an_error_that_names_the_address(
    make: Callable[[Client], search.Search], body: str
) -> None:
    with Canned(fault(200, body)) as server, pytest.raises(SearchError, match=re.escape(server.url)):
        make(client(server)).ids(["a"], SPAN)


@pytest.mark.parametrize("make", SEARCHES)
@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 500])
def test_a_refusal_is_told_without_the_token(make: Callable[[Client], search.Search], status: int) -> None:
    with Canned(fault(status, f"no: {TOKEN}\x1b[31m", Location="http://127.0.0.1:1/")) as server:
        with pytest.raises(SearchError) as caught:
            make(client(server)).ids(["a"], SPAN)
        assert len(server.asked) == 1
    assert f"HTTP {status}" in str(caught.value)
    assert server.url in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(status: int) -> None:
    with FakeSplunk("a") as splunk:
        splunk.faults = [fault(status)] * 3
        assert Splunk(client(splunk)).ids(["a"], SPAN) == {"a"}


def test_a_server_that_stays_busy_is_given_up() -> None:
    with Canned(fault(503)) as server:
        with pytest.raises(SearchError, match="HTTP 503"):
            Splunk(client(server)).ids(["a"], SPAN)
        assert len(server.asked) == search_http.RETRIES_MAX + 1


def test_a_nonsensical_retry_after_is_passed_over() -> None:
    with FakeSplunk("a") as splunk:
        splunk.faults = [fault(503, Retry_After="soon", X_RateLimit_Reset="-1")]
        assert Splunk(client(splunk)).ids(["a"], SPAN) == {"a"}


def test_nobody_there_is_an_error_that_names_the_address() -> None:
    with pytest.raises(
        SearchError, match=r"^http://127\.0\.0\.1:1/select/logsql/query cannot be reached: Connection ref"
    ):
        VictoriaLogs(Client("http://127.0.0.1:1"), "a").ids(["a"], SPAN)


def test_a_huge_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_http, "ANSWER_BYTES_MAX", 1 << 20)
    with Canned(fault(200, " " * (3 << 20))) as server, pytest.raises(SearchError, match="more than 1 MiB"):
        Elasticsearch(client(server)).ids(["a"], SPAN)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n", "more than 1 MiB", id="redirect"),
        pytest.param(b"HTTP/1.1 503 Down\r\n\r\n", "cannot be reached: Connection refused", id="tried-again"),
    ],
)
def test_an_answer_that_is_no_success_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, head: bytes, expected: str
) -> None:
    """Neither `requests`, which reads a redirect to its end, nor urllib3, which does with what it tries again."""
    monkeypatch.setattr(search_http, "ANSWER_BYTES_MAX", 1 << 20)
    left: list[int] = []

    def flood(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(head)
            for megabytes in range(64, 0, -1):
                left[:] = [megabytes]
                connection.sendall(b" " * (1 << 20))
            left[:] = [0]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=flood, args=(listener,))
        thread.start()
        with pytest.raises(SearchError, match=expected):
            Elasticsearch(Client(url)).ids(["a"], SPAN)
        thread.join()
    assert left[0] > 32


@pytest.mark.parametrize("after", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "9" * 5_000], ids=["year", "seconds"])
def test_a_pause_that_no_calendar_has_is_none(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    monkeypatch.setattr(search_http, "BACKOFF_SECONDS", 0)
    with FakeSplunk("a") as splunk:
        splunk.faults = [fault(503, Retry_After=after)]
        assert Splunk(client(splunk)).ids(["a"], SPAN) == {"a"}


@pytest.mark.parametrize("page", ["1", '"x"', "[1]", "true"])
def test_a_page_of_datadogs_that_is_none_is_an_error(page: str) -> None:
    answer = fault(200, f'{{"data": [], "meta": {{"page": {page}}}}}')
    with Canned(answer) as server, pytest.raises(SearchError, match="lacks `data` or `meta`"):
        Datadog(client(server)).ids(["a"], SPAN)


@pytest.mark.parametrize(
    ("head", "seconds_max", "expected"),
    [
        # So much that no read runs into it, and by a clock that is past it soon.
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", 60, "has not answered in whole", id="drips"
        ),
        pytest.param(b"", 0.3, "does not answer in time", id="hangs"),
    ],
)
def test_an_answer_that_never_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, head: bytes, seconds_max: float, expected: str
) -> None:
    monkeypatch.setattr(search_http, "ANSWER_SECONDS_MAX", seconds_max)
    clock = itertools.count(0, 10)
    monkeypatch.setattr(search_http, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(head)
            while not over.wait(0.02) and head:
                connection.sendall(b" ")
            over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            with pytest.raises(SearchError, match=expected):
                Elasticsearch(Client(f"http://127.0.0.1:{listener.getsockname()[1]}")).ids(["a"], SPAN)
        finally:
            over.set()
            thread.join()


def test_a_certificate_counts_only_by_the_authority_that_is_set(tmp_path: Path) -> None:
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(tmp_path / "ours.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    with FakeSplunk("a", context=context) as splunk:
        assert Splunk(Client(splunk.url, {}, tmp_path / "ours.pem")).ids(["a"], SPAN) == {"a"}
        with pytest.raises(SearchError, match="certificate that is not trusted"):
            Splunk(Client(splunk.url, {}, tmp_path / "other.pem")).ids(["a"], SPAN)
        assert len(splunk.asked) == 1


def test_a_netrc_does_not_put_its_password_in_the_tokens_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with FakeSplunk() as splunk:
        Splunk(client(splunk)).ids(["a"], SPAN)
        assert splunk.asked[0][1]["Authorization"] == f"Bearer {TOKEN}"


def test_a_token_that_is_no_header_is_not_shown() -> None:
    with FakeSplunk() as splunk, pytest.raises(SearchError) as caught:
        Splunk(Client(splunk.url, {"Authorization": "Bearer s3cret\nX: y"})).ids(["a"], SPAN)
    assert "s3cret" not in str(caught.value)


def test_the_window_ends_now_for_records_that_got_the_time_of_their_arrival() -> None:
    since, until = search_http.window_s(Span(5_500_000_000, 6_000_000_000))
    assert since == 4
    assert until > 1_790_000_000
    assert search_http.window_s(Span(0, 2**64)) == (0, 4_102_444_800)


# --- which search, by the settings


def config(**changed: str) -> ToolConfig:
    environ = {
        "VICTORIALOGS_URL": "http://127.0.0.1:9428",
        "ELASTICSEARCH_URL": "https://elastic.example.com:9200",
        "ELASTICSEARCH_SEARCH_API_KEY": TOKEN,
        "SPLUNK_SEARCH_URL": "https://splunk.example.com:8089",
        "SPLUNK_SEARCH_TOKEN": TOKEN,
        "DD_API_KEY": TOKEN,
        "DD_APP_KEY": TOKEN,
    }
    return ToolConfig.from_env({**environ, **changed})


@pytest.mark.parametrize("siem", ["datadog", "http", "elasticsearch", "elastic-otlp", "splunk"])
def test_victorialogs_is_asked_for_the_field_that_the_siems_transform_writes(siem: str) -> None:
    with Canned(fault(200)) as server:
        environ = {"VICTORIALOGS_URL": server.url, "VICTORIALOGS_TENANT": "3:4"}
        search.make("victorialogs", siem, config(**environ)).ids(["a"], SPAN)
        _, headers, body = server.asked[0]
    assert (headers["AccountID"], headers["ProjectID"]) == ("3", "4")
    [field] = re.findall(r' "([a-z_.]+)":in\("a"\) \| uniq by', parse_qs(body)["query"][0])
    written = json.loads((GOLDEN / f"{siem}.json").read_text())["records"]["create"]
    stored = {"splunk": written, "elasticsearch": written.get("document", {})}.get(siem, written.get("attributes", {}))
    assert flat(stored)[field] == "00000000-0000-4000-8000-000000000001"


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An object as VictoriaLogs keeps it: names of inner ones with dots."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found


@pytest.mark.parametrize(
    ("kind", "unset"),
    [
        ("victorialogs", "VICTORIALOGS_URL"),
        ("elasticsearch", "ELASTICSEARCH_URL"),
        ("elasticsearch", "ELASTICSEARCH_SEARCH_API_KEY"),
        ("splunk", "SPLUNK_SEARCH_URL"),
        ("splunk", "SPLUNK_SEARCH_TOKEN"),
        ("datadog", "DD_API_KEY"),
        ("datadog", "DD_APP_KEY"),
    ],
)
def test_a_variable_that_is_not_set_is_named(kind: str, unset: str) -> None:
    with pytest.raises(ConfigError, match=unset):
        search.make(kind, "datadog", config(**{unset: ""}))


def test_a_kind_that_there_is_not_is_named() -> None:
    with pytest.raises(
        ConfigError, match="--search must be one of victorialogs, elasticsearch, splunk, datadog, not 'x'"
    ):
        search.make("x", "http", config())


@pytest.mark.parametrize("kind", search.KINDS)
def test_each_kind_is_made(kind: str) -> None:
    assert hasattr(search.make(kind, "splunk", config()), "ids")
