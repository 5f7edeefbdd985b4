from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML

from collector import launch
from tests.metrics_fakes import says, server
from tron_audit_otel import collector_metrics
from tron_audit_otel.collector_metrics import NAMES, Collector, parse, read
from tron_audit_otel.errors import CollectorError

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from tests.metrics_fakes import Answer

DATA = Path(__file__).parent / "data"
DETAILED = (DATA / "collector-metrics-detailed.txt").read_text()
"""As Collector 0.161 shows them: Datadog has taken 20 records, and the endpoint of `http` refuses connections."""
NORMAL = (DATA / "collector-metrics-normal.txt").read_text()


def understood(text: str) -> Collector:
    return parse(text, "http://collector:8888/metrics", 1_000.0)


def of(name: str, text: str) -> collector_metrics.Siem:
    return {siem.name: siem for siem in understood(text).siems}[name]


def with_more(*lines: str) -> str:
    return DETAILED + "".join(f"{line}\n" for line in lines)


def test_what_a_real_collector_shows_is_understood() -> None:
    found = understood(DETAILED)
    assert (found.accepted, found.refused, found.archived, found.archive_failed) == (20, 0, 20, 0)
    assert found.instance == "905b04bd-2bcd-4c33-a477-72eb79f31f14"
    assert found.started_at == pytest.approx(997.19, abs=0.01)
    assert [siem.name for siem in found.siems] == ["datadog", "http"]
    datadog, http = found.siems
    assert (datadog.taken, datadog.delivered, datadog.waiting, datadog.waiting_bytes) == (20, 20, 0, 0)
    assert (datadog.answers, datadog.unanswered, datadog.capacity_bytes) == ({200: 1}, 0, 20 << 30)
    assert (http.taken, http.delivered, http.waiting, http.waiting_bytes) == (20, 0, 20, 16_410)
    assert (http.answers, http.unanswered, http.refused, http.turned_away) == ({}, 2, 0, 0)
    assert found.elsewhere == {}


def test_names_with_the_suffixes_of_prometheus_are_the_same() -> None:
    lines = []
    for line in DETAILED.splitlines():
        name, brace, rest = line.partition("{")
        if name in {"otelcol_exporter_sent_log_records", "otelcol_receiver_accepted_log_records"}:
            name += "_total"
        elif name.startswith("otelcol_process_uptime "):
            name = name.replace("uptime", "uptime_seconds_total")
        elif name.startswith("http_client_request_duration_"):
            name = name.replace("duration", "duration_seconds")
        if not line.startswith("#"):
            lines.append(name + brace + rest + "\n")
    assert understood("".join(lines)) == understood(DETAILED)


def test_what_a_lower_level_does_not_tell_is_not_made_up() -> None:
    http = of("http", NORMAL)
    assert (http.taken, http.waiting, http.answers, http.waiting_bytes) == (None, None, {}, 16_410)
    assert of("datadog", NORMAL).waiting == 0


def test_a_collector_that_nothing_came_to_has_taken_nothing() -> None:
    text = NORMAL.replace('accepted_log_records{receiver="otlp",transport="http"} 20', "accepted_log_records 0")
    assert of("http", text).taken == 0


def test_a_queue_from_before_the_start_is_measured_by_what_is_tried() -> None:
    text = "".join(f"{line}\n" for line in DETAILED.splitlines() if "enqueue_size" not in line)
    assert of("http", text).waiting == 20


def test_every_siem_has_the_name_that_its_file_has() -> None:
    files = {siem.name: YAML(typ="safe").load(siem.file)["exporters"] for siem in launch.SIEMS}
    assert {exporter: name for name, exporters in files.items() for exporter in exporters} == NAMES


def test_an_exporter_of_ones_own_keeps_its_name_and_one_without_a_queue_is_no_siem() -> None:
    text = with_more(
        'otelcol_exporter_queue_size{data_type="logs",exporter="kafka/mine"} 0',
        'otelcol_exporter_sent_log_records{exporter="debug"} 7',
    )
    assert {siem.name for siem in understood(text).siems} == {"kafka/mine", "datadog", "http"}


