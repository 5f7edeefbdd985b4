"""A fake of what a Collector shows of itself: no real one has every trouble when a test wants it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Answer = Callable[[BaseHTTPRequestHandler], None]

CAPACITY_BYTES = 1_000_000
RECORD_BYTES = 1_000


def shown(*, uptime_s: float = 3_600, accepted: int = 100, siems: Mapping[str, Mapping[str, int]], **more: int) -> str:
    """The metrics of a Collector with these exporters, and records of 1,000 bytes.

    Unless told, an exporter has `taken` what it has delivered, what failed and what waits. Its `failed`, `full`,
    `delivered` and `waiting_bytes` are counters, a number is how often it gave that status code, and `none` how often
    there was no answer.
    """
    lines = [
        f"otelcol_process_uptime {uptime_s}",
        f"otelcol_receiver_accepted_log_records {accepted}",
        f"otelcol_receiver_refused_log_records {more.get('refused', 0)}",
        f'otelcol_exporter_sent_log_records{{exporter="file/archive"}} {accepted}',
        f'otelcol_exporter_send_failed_log_records{{exporter="file/archive"}} {more.get("archive_failed", 0)}',
    ]
    for exporter, counters in siems.items():
        of = f'exporter="{exporter}"'
        told = (
            counters.get("delivered", 0) + counters.get("failed", 0) + counters.get("waiting_bytes", 0) // RECORD_BYTES
        )
        taken = counters.get("taken", told)
        address = f'server_address="{exporter}",server_port="1"'
        lines += [
            f"otelcol_exporter_queue_size{{{of}}} {counters.get('waiting_bytes', 0)}",
            f"otelcol_exporter_queue_capacity{{{of}}} {CAPACITY_BYTES}",
            f"otelcol_exporter_enqueue_size_sum{{{of}}} {taken}",
            f"otelcol_exporter_enqueue_size_bytes_sum{{{of}}} {taken * RECORD_BYTES}",
            f"otelcol_exporter_sent_log_records{{{of},{address}}} {counters.get('delivered', 0)}",
            f"otelcol_exporter_send_failed_log_records{{{of},{address}}} {counters.get('failed', 0)}",
            f"otelcol_exporter_enqueue_failed_log_records{{{of}}} {counters.get('full', 0)}",
        ]
        for code, times in counters.items():
            if code.isdecimal() or code == "none":
                answered = f'http_response_status_code="{code}",' if code.isdecimal() else ""
                lines.append(f"http_client_request_duration_count{{{answered}{address}}} {times}")
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}/metrics"
        finally:
            httpd.shutdown()
            thread.join()


def says(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer
