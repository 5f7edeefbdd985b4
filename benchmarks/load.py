"""Load by vegeta, a process of its own, and what each request met."""

from __future__ import annotations

import csv
import math
import resource
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CONNECTIONS = 32
"""At saturation: so many clients, each of which waits for its answer."""

OPEN_WORKERS_MAX = 512
"""At a fixed rate requests are sent when they are due, whatever became of earlier ones, up to so many at a time."""

TIMEOUT_SECONDS = 60
TARGETS = 1000
_BODY = '{"name": "instance-of-alice", "size": 4, "tags": ["staging", "europe"]}'
_STATUS, _LATENCY, _ERROR = 1, 2, 5  # the columns of `vegeta encode --to csv`
_OK = range(200, 300)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one attack met."""

    requests: int
    rps: float
    latencies_ms: Sequence[float]
    """In ascending order."""
    began: float
    ended: float
    """By the monotonic clock, from the generator's start to its end."""
    cpu_seconds: float
    """What the load generator itself took."""

    def percentile(self, of_100: float) -> float:
        """The latency, in milliseconds, that so many of a hundred requests did not exceed."""
        return percentile(self.latencies_ms, of_100)


class Vegeta:
    """Attacks on one server: in turn a GET and a POST, over connections that are kept."""

    def __init__(self, binary: Path, directory: Path, url: str) -> None:
        """Writes down what to ask for."""
        self._binary = binary
        self._results = directory / "results.gob"
        self._targets = directory / "targets"
        body = directory / "body.json"
        body.write_text(_BODY)
        self._targets.write_text(
            "\n".join(
                f"GET {url}/instances/instance-{number}\n\n"
                f"POST {url}/instances\nContent-Type: application/json\n@{body}\n"
                for number in range(TARGETS)
            )
        )

    def saturate(self, seconds: float) -> Answers:
        """Asks as fast as the answers come.

        Raises:
            BenchError: Not every answer was a success.
        """
        return self._attack(seconds, rate=0, workers=CONNECTIONS)

    def at_rate(self, per_second: float, seconds: float, workers: int = OPEN_WORKERS_MAX) -> Answers:
        """Asks at a steady rate, the next one whether or not the last has been answered.

        Raises:
            BenchError: As `saturate`.
        """
        return self._attack(seconds, rate=round(per_second), workers=workers)

    def _attack(self, seconds: float, rate: int, workers: int) -> Answers:
        attack = ["attack", f"-targets={self._targets}", f"-output={self._results}", f"-duration={seconds}s"]
        attack += [f"-rate={rate}", f"-workers={min(workers, CONNECTIONS)}", f"-max-workers={workers}"]
        attack += [f"-connections={workers}", f"-timeout={TIMEOUT_SECONDS}s", "-max-body=0"]
        cpu, began = _cpu_of_children(), time.monotonic()
        self._run(*attack)
        ended, cpu = time.monotonic(), _cpu_of_children() - cpu
        rows = csv.reader(self._run("encode", "-to=csv", str(self._results)).splitlines())
        return answers(rows, began, ended, cpu)

    def _run(self, *arguments: str) -> str:
        command: list[str | Path] = [self._binary, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own build
        if done.returncode:
            raise BenchError(f"vegeta {arguments[0]} failed (exit code {done.returncode}): {done.stderr.strip()}")
        return done.stdout


def answers(rows: Iterable[Sequence[str]], began: float, ended: float, cpu_seconds: float) -> Answers:
    """Reads vegeta's results, each a request's row.

    Raises:
        BenchError: There are none, or not every one is a success.
    """
    latencies_ns: list[int] = []
    statuses: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    first_ns, last_ns = math.inf, 0
    for row in rows:
        sent_ns, latency_ns = int(row[0]), int(row[_LATENCY])
        first_ns, last_ns = min(first_ns, sent_ns), max(last_ns, sent_ns + latency_ns)
        latencies_ns.append(latency_ns)
        statuses[int(row[_STATUS])] += 1
        errors[row[_ERROR].rpartition(": ")[2]] += 1  # what went wrong; before it stands with which request
    if not latencies_ns:
        raise BenchError("vegeta sent no request")
    if bad := {status: count for status, count in statuses.items() if status not in _OK}:
        del errors[""]
        why = "; ".join(f"{count} times {error}" for error, count in errors.most_common(3))
        raise BenchError(f"of {len(latencies_ns)} requests not all succeeded: {bad} by status (0: no answer). {why}")
    seconds = (last_ns - first_ns) / 1e9
    ordered = sorted(latency / 1e6 for latency in latencies_ns)
    return Answers(len(ordered), len(ordered) / seconds, ordered, began, ended, cpu_seconds)


def percentile(ordered: Sequence[float], of_100: float) -> float:
    """The smallest value that so many of a hundred do not exceed; 0 where there are no values."""
    return ordered[max(math.ceil(len(ordered) * of_100 / 100), 1) - 1] if ordered else 0.0


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