REFUSED = 'otelcol_exporter_send_failed_log_records{error_permanent="true",error_type="%s",exporter="otlp_http/http"} 3'


def test_what_is_refused_is_counted_and_a_stop_of_the_collector_is_not() -> None:
    assert of("http", with_more(REFUSED % "_OTHER", REFUSED % "Shutdown")).refused == 3


def test_what_found_no_room_was_not_taken() -> None:
    http = of("http", with_more('otelcol_exporter_enqueue_failed_log_records{exporter="otlp_http/http"} 5'))
    assert (http.taken, http.turned_away) == (15, 5)


def test_the_archive_is_no_siem_and_its_failures_are_told() -> None:
    found = understood(with_more('otelcol_exporter_send_failed_log_records{exporter="file/archive"} 4'))
    assert (found.archive_failed, len(found.siems)) == (4, 2)


def test_a_receiver_that_refuses_is_told_under_either_name() -> None:
    found = understood(
        with_more(
            'otelcol_receiver_refused_log_records{receiver="otlp",transport="grpc"} 2',
            'otelcol_receiver_failed_log_records{receiver="otlp",transport="grpc"} 3',
        )
    )
    assert found.refused == 5


def answered(code: int, host: str, times: int, port: str = "", scheme: str = "https") -> str:
    labels = f'http_response_status_code="{code}",server_address="{host}",url_scheme="{scheme}"'
    return f"http_client_request_duration_count{{{labels}{port and f',server_port={port!r}'}}} {times}".replace(
        "'", '"'
    )


def sent(exporter: str, host: str, port: str = "") -> str:
    labels = f'exporter="{exporter}",server_address="{host}"{port and f",server_port={port!r}"}'
    return f"otelcol_exporter_sent_log_records{{{labels}}} 0".replace("'", '"')


def queue(exporter: str) -> str:
    return f'otelcol_exporter_queue_size{{data_type="logs",exporter="{exporter}"}} 0'


@pytest.mark.parametrize("port", ["", "443"])
def test_a_port_that_the_url_leaves_out_is_the_schemes_own(port: str) -> None:
    text = with_more(
        queue("otlp_http/elastic-otlp"),
        sent("otlp_http/elastic-otlp", "es.example.com", port),
        answered(403, "es.example.com", 9),
    )
    assert of("elastic-otlp", text).answers == {403: 9}


def test_answers_of_an_address_that_two_share_belong_to_neither() -> None:
    text = with_more(
        *(each for name in ("a", "b") for each in (queue(f"otlp_http/{name}"), sent(f"otlp_http/{name}", "x", "1"))),
        answered(500, "x", 4, "1"),
    )
    assert (of("otlp_http/a", text).answers, of("otlp_http/b", text).answers) == ({}, {})
    assert understood(text).elsewhere == {"x:1": {500: 4}}


def test_answers_that_no_exporter_names_are_told_as_such() -> None:
    text = with_more(queue("splunk_hec"), answered(403, "splunk", 12, "8088"))
    assert of("splunk", text).answers == {}
    assert understood(text).elsewhere == {"splunk:8088": {403: 12}}


def test_documents_that_elasticsearch_refuses_count_as_refused_but_not_those_that_it_has() -> None:
    """The names are from the exporter's documentation; it was not run."""
    document = "otelcol_elasticsearch_docs_processed_total"
    text = with_more(
        queue("elasticsearch"),
        'otelcol_exporter_sent_log_records{exporter="elasticsearch"} 100',
        f'{document}{{outcome="success"}} 90',
        f'{document}{{outcome="failed_client",error_type="document_parsing_exception"}} 6',
        f'{document}{{outcome="failed_client",error_type="version_conflict_engine_exception"}} 4',
        f'{document}{{outcome="too_many",http_response_status_code="429"}} 50',
        'otelcol_elasticsearch_bulk_requests_count_total{outcome="success",http_response_status_code="200"} 2',
        'otelcol_elasticsearch_bulk_requests_count_total{outcome="too_many",http_response_status_code="429"} 3',
        'otelcol_elasticsearch_bulk_requests_count_total{outcome="timeout"} 1',
    )
    siem = of("elasticsearch", text)
    assert (siem.delivered, siem.refused, siem.answers, siem.unanswered) == (100, 6, {200: 2, 429: 3}, 1)


