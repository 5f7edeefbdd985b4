"""The Collector's own metrics, read once: what became of each SIEM's records since the Collector started.

Read is the Prometheus text that the Collector shows at level ``detailed``. A version of it, or a setting, may put
``_total`` behind a counter's name and ``_seconds`` into it, or dots where Prometheus has underscores: all are taken.
A SIEM is an exporter with a queue. Counters begin anew with each start of the Collector; the queue on disk does not.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import requests
from prometheus_client.parser import text_string_to_metric_families
from urllib3.exceptions import HTTPError, ReadTimeoutError

from tron_audit_otel.errors import CollectorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Labels = Mapping[str, str]

TIMEOUT_SECONDS = 5

METRICS_BYTES_MAX = 16 << 20
"""A Collector with five SIEMs shows 100 KiB; more than this is no Collector."""

ARCHIVE = "file/archive"

NAMES = {
    "elasticsearch": "elasticsearch",
    "otlp_http/elastic-otlp": "elastic-otlp",
    "splunk_hec": "splunk",
    "otlp_http/datadog": "datadog",
    "otlp_http/http": "http",
}
"""The SIEMs' names by their exporters, as the files in collector/siem/ have them. Another keeps its exporter's name."""

_KNOBS = (
    "the Collector shows its metrics at AUDIT_COLLECTOR_METRICS_HOST and AUDIT_COLLECTOR_METRICS_PORT; "
    "--collector URL says where else to look"
)
_READ_BYTES = 64 * 1024
_COUNT_MAX = 2**63
_PORTS = {"https": "443", "http": "80"}

_DUPLICATE = "version_conflict_engine_exception"
"""Elasticsearch's word for a document that it has already, which every replay gets."""


@dataclass(frozen=True, slots=True)
class Siem:
    """What became of one SIEM's records, since the Collector started."""

    name: str
    exporter: str
    taken: int | None
    """Records put into its queue; None below level ``detailed``, which does not tell."""
    delivered: int
    refused: int
    """Dropped for good, since the SIEM answered that it does not take them."""
    turned_away: int
    """Found no room in the queue. Their sender was refused too, and sends them again."""
    waiting_bytes: int
    """In the queue, and among them what is being sent. As long as the exporter's ``sizer`` is bytes, as in ours."""
    capacity_bytes: int
    waiting: int | None
    """About so many records are in the queue, by their average size; None when no size is known yet."""
    answers: Mapping[int, int] = field(default_factory=dict)
    """How often it answered with which status code. Empty where no metric ties answers to this exporter."""
    unanswered: int = 0
    """Attempts that got no answer, such as refused connections; told with :attr:`answers` only."""

    @property
    def unaccounted(self) -> int:
        """Records that were put into its queue, and neither left it nor wait; 0 while any do.

        The metrics are no snapshot, so some may only not be counted yet. After a start it says less than there are,
        since what waited on disk then leaves the queue as well.
        """
        return 0 if self.taken is None or self.waiting_bytes else max(0, self.taken - self.delivered - self.refused)


@dataclass(frozen=True, slots=True)
class Collector:
    """What a Collector said of itself."""

    url: str
    read_at: float
    """By this machine's clock, in seconds since 1970, from before the question was sent."""
    uptime_s: float
    instance: str
    """The Collector's ``service.instance.id``: another one at each start, unless it was set. Empty if not told."""
    accepted: int
    """Records that came in."""
    refused: int
    """Records that their sender was told to send again."""
    archived: int
    archive_failed: int
    siems: tuple[Siem, ...]
    elsewhere: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Answers by address, where it cannot be told whose they are: two exporters share it, or none names it."""

    @property
    def started_at(self) -> float:
        """When it started, in seconds since 1970."""
        return max(0.0, self.read_at - self.uptime_s)


class Session(requests.Session):
    """Finds no redirect: told only not to follow any, it would read its body whole, and where it leads."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - overrides a method
        """Gives none."""
        return


def read(url: str, timeout_s: float = TIMEOUT_SECONDS) -> Collector:
    """Asks the Collector at `url`; no longer than about twice `timeout_s`, unless its answer's head drips.

    Raises:
        CollectorError: It does not answer, or it is no Collector; the message names the address and the settings.
    """
    read_at = time.time()
    text = _fetch(url, timeout_s)
    try:
        return parse(text, url, read_at)
    except (ValueError, LookupError) as error:  # the parser raises either
        raise _error(url, "answers, but not with a Collector's metrics") from error


