"""What collector/alerts.yaml says of hours that nobody can wait for: the real `promtool` plays them.

Names and labels are those that a real Collector and a real Prometheus have shown (see test_alerts.py), but for those of
the `elasticsearch` exporter, which are from its documentation and sources.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

import pytest

from collector import build, launch

COLLECTOR: Final = Path(launch.__file__).parent
RULES: Final = COLLECTOR / "alerts.yaml"

GIB: Final = 2**30
OF_ALL: Final = 'job="tron-audit-collector", instance="c"'
UP: Final = {f"up{{{OF_ALL}}}": "1x600"}


def of(metric: str, labels: str = "") -> str:
    return f"{metric}{{{OF_ALL}{', ' if labels else ''}{labels}}}"


SIEM = 'exporter="otlp_http/datadog"'
AT_SIEM = f'{SIEM}, server_address="otlp.example.com", url_path="/v1/logs"'
UNAUTHENTICATED = f'{AT_SIEM}, error_type="Unauthenticated", error_permanent="true"'
FAILED = "otelcol_exporter_send_failed_log_records"
SENT = "otelcol_exporter_sent_log_records"
WAITING = of("otelcol_exporter_queue_size", f'data_type="logs", {SIEM}')
TAKEN = of("otelcol_exporter_enqueue_size_sum", SIEM)
CAPACITY = {of("otelcol_exporter_queue_capacity", f'data_type="logs", {SIEM}'): f"{20 * GIB}x600"}
ARCHIVE = 'exporter="file/archive"'
APP = 'job="api", instance="1", audit_stream="own"'
DOCUMENTS = "otelcol_elasticsearch_docs_processed"

Minutes = dict[int, set[str]]


def minutes(series: dict[str, str], firing: Minutes, name: str) -> object:
    """A case: the series in promtool's notation, a value a minute, and which alerts fire at which minutes."""
    return pytest.param(series, firing, id=name)


