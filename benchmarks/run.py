"""One run of one variant: its sink and its server started anew, two phases of load, then what became of the records."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks import apps, facts
from benchmarks.errors import BenchError
from benchmarks.load import CONNECTIONS, OPEN_WORKERS_MAX, Vegeta, percentile
from benchmarks.sinks import sink
from benchmarks.variants import Capture
from collector import servers
from tron_audit_otel import journal_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.cores import Cores
    from benchmarks.load import Answers
    from benchmarks.variants import Variant

ROOT = Path(__file__).resolve().parent.parent
WARM_UP_SECONDS = 1.0
PAUSE_SECONDS = 0.5
"""Between the phases, so that the second does not begin with what the first left."""

DRAIN_SECONDS_MAX = 120
RETRY_SECONDS_MAX = "1"
"""The one setting that is not the default, which is 30 s: a run need not wait so long for a Collector that is back.
While it is gone this costs more, not less."""

HALF = 0.5
HALF_LOAD = "half_load_"


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs that a run needs, and where they run."""

    otelcol: Path
    victorialogs: Path
    vegeta: Path
    cores: Cores
    scratch: Path
    """Where journals and archives are kept: on a disk, which `/tmp` often is not, and there an fsync costs nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a variant showed."""

    variant: str
    figures: dict[str, float]
    """By name and unit; those of the second phase begin with `HALF_LOAD`."""
    requests: int
    """All that were answered, those of the warm-up with them."""
    delivered: int
    """Of these requests, how many have a record at the sink."""


class Api(servers.Server):
    """The application under uvicorn, as its own process."""

    def __init__(self, variant: Variant, sink_url: str, directory: Path) -> None:
        """Describes it: its journal and its lag below `directory`."""
        (port,) = servers.free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.journal = directory / "journal"
        self._lags = directory / "lags.json"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), apps.CAPTURE: variant.capture}
        environ[apps.LAG_FILE] = str(self._lags)
        if variant.capture is Capture.POST:
            environ[apps.STORE] = sink_url
        elif variant.capture is not Capture.NONE:
            environ |= {"OTEL_SERVICE_NAME": "bench", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": sink_url}
        if variant.capture is Capture.OURS:
            environ |= {"AUDIT_LOG_ENABLED": "true", "AUDIT_LOG_COMMIT": variant.commit}
            environ |= {"AUDIT_LOG_JOURNAL_DIR": str(self.journal), "AUDIT_LOG_RETRY_SECONDS_MAX": RETRY_SECONDS_MAX}
        if variant.freezes:
            environ[apps.FREEZE] = "1"
        command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.apps:create", "--port", str(port)]
        command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        # vegeta may not repeat a POST on a connection that was idle and is closed at that moment.
        command += ["--timeout-keep-alive", "120"]
        super().__init__(variant.name, command, environ, self.url + facts.HEALTH)

    def cpu_seconds(self) -> float:
        """What all its threads have taken so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def peak_rss_mib(self) -> float:
        """The most memory that it has had; where the system does not tell, what it has."""
        if not psutil.LINUX:
            return psutil.Process(self.pid).memory_info().rss / 2**20
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        [kib] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(kib) / 2**10

    def lags_ms(self, began: float, ended: float) -> list[float]:
        """The event loop's lag within a span of the monotonic clock, in ascending order. Known once it has stopped."""
        samples: list[tuple[float, float]] = json.loads(self._lags.read_text())
        return sorted(lag * 1000 for at, lag in samples if began <= at <= ended)


@dataclass(frozen=True, slots=True)
class _Phase:
    answers: Answers
    cpu_seconds: float

    def figures(self, api: Api, cores: Cores) -> dict[str, float]:
        answers = self.answers
        lags = api.lags_ms(answers.began, answers.ended)
        seconds = answers.ended - answers.began
        return {
            "throughput_rps": answers.rps,
            "p50_ms": answers.percentile(50),
            "p99_ms": answers.percentile(99),
            "p999_ms": answers.percentile(99.9),
            "cpu_us": self.cpu_seconds / answers.requests * 1e6,
            "loop_lag_p50_ms": percentile(lags, 50),
            "loop_lag_p99_ms": percentile(lags, 99),
            "loop_lag_max_ms": lags[-1] if lags else 0.0,
            "server_busy": self.cpu_seconds / seconds,
            "load_busy": answers.cpu_seconds / seconds / cores.load_count,
        }


def run(variant: Variant, tools: Tools, seconds: float, half_rps: float | None, say: Callable[[str], object]) -> Run:
    """Measures a variant once.

    Args:
        variant: The variant.
        tools: What it takes.
        seconds: How long each of the two phases lasts.
        half_rps: The rate of the second; None is half of what the first one reaches.
        say: Told of each step.

    Raises:
        BenchError: An answer was no success, or what has to run did not.
        ServerError: A server did not start, or had to be killed.
    """
    with (
        tempfile.TemporaryDirectory(dir=tools.scratch, ignore_cleanup_errors=True) as name,
        sink(variant, tools.otelcol, tools.victorialogs, Path(name) / "collector") as receiver,
    ):
        directory = Path(name)
        api = Api(variant, receiver.url, directory)
        try:
            with tools.cores.on_server():
                api.start()
            vegeta = Vegeta(tools.vegeta, directory, api.url)
            receiver.fail()
            say("warm-up")
            warm = _measured(api, lambda: vegeta.saturate(WARM_UP_SECONDS))
            say("saturation")
            full = _measured(api, lambda: vegeta.saturate(seconds))
            time.sleep(PAUSE_SECONDS)
            say("half load")
            rate = half_rps or full.answers.rps * HALF
            # What is slower than that would only be given a queue to work off.
            workers = OPEN_WORKERS_MAX if full.answers.rps > rate else CONNECTIONS
            half = _measured(api, lambda: vegeta.at_rate(rate, seconds, workers))
            receiver.check()
            rss_mib = api.peak_rss_mib()
            say("delivery")
            receiver.recover()
            if variant.capture is Capture.OURS:
                _drain(api)
            api.stop()
        finally:
            api.__exit__()
        figures = full.figures(api, tools.cores) | {"rss_mib": rss_mib}
        figures |= {f"{HALF_LOAD}{name}": value for name, value in half.figures(api, tools.cores).items()}
        requests = warm.answers.requests + full.answers.requests + half.answers.requests
        return Run(variant.name, figures, requests, receiver.delivered())


def _measured(api: Api, attack: Callable[[], Answers]) -> _Phase:
    before = api.cpu_seconds()
    try:
        answers = attack()
    except BenchError as error:
        raise BenchError(f"{api.name}: {error}\nThe end of the server's log:\n{api.log_tail()}") from error
    return _Phase(answers, api.cpu_seconds() - before)


def _drain(api: Api) -> None:
    """Waits until nothing lies in the journal."""
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    left: Sequence[int] = (1,)
    while any(left):
        if time.monotonic() > deadline:
            raise BenchError(f"{api.name}: {sum(left)} records still wait after {DRAIN_SECONDS_MAX} s")
        time.sleep(0.2)
        left = [state.records for state in journal_dir.inspect(api.journal)]