def test_it_is_read_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with server(says(DETAILED.encode())) as url:
        assert read(url).siems == understood(DETAILED).siems


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (says(b"", 503), "answers with HTTP 503"),
        (says(b"", 302, {"Location": "http://127.0.0.1:1/"}), "answers with HTTP 302"),
        (says(b"", 302, {"Location": "http://[::1/"}), "answers with HTTP 302"),
        (says(b'otelcol_process_uptime 5\na{b="c", ="d"} 2\n'), "answers, but not with a Collector's metrics"),
        (says(b"<html>a notebook</html>"), "answers, but not with a Collector's metrics"),
        (says(b"go_goroutines 7\n"), "answers, but not with a Collector's metrics"),
        (says(b"otelcol_process_uptime\xff 1\n{}{"), "answers, but not with a Collector's metrics"),
        (says(b"short", headers={"Content-Length": "9"}), "cannot be read"),
        (says(b"otelcol_process_uptime -5\n"), "answers, but not with a Collector's metrics"),
        (says(b'otelcol_process_uptime 1e308\notelcol_process_uptime{a="b"} 1e308\n'), "answers, but not"),
        (says(b"otelcol_process_uptime 5\notelcol_receiver_accepted_log_records 1e300\n"), "answers, but not"),
        (
            says(
                b'otelcol_process_uptime 5\notelcol_exporter_queue_size{exporter="x"} 1\n'
                b'otelcol_exporter_send_failed_log_records{exporter="x"} -1\n'
            ),
            "answers, but not",
        ),
    ],
    ids=[
        *("failing", "redirect", "redirect-to-nowhere", "label-without-a-name", "a-page", "another-program"),
        *("torn", "cut-short"),
        *("began-later", "began-never", "too-many", "less-than-none"),
    ],
)
def test_what_is_no_collector_is_said(answer: Answer, what: str) -> None:
    with server(answer) as url, pytest.raises(CollectorError) as error:
        read(url)
    assert str(error.value).startswith(f"{url} {what}")
    assert "AUDIT_COLLECTOR_METRICS_HOST and AUDIT_COLLECTOR_METRICS_PORT; --collector URL" in str(error.value)


def test_nobody_there_is_said() -> None:
    with pytest.raises(CollectorError, match=r"http://127\.0\.0\.1:1/metrics cannot be reached"):
        read("http://127.0.0.1:1/metrics")


def test_an_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_metrics, "METRICS_BYTES_MAX", 1 << 20)
    with server(says(b"# a comment\n" * 200_000)) as url, pytest.raises(CollectorError, match="more than 1 MiB"):
        read(url)


def test_a_redirect_is_not_read_to_its_end() -> None:
    sent: list[int] = []

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()
        try:
            for megabytes in range(64):
                sent[:] = [megabytes]
                handler.wfile.write(b" " * (1 << 20))
        except OSError:
            pass

    with server(flood) as url, pytest.raises(CollectorError, match="answers with HTTP 302"):
        read(url)
    assert sent[0] < 32


def test_an_answer_that_drips_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes the time, a second for each byte: no read takes as long as the deadline, on a busy machine too."""
    done = threading.Event()
    dripped: list[bytes] = []
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + len(dripped))
    monkeypatch.setattr(collector_metrics, "time", clock)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not done.wait(0.001) and len(dripped) < 1_000:
                handler.wfile.write(b"#")
                dripped.append(b"#")
        except OSError:
            pass

    with server(drip) as url:
        try:
            with pytest.raises(CollectorError, match="answers too slowly"):
                read(url, timeout_s=60)
        finally:
            done.set()


def test_no_answer_at_all_ends_at_the_deadline() -> None:
    done = threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        done.wait(20)

    with server(hang) as url:
        try:
            with pytest.raises(CollectorError, match="does not answer in time"):
                read(url, timeout_s=0.3)
        finally:
            done.set()