def parse(text: str, url: str, read_at: float) -> Collector:
    """Understands what a Collector has shown.

    Raises:
        ValueError: It is not what a Collector shows.
    """
    samples = _Samples(text)
    uptime_s = samples.value("otelcol_process_uptime")
    if uptime_s is None or not 0 <= uptime_s < math.inf:
        raise ValueError("there is no otelcol_process_uptime, or none that can be")
    info = samples.named("target_info")
    accepted = samples.count("otelcol_receiver_accepted_log_records")
    answers = _Answers(samples)
    return Collector(
        url=url,
        read_at=read_at,
        uptime_s=uptime_s,
        instance=info[0].labels.get("service_instance_id", "") if info else "",
        accepted=accepted,
        # Which of the two counts a full queue or a full disk differs between versions.
        refused=samples.count("otelcol_receiver_refused_log_records")
        + samples.count("otelcol_receiver_failed_log_records"),
        archived=samples.count("otelcol_exporter_sent_log_records", exporter=ARCHIVE),
        archive_failed=samples.count("otelcol_exporter_send_failed_log_records", exporter=ARCHIVE),
        siems=tuple(
            _siem(samples, answers, exporter, nothing_came=not accepted)
            for exporter in sorted(samples.exporters("otelcol_exporter_queue_size"))
        ),
        elsewhere=answers.elsewhere(),
    )


def _siem(samples: _Samples, answers: _Answers, exporter: str, *, nothing_came: bool) -> Siem:
    def count(name: str) -> int:
        return samples.count(name, exporter=exporter)

    name = NAMES.get(exporter, exporter)
    turned_away = count("otelcol_exporter_enqueue_failed_log_records")
    # What finds no room is in this sum as well.
    offered = samples.value("otelcol_exporter_enqueue_size_sum", exporter=exporter)
    if offered is None and (nothing_came or samples.named("otelcol_exporter_enqueue_size_sum")):
        offered = 0
    waiting_bytes = count("otelcol_exporter_queue_size")
    answered, unanswered = _elasticsearch_answers(samples) if name == "elasticsearch" else answers.of(exporter)
    return Siem(
        name=name,
        exporter=exporter,
        taken=None if offered is None else max(0, _whole(offered) - turned_away),
        delivered=count("otelcol_exporter_sent_log_records"),
        refused=_refused(samples, exporter) + (_refused_documents(samples) if name == "elasticsearch" else 0),
        turned_away=turned_away,
        waiting_bytes=waiting_bytes,
        capacity_bytes=count("otelcol_exporter_queue_capacity"),
        waiting=_waiting(samples, exporter, waiting_bytes),
        answers=answered,
        unanswered=unanswered,
    )


def _waiting(samples: _Samples, exporter: str, waiting_bytes: int) -> int | None:
    if not waiting_bytes:
        return 0
    # The first is of what went into the queue; after a start with a full one there is only what it has tried to send.
    for name in ("otelcol_exporter_enqueue_size", "otelcol_exporter_queue_batch_send_size"):
        records = samples.count(f"{name}_sum", exporter=exporter)
        size_bytes = samples.count(f"{name}_bytes_sum", exporter=exporter)
        if records and size_bytes:
            return max(1, round(waiting_bytes * records / size_bytes))
    return None


def _refused(samples: _Samples, exporter: str) -> int:
    # What a stop of the Collector interrupts stays in the queue, and is counted as failed all the same.
    return sum(
        sample.whole
        for sample in samples.named("otelcol_exporter_send_failed_log_records", exporter=exporter)
        if sample.labels.get("error_type") != "Shutdown"
    )


# --- Elasticsearch's own metrics: from the exporter's documentation.md and bulkindexer.go, not run


def _refused_documents(samples: _Samples) -> int:
    """Counts documents refused by themselves, which the exporter counts as sent: only these have an error's type."""
    return sum(
        sample.whole
        for sample in samples.named("otelcol_elasticsearch_docs_processed")
        if sample.labels.get("outcome") != "success" and sample.labels.get("error_type", _DUPLICATE) != _DUPLICATE
    )


def _elasticsearch_answers(samples: _Samples) -> tuple[Mapping[int, int], int]:
    return _by_code(samples.named("otelcol_elasticsearch_bulk_requests_count"))


# --- whose answers are whose


