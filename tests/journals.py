"""Journals as real processes leave them, for the tests of the operators' commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.integration import faulty
from tests.integration.faulty import Faulty, Reply
from tron_audit_otel import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

OWNER = """
import os, signal, sys
from pathlib import Path
from tron_audit_otel.disk_journal import DiskJournal

root, end, note, *payloads = sys.argv[1:]
journal = DiskJournal.create(Path(root), bytes_max=1 << 20, fsync=False)
for payload in payloads:
    journal.append(bytes.fromhex(payload), 1)
if note:
    journal.note(note.encode())
print(journal.name, flush=True)
if end == "wait":
    sys.stdin.read()
if end == "close":
    journal.close()
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""

COUNTS = {"emitted": 0, "delivered": 0, "dead_lettered": 0, "dropped": {}, "pending": 0, "queued": 0, "rejected": 0}


def request(record_id: str, sentence: str = "alice deleted backups/42") -> bytes:
    """A serialized OTLP request with one record."""
    message = ExportLogsServiceRequest()
    record = message.resource_logs.add().scope_logs.add().log_records.add()
    record.body.string_value = sentence
    record.trace_id = bytes(range(16))
    record.severity_number = 9
    pair = record.attributes.add()
    pair.key, pair.value.string_value = "audit.record.id", record_id
    return bytes(message.SerializeToString())


def note(**fields: Any) -> bytes:
    """What a process with nothing to complain of notes, but for some fields."""
    now_s = time.time()
    known = {"pid": 4211, "service": "platform-api", "endpoint": "http://collector:4318/v1/logs", "adopted": COUNTS}
    state = {"journal": None, "shipping": "idle", "reason": None, "blocked": None}
    return json.dumps({**COUNTS, **known, **state, "started_at": now_s, "noted_at": now_s, **fields}).encode()


def leave(root: Path, ids: Iterable[str], *, end: str = "kill", noted: bytes = b"") -> str:
    """Lets a process write records and be killed, or close its journal; gives the journal's name."""
    command = [sys.executable, "-c", OWNER, str(root), end, noted.decode(), *(request(each).hex() for each in ids)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False).stdout.strip()


@contextmanager
def owner(root: Path, ids: Iterable[str] = (), noted: bytes = b"") -> Iterator[str]:
    """A process that lives, and has written records; gives the journal's name."""
    command = [sys.executable, "-c", OWNER, str(root), "wait", noted.decode(), *(request(each).hex() for each in ids)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def receiver(answer: Callable[[faulty.Call], Reply] = lambda _: Reply(200, faulty.PROTOBUF)) -> Iterator[Receiver]:
    """A fake: no real Collector refuses on demand, and most tests here ask only what the command makes of an answer."""
    ids: list[str] = []

    def fault(call: faulty.Call) -> Reply:
        reply = answer(call)
        if reply.status == 200:
            ids.extend(faulty.attribute(record, "audit.record.id") for record in faulty.records(call.message()))
        return reply

    with Faulty("http://127.0.0.1:1/v1/logs") as proxy:
        proxy.fault = fault
        yield Receiver(proxy, ids)


class Receiver:
    """What it took."""

    def __init__(self, proxy: Faulty, ids: list[str]) -> None:
        self.proxy = proxy
        self.url = proxy.url
        self.ids = ids


def run(capsys: Any, arguments: Sequence[str], root: Path, **environ: str) -> tuple[int, str, str]:
    """Runs a command on a journal; gives its exit code, and what it printed."""
    settings = {
        "AUDIT_LOG_JOURNAL_DIR": str(root),
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:1/v1/logs",
        "AUDIT_LOG_RETRY_SECONDS_MAX": "0.2",
        **environ,
    }
    capsys.readouterr()
    code = cli.main(arguments, settings)
    out, err = capsys.readouterr()
    return code, out, err