CASES: Final = [
    minutes(
        {of(FAILED, UNAUTHENTICATED): "_x60 5x200"},
        {59: set(), 61: {"TronAuditSiemRefuses"}, 89: {"TronAuditSiemRefuses"}, 93: set(), 200: set()},
        "a first refusal counts, though its counter appears with it, and half an hour later it is over",
    ),
    minutes(
        {of(FAILED, UNAUTHENTICATED): "5x60 6x100"},
        {40: set(), 61: {"TronAuditSiemRefuses"}, 95: set()},
        "one refusal more counts",
    ),
    minutes(
        {of(FAILED, UNAUTHENTICATED): "5x60 _x60 2x100", of("otelcol_process_uptime"): "0+60x60 0+60x160"},
        {60: set(), 100: set(), 122: {"TronAuditSiemRefuses"}, 155: set()},
        "after a restart the counter is gone, and begins anew below its old value",
    ),
    minutes(
        {
            of(FAILED, UNAUTHENTICATED): "5x200",
            of(FAILED, f'{AT_SIEM}, error_type="Unknown"'): "_x100 1x100",
        },
        {90: set(), 102: {"TronAuditSiemRefuses"}, 135: set()},
        "another kind of error is another series of the same exporter",
    ),
    minutes(
        {TAKEN: "0x10 500x200", of(SENT, AT_SIEM): "0x12 300x100 500x90", WAITING: "0x11 9000x1 0x200"},
        {20: set(), 24: {"TronAuditSiemLacks"}, 110: {"TronAuditSiemLacks"}, 125: set()},
        "what a SIEM took and nobody can account for is missing there, unless it is only late",
    ),
    minutes(
        {TAKEN: "500x100", of(SENT, AT_SIEM): "300x100", WAITING: "9000x20 9000x80"},
        {2: set()},
        "what waits is not missing",
    ),
    minutes(
        {
            TAKEN: "500x100",
            of(SENT, AT_SIEM): "300x100",
            of(FAILED, UNAUTHENTICATED): "150x100",
            of("otelcol_exporter_enqueue_failed_log_records", SIEM): "50x100",
            WAITING: "0x100",
        },
        {20: {"TronAuditSiemRefuses"}, 60: set()},
        "what was refused, and what found no room, is accounted for",
    ),
    minutes(
        {TAKEN: "500x100", WAITING: "0x100"},
        {20: {"TronAuditSiemLacks"}},
        "a SIEM that was never sent anything lacks all",
    ),
    minutes(
        {of(FAILED, ARCHIVE): "_x60 1x100"},
        {61: {"TronAuditArchiveFails"}, 75: set()},
        "the archive is no SIEM",
    ),
    minutes(
        {WAITING: "0x10 5000x50 0x10", of(SENT, AT_SIEM): "100x61 200x9", **CAPACITY},
        {10: set(), 14: set(), 17: {"TronAuditSiemDead"}, 59: {"TronAuditSiemDead"}, 63: set()},
        "a SIEM is dead when something waits and nothing goes out",
    ),
    minutes(
        {WAITING: "7000x100", **CAPACITY},
        {4: set(), 6: {"TronAuditSiemDead"}},
        "it is after a restart of the Collector too, when nothing was ever sent",
    ),
    minutes(
        {WAITING: "500x100", of(SENT, AT_SIEM): "0x3 1x3 2x3 3x3 4x3 5x3 6x3 7x3 8x3 9x3 10x3", **CAPACITY},
        {minute: set() for minute in range(10, 40, 3)},
        "a SIEM that gets a record each few minutes is not dead, though something waits at each scrape",
    ),
    minutes(
        {WAITING: "0x100", of(SENT, AT_SIEM): "100x100", **CAPACITY},
        {60: set()},
        "without anything to send, a SIEM is not dead",
    ),
    minutes(
        {WAITING: "500x100", of(FAILED, UNAUTHENTICATED): "0+10x100", of(SENT, AT_SIEM): "0x100", **CAPACITY},
        {50: {"TronAuditSiemRefuses"}},
        "a SIEM that refuses everything is not called dead, since that would say that nothing is lost",
    ),
    minutes(
        {WAITING: f"0+{20 * GIB // 600}x600", of(SENT, AT_SIEM): "0+1x600", **CAPACITY},
        {
            10: set(),
            20: {"TronAuditQueueFullSoon"},
            370: {"TronAuditQueueFullSoon", "TronAuditQueueFills"},
        },
        "a queue that would be full in ten hours is announced after a quarter of an hour",
    ),
    minutes(
        {WAITING: f"0+{20 * GIB // 6000}x600", of(SENT, AT_SIEM): "0+1x600", **CAPACITY},
        {60: set(), 590: set()},
        "one that has room for four days is not",
    ),
    minutes(
        {WAITING: f"0x59 {GIB}x2 0x200", of(SENT, AT_SIEM): "0+100x600", **CAPACITY},
        {62: set(), 70: set(), 90: set()},
        "nor one that took a burst and gave it back",
    ),
    minutes(
        {of("otelcol_exporter_enqueue_failed_log_records", SIEM): "_x60 1x100"},
        {61: {"TronAuditQueueTurnsAway"}, 75: set()},
        "a first record that a queue turns away counts",
    ),
    minutes({f"up{{{OF_ALL}}}": "_x600"}, {5: {"TronAuditCollectorDown"}}, "no Collector was ever scraped"),
    minutes(
        {f"up{{{OF_ALL}}}": "1x10 0x1 1x20 0x20"},
        {13: set(), 36: {"TronAuditCollectorDown"}},
        "a Collector that is gone, but for a moment",
    ),
    minutes(
        {of("target_info", f'service_instance_id="{life}"'): f"_x{10 * life} 1x5" for life in range(1, 4)},
        {22: set(), 32: {"TronAuditCollectorRestarts"}, 80: set()},
        "three lives within an hour",
    ),
    minutes(
        {
            of("otelcol_receiver_accepted_log_records"): "0+10x100",
            of(SENT, ARCHIVE): "0+5x50 250x100",
            of("otelcol_processor_incoming_items", 'processor="filter/archive"'): "0+5x100",
            of("otelcol_processor_outgoing_items", 'processor="filter/archive"'): "0+5x100",
        },
        {50: set(), 70: {"TronAuditArchiveMissing"}},
        "records are taken, and the archive stands still",
    ),
    minutes(
        {
            of("otelcol_receiver_accepted_log_records"): "0+10x100",
            of(SENT, ARCHIVE): "0+5x50 250x100",
            of("otelcol_processor_incoming_items", 'processor="filter/archive"'): "0+10x100",
            of("otelcol_processor_outgoing_items", 'processor="filter/archive"'): "0+5x50 250x100",
        },
        {50: set(), 70: set(), 99: set()},
        "a replay is taken, and rightly not archived again",
    ),
    minutes(
        {f"audit_records_emitted_total{{{APP}}}": "0+10x100", of(SENT, ARCHIVE): "0+5x20 100x200"},
        {49: set(), 57: {"TronAuditArchiveOld"}},
        "applications make records, and the archive grows no more",
    ),
    minutes(
        {f"audit_records_emitted_total{{{APP}}}": "10x200", of(SENT, ARCHIVE): "100x200"},
        {100: set()},
        "without records there is nothing to archive",
    ),
    minutes(
        {f'audit_records_dropped_total{{{APP}, reason="disk_full"}}': "_x60 3x100"},
        {59: set(), 61: {"TronAuditRecordsLost"}, 93: set()},
        "a first loss counts, though its counter appears with it",
    ),
    minutes(
        {of(DOCUMENTS, 'outcome="failed_client", error_type="document_parsing_exception"'): "_x60 1x100"},
        {59: set(), 61: {"TronAuditElasticsearchRefuses"}},
        "a document that Elasticsearch refuses",
    ),
    minutes(
        {
            f'{{"otelcol.elasticsearch.docs.processed", {OF_ALL}, outcome="failed_client", '
            f'"error.type"="document_parsing_exception"}}': "_x60 1x100"
        },
        {59: set(), 61: {"TronAuditElasticsearchRefuses"}},
        "the same under a name with dots, which Prometheus 3 takes over unless told otherwise",
    ),
    minutes(
        {
            of(DOCUMENTS, 'outcome="failed_client", error_type="version_conflict_engine_exception"'): "_x60 1x100",
            of(DOCUMENTS, 'outcome="success"'): "_x60 1x100",
        },
        {61: set()},
        "a document that is there already is no refusal",
    ),
    minutes(
        {
            of(DOCUMENTS, 'outcome="failed_client", http_response_status_code="401"'): "_x60 1x100",
            of(FAILED, 'exporter="elasticsearch"'): "_x60 1x100",
        },
        {61: {"TronAuditSiemRefuses"}},
        "a request that Elasticsearch refuses whole is told of once",
    ),
]


@pytest.fixture(scope="module")
def promtool() -> Path:
    return build.promtool()


def run(*command: str | Path) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_promtool_takes_the_rules(promtool: Path) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_promtool_takes_the_configuration_and_finds_the_rules_by_it(promtool: Path) -> None:
    run(promtool, "check", "config", COLLECTOR / "prometheus" / "prometheus.yaml")


@pytest.mark.parametrize(("series", "firing"), CASES)
def test_an_alert_fires_when_it_should_and_at_no_other_time(
    promtool: Path, tmp_path: Path, series: dict[str, str], firing: Minutes
) -> None:
    expected = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
        }
        for minute, alerts in firing.items()
    ]
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in (UP | series).items()],
        "promql_expr_test": expected,
    }
    file = tmp_path / "case.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    run(promtool, "test", "rules", file)