class _Answers:
    """HTTP answers are counted by address; an exporter's address stands on what it has sent or tried to send."""

    def __init__(self, samples: _Samples) -> None:
        self._by_address: dict[str, list[_Sample]] = defaultdict(list)
        for sample in samples.named("http_client_request_duration_count"):
            labels = sample.labels
            port = labels.get("server_port") or _PORTS.get(labels.get("url_scheme", ""), "")
            self._by_address[f"{labels.get('server_address', '')}:{port}"].append(sample)
        self._owners: dict[str, set[str]] = defaultdict(set)
        for name in ("queue_batch_send_size_count", "sent_log_records", "send_failed_log_records"):
            for sample in samples.named(f"otelcol_exporter_{name}"):
                for address in self._addresses(sample.labels):
                    self._owners[address].add(sample.labels.get("exporter", ""))

    def _addresses(self, labels: Labels) -> list[str]:
        host = labels.get("server_address")
        if not host:
            return []
        port = labels.get("server_port")  # as it stands in the exporter's URL: the scheme's own may be left out
        return [f"{host}:{port}"] if port else [f"{host}:{known}" for known in _PORTS.values()]

    def of(self, exporter: str) -> tuple[Mapping[int, int], int]:
        mine = [address for address, owners in self._owners.items() if owners == {exporter}]
        return _by_code(sample for address in mine for sample in self._by_address.get(address, ()))

    def elsewhere(self) -> Mapping[str, Mapping[int, int]]:
        found = {
            address: _by_code(samples)[0]
            for address, samples in self._by_address.items()
            if len(self._owners.get(address, ())) != 1
        }
        return {address: codes for address, codes in found.items() if codes}


def _by_code(samples: Iterator[_Sample] | list[_Sample]) -> tuple[Mapping[int, int], int]:
    codes: Counter[int] = Counter()
    unanswered = 0
    for sample in samples:
        code = sample.labels.get("http_response_status_code", "")
        if code.isdecimal():
            codes[int(code)] += sample.whole
        else:
            unanswered += sample.whole
    return dict(sorted(codes.items())), unanswered


# --- the text


class _Sample(NamedTuple):
    labels: Labels
    value: float

    @property
    def whole(self) -> int:
        return _whole(self.value)


def _whole(value: float) -> int:
    if not 0 <= value < _COUNT_MAX:
        raise ValueError(f"a count is {value}")
    return int(value)


class _Samples:
    """The samples by the names that the Collector has them under, whatever the Prometheus exporter made of those."""

    def __init__(self, text: str) -> None:
        self._by_name: dict[str, list[_Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = _plain(sample.name)
                if not name.endswith("_bucket") and math.isfinite(sample.value):
                    self._by_name[name].append(_Sample(sample.labels, sample.value))

    def named(self, name: str, exporter: str | None = None) -> list[_Sample]:
        found = self._by_name.get(name, [])
        return found if exporter is None else [each for each in found if each.labels.get("exporter") == exporter]

    def value(self, name: str, exporter: str | None = None) -> float | None:
        """The sum over all labels; None: there is no such metric."""
        found = self.named(name, exporter)
        return sum(sample.value for sample in found) if found else None

    def count(self, name: str, exporter: str | None = None) -> int:
        return _whole(self.value(name, exporter) or 0)

    def exporters(self, name: str) -> set[str]:
        return {sample.labels["exporter"] for sample in self.named(name) if sample.labels.get("exporter")}


def _plain(name: str) -> str:
    return re.sub(r"_seconds(?=_count$|_sum$|_bucket$|$)", "", name.replace(".", "_").removesuffix("_total"))


def _fetch(url: str, timeout_s: float) -> str:
    with Session() as session:
        session.trust_env = False  # a proxy for the internet knows nothing of it
        try:
            with session.get(
                url,
                timeout=timeout_s,
                stream=True,
                allow_redirects=False,
                headers={"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"},
            ) as response:
                if response.status_code != requests.codes.ok:
                    raise _error(url, f"answers with HTTP {response.status_code}")
                return _body(response.raw.read1, url, time.monotonic() + timeout_s)
        except (requests.RequestException, HTTPError, OSError) as error:
            raise _error(url, _reason(error)) from error


def _body(read1: Callable[[int], bytes], url: str, deadline_s: float) -> str:
    body = bytearray()
    while chunk := read1(_READ_BYTES):
        body += chunk
        if len(body) > METRICS_BYTES_MAX:
            raise _error(url, f"answers with more than {METRICS_BYTES_MAX >> 20} MiB")
        if time.monotonic() > deadline_s:
            raise _error(url, "answers too slowly")
    return body.decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout | ReadTimeoutError):
        return "does not answer in time"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return f"cannot be read ({type(error).__name__})"


def _error(url: str, what: str) -> CollectorError:
    return CollectorError(f"{url} {what}: {_KNOBS}")
