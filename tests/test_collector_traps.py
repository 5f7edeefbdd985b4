"""Every trap of the Collector that a configuration can hold is held here, by reading the files.

A check reads one file. With it stand the changes that it is there to find, and each of them is made to a copy: a check
that cannot fail holds nothing. The checks of a SIEM run on every file of `launch.SIEMS`, also on the next one.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from collector import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Configuration as YAML gives it: maps of maps, lists and scalars.
Config = dict[str, Any]

KEYS = Path(__file__).parent / "data" / "exporter_keys.yaml"
COMPOSE = launch.BASE.parent / "docker-compose.yaml"
BUILT_ONLY_UPSTREAM = {"elasticsearch": "elasticsearch", "splunk": "splunk_hec"}
# What each does with what it cannot deliver has been looked at. Not `datadog`, which acknowledges what it then loses,
# and not `otlp` and `otlphttp`, which are the old names.
EXPORTERS = {"elasticsearch", "otlp_http", "splunk_hec"}
# Not `batch`, which acknowledges early and swallows errors.
PROCESSORS = {"memory_limiter", "filter", "transform"}
REPLAY_MARK = 'resource.attributes["audit.replay.to"]'
GATE = "confmap.enableMergeAppendOption"

DAY_SECONDS = 86_400
QUEUE_DAYS_MIN = 14
QUEUE_MARGIN = 1.4  # for records that are longer, and for what bbolt adds
RECORDS_PER_SECOND = 8
RECORD_BYTES = 1_500
BATCH_BYTES_MAX = 2 * 1024 * 1024  # Splunk's limit; Datadog's is higher
RETRY_SECONDS_MAX = 60

# Keys whose values are secrets, and those by which a secret could get in beside the authenticators.
SECRETS = {"token", "filename", "api_key", "user", "password", "headers", "key_pem", "client_secret", "cloudid"}
NO_SECRET = {"exporters::splunk_hec::token": "replaced"}
"""The exporter wants one; its authenticator replaces it."""
FROM_ENVIRONMENT = re.compile(r"\$\{env:\w+(?::-)?\}")

GONE = object()


def read(file: Path) -> Config:
    config: Config = YAML(typ="safe").load(file)
    return config


BASE = read(launch.BASE)
SIEMS = {siem.name: read(siem.file) for siem in launch.SIEMS}
# The SIEMs whose token may stand in a file.
WITH_TOKEN_FILE = tuple(siem.name for siem in launch.SIEMS if any(len(entry) > 1 for entry in siem.needs))
OVERLAYS = {part.name: read(part.file) for part in launch.OVERLAYS}
FILES = {"base": BASE} | OVERLAYS | SIEMS


# How a copy is broken.


@dataclass(frozen=True, slots=True)
class Change:
    """Puts a value, or what it makes of the old one, wherever the path leads; `GONE` takes the key away."""

    path: str
    to: object = GONE
    # The files that have such a place; all of the check's if there are none.
    of: tuple[str, ...] = ()

    def of_a_copy(self, config: Config) -> Config:
        broken = copy.deepcopy(config)
        places = list(_places(broken, self.path.split(".")))
        assert places, f"{self.path} leads nowhere"
        for parent, key in places:
            if self.to is GONE:
                del parent[key]
            else:
                parent[key] = self.to(parent[key]) if callable(self.to) else self.to
        return broken

    def __str__(self) -> str:
        what = "gone" if self.to is GONE else "changed" if callable(self.to) else repr(self.to)
        return f"{self.path} {what}"


def _places(config: Any, path: list[str]) -> Iterator[tuple[Config, str]]:
    key, *rest = path
    if not rest and "*" not in key:
        yield config, key
        return
    for found in [each for each in config if fnmatchcase(each, key)]:
        if rest:
            yield from _places(config[found], rest)
        else:
            yield config, found


def without(text: str) -> Callable[[list[Any]], list[Any]]:
    """Statements, or groups of them, without those that have the text in them."""

    def change(statements: list[Any]) -> list[Any]:
        kept = [
            {**each, "statements": change(each["statements"])} if isinstance(each, dict) else each
            for each in statements
        ]
        return [each for each in kept if not (isinstance(each, str) and text in each)]

    return change


def also(*more: object) -> Callable[[list[Any]], list[Any]]:
    return lambda old: [*old, *more]


def another_kind(kind: str) -> Callable[[Config], Config]:
    return lambda exporters: dict(zip([kind], exporters.values(), strict=True))


@dataclass(frozen=True, slots=True)
class Trap:
    check: Callable[[str, Config], None]
    changes: tuple[Change, ...]
    files: tuple[str, ...]


@dataclass(slots=True)
class Traps:
    """The checks of one kind of file."""

    files: Mapping[str, Config]
    found: list[Trap] = field(default_factory=list)

    def __call__(self, *changes: Change, of: tuple[str, ...] = ()) -> Callable[[Any], Any]:
        """Takes a check in, and what it must find; `of` names the files it is for, if not all."""
        assert changes, "a check that cannot fail holds nothing"

        def take(check: Callable[[str, Config], None]) -> Callable[[str, Config], None]:
            self.found.append(Trap(check, changes, of or tuple(self.files)))
            return check

        return take

    def held(self) -> Iterator[Any]:
        for trap in self.found:
            for name in trap.files:
                yield pytest.param(trap.check, name, id=f"{name}: {trap.check.__name__}")

    def broken(self) -> Iterator[Any]:
        for trap in self.found:
            for change in trap.changes:
                for name in change.of or trap.files:
                    yield pytest.param(trap.check, name, change, id=f"{name}: {trap.check.__name__}: {change}")


each_file = Traps(FILES)
base = Traps({"base": BASE})
each_siem = Traps(SIEMS)
overlay = Traps(OVERLAYS)
compose = Traps({"compose": read(COMPOSE)})
ALL = (each_file, base, overlay, each_siem, compose)
READ = {**FILES, **compose.files}


# What the checks read.


def exporter(config: Config) -> Config:
    [(_, found)] = config["exporters"].items()
    assert isinstance(found, dict)
    return found


def queue(config: Config) -> Config:
    found: Config = exporter(config)["sending_queue"]
    return found


def kind(component: str) -> str:
    return component.partition("/")[0]


def default(value: object) -> str:
    """The text of a configuration value when none of its variables is set."""
    text = str(value)
    while (found := re.search(r"\$\{env:\w+(?::-([^${}]*))?\}", text)) is not None:
        text = text.replace(found[0], found[1] or "")
    return text


def seconds(text: str) -> float:
    assert re.fullmatch(r"\d+s", text), f"{text} is not in seconds"
    return float(text[:-1])


def statements(config: Config) -> list[str]:
    """Every OTTL statement of its transforms, in order."""
    found: list[str] = []
    for key, processor in config.get("processors", {}).items():
        if kind(key) == "transform":
            for each in processor["log_statements"]:
                found += each["statements"] if isinstance(each, dict) else [each]
    return found


def settings(config: Any, path: str = "") -> Iterator[tuple[str, str, object]]:
    """Every key with its path and its value."""
    pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        yield f"{path}{key}", str(key), value
        yield from settings(value, f"{path}{key}::")


def unknown_keys(config: Config, known: Config, path: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        if key not in known:
            found.append(f"{path}{key}")
        elif isinstance(value, dict) and isinstance(known[key], dict):
            found += unknown_keys(value, known[key], f"{path}{key}::")
    return found


# Every file.

HAS_PIPELINE = ("base", *SIEMS)


@each_file(Change("service.pipelines.*.processors", to=lambda old: [*old[1:], old[0]]), of=HAS_PIPELINE)
def the_memory_limiter_is_first(_: str, config: Config) -> None:
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


@each_file(Change("processors.batch", to={}), Change("processors.tail_sampling/all", to={}), of=HAS_PIPELINE)
def no_processor_acknowledges_what_it_has_not_passed_on(_: str, config: Config) -> None:
    assert {kind(key) for key in config["processors"]} <= PROCESSORS


@each_file(
    Change("processors.filter/*.error_mode", to="propagate"),
    Change("processors.filter/*.error_mode", to="silent"),
    Change("processors.filter/*.error_mode"),
    Change("processors.transform/*.error_mode", to="propagate", of=tuple(SIEMS)),
    Change("processors.transform/*.error_mode", of=tuple(SIEMS)),
    Change(
        "processors.transform/*.log_statements",
        to=lambda old: [{"error_mode": "propagate", "statements": []}, *old],
        of=tuple(SIEMS),
    ),
    of=HAS_PIPELINE,
)
def a_failing_statement_does_not_drop_the_payload(_: str, config: Config) -> None:
    for key, processor in config["processors"].items():
        if kind(key) in {"filter", "transform"}:
            assert processor["error_mode"] == "ignore"  # `transform` would propagate by default
    assert {value for _, key, value in settings(config) if key == "error_mode"} <= {"ignore"}


@each_file(
    Change("service.extensions", to=lambda old: old[1:]),
    Change("extensions.zpages", to={}),
    of=tuple(name for name, config in FILES.items() if "extensions" in config),
)
def every_extension_that_is_configured_is_started(_: str, config: Config) -> None:
    assert config["service"]["extensions"] == list(config["extensions"])


@each_file(
    Change("extensions.bearertokenauth*.token", to="s3cret", of=("auth", *WITH_TOKEN_FILE)),
    Change("extensions.bearertokenauth*.token", to="${env:TOKEN:-s3cret}", of=("auth",)),
    Change("extensions.bearertokenauth*.filename", to="/run/secrets/token", of=("auth",)),
    Change("exporters.*.headers", to={"Authorization": "Bearer s3cret"}, of=tuple(SIEMS)),
    Change("exporters.*.token", to="s3cret", of=("splunk",)),
    Change("exporters.*.api_key", to="s3cret", of=("elasticsearch",)),
)
def no_secret_stands_in_a_file(_: str, config: Config) -> None:
    found = {path: value for path, key, value in settings(config) if key in SECRETS}
    literal = {path: value for path, value in found.items() if not FROM_ENVIRONMENT.fullmatch(str(value))}
    assert literal.items() <= NO_SECRET.items()


# The base.


@base(
    Change("receivers.otlp.protocols.grpc.endpoint", to="${env:AUDIT_COLLECTOR_GRPC_ENDPOINT:-0.0.0.0:4317}"),
    Change("receivers.otlp.protocols.http.endpoint", to="${env:AUDIT_COLLECTOR_HTTP_ENDPOINT:-:4318}"),
    Change("extensions.health_check.endpoint", to="0.0.0.0:13133"),
    Change("service.telemetry.metrics.readers", to=[{"pull": {"exporter": {"prometheus": {"host": ""}}}}]),
    Change("service.telemetry.metrics.readers", to=also({"pull": {"exporter": {"prometheus": {"host": "::"}}}})),
    Change("receivers.otlp/second", to={"protocols": {"http": None}}),
    Change("extensions.pprof", to={}),
)
def it_listens_on_loopback_by_default(_: str, config: Config) -> None:
    protocols = config["receivers"]["otlp"]["protocols"]
    addresses = [
        protocols["grpc"]["endpoint"],
        protocols["http"]["endpoint"],
        config["extensions"]["health_check"]["endpoint"],
        *(
            each["pull"]["exporter"]["prometheus"]["host"]
            for each in config["service"]["telemetry"]["metrics"]["readers"]
        ),
    ]
    assert [default(address).partition(":")[0] for address in addresses] == ["127.0.0.1"] * 4
    assert (set(config["receivers"]), set(config["extensions"])) == ({"otlp"}, {"health_check"})


@base(Change("receivers.otlp.protocols.grpc.max_recv_msg_size_mib", to=4))
def both_protocols_take_a_batch_of_the_same_size(_: str, config: Config) -> None:
    protocols = config["receivers"]["otlp"]["protocols"]
    assert protocols["grpc"]["max_recv_msg_size_mib"] * 1024 * 1024 == protocols["http"]["max_request_body_size"]


@base(
    Change("exporters.file/archive.rotation"),
    Change("exporters.file/archive.rotation", to=None),
    Change("exporters.file/archive.rotation.max_backups", to=100),
    Change("exporters.file/archive.create_directory"),
    Change("exporters.file/archive.compression", to="zstd"),
    Change("exporters.file/archive.format", to="proto"),
    Change("exporters.file/archive.group_by", to={"enabled": True}),
    Change("exporters.file/archive.directory_permissions", to="0755"),
)
def the_archive_is_written_before_the_answer_a_line_a_request(_: str, config: Config) -> None:
    archive = dict(config["exporters"]["file/archive"])
    # Without rotation a buffer is flushed once a second. Files are removed by age, never because there are too many.
    rotation = archive.pop("rotation") or {}
    assert {key: default(value) for key, value in rotation.items()} == {
        "max_megabytes": "100",
        "max_days": "365",
        "max_backups": "0",
    }
    assert archive == {
        "path": "${env:AUDIT_COLLECTOR_DATA:-/var/lib/tron-audit}/archive/audit.jsonl",
        "create_directory": True,
        "directory_permissions": "0700",
        "format": "json",
    }


@base(
    Change("processors.filter/archive.log_conditions", to=[]),
    Change("processors.filter/archive.log_conditions", to=[f'{REPLAY_MARK} != "splunk"']),
    Change("service.pipelines.logs/archive.processors", to=["memory_limiter"]),
    Change("service.pipelines.logs/archive.exporters", to=also("debug")),
    Change("service.pipelines.logs/second", to={}),
)
def the_archive_has_everything_once(_: str, config: Config) -> None:
    assert config["processors"]["filter/archive"]["log_conditions"] == [f"{REPLAY_MARK} != nil"]
    assert config["service"]["pipelines"] == {
        "logs/archive": {
            "receivers": ["otlp"],
            "processors": ["memory_limiter", "filter/archive"],
            "exporters": ["file/archive"],
        }
    }


@base(
    Change("service.telemetry.logs.sampling"),
    Change("service.telemetry.logs.sampling.enabled", to=True),
    Change("service.telemetry.logs.level", to="error"),
)
def no_line_of_the_log_is_sampled_away(_: str, config: Config) -> None:
    logs = config["service"]["telemetry"]["logs"]
    assert logs["sampling"] == {"enabled": False}
    assert default(logs["level"]) == "info"  # what an exporter drops is an error, what it rejects in part a warning


@base(
    Change("service.telemetry.metrics.level", to="normal"),
    Change("service.telemetry.metrics.level"),
    Change("service.telemetry.metrics.address", to=":8888"),
    Change("service.telemetry.metrics.readers", to=[]),
)
def its_metrics_tell_of_each_siem(_: str, config: Config) -> None:
    metrics = config["service"]["telemetry"]["metrics"]
    assert set(metrics) == {"level", "readers"}
    assert metrics["level"] == "detailed"  # on lower ones there are no answers by status code
    [reader] = metrics["readers"]
    assert set(reader["pull"]["exporter"]) == {"prometheus"}


@base(Change("processors.memory_limiter.limit_mib", to=0), Change("processors.memory_limiter.check_interval"))
def the_memory_limiter_limits(_: str, config: Config) -> None:
    limiter = config["processors"]["memory_limiter"]
    assert int(default(limiter["limit_mib"])) > 0
    assert seconds(limiter["check_interval"]) > 0


# Token and TLS for what comes in.


@overlay(
    Change("receivers.otlp.protocols.grpc.auth"),
    Change("receivers.otlp.protocols.http"),
    Change("receivers.otlp.protocols.http.auth.authenticator", to="basicauth"),
    of=("auth",),
)
def the_token_is_asked_for_on_both_protocols(_: str, config: Config) -> None:
    protocols = config["receivers"]["otlp"]["protocols"]
    assert protocols == {key: {"auth": {"authenticator": "bearertokenauth/otlp"}} for key in ("grpc", "http")}
    assert "bearertokenauth/otlp" in config["extensions"]


@overlay(
    Change("receivers.otlp.protocols.grpc.tls.client_ca_file"),
    Change("receivers.otlp.protocols.http"),
    Change("receivers.otlp.protocols.*.tls.min_version", to="1.0"),
    Change("receivers.otlp.protocols.*.tls.min_version"),
    Change("receivers.otlp.protocols.*.tls.insecure", to=True),
    Change("receivers.otlp.protocols.*.tls.reload_interval"),
    of=("tls",),
)
def tls_is_the_same_on_both_protocols_and_not_an_old_one(_: str, config: Config) -> None:
    protocols = config["receivers"]["otlp"]["protocols"]
    files = {f"{name}_file": f"${{env:AUDIT_COLLECTOR_TLS_{name.upper()}_FILE}}" for name in ("cert", "key")}
    authority = {"client_ca_file": "${env:AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE:-}"}
    tls = {**files, **authority, "min_version": "1.2", "reload_interval": "1h"}
    assert protocols == {key: {"tls": tls} for key in ("grpc", "http")}


# Every SIEM.


@each_siem(
    Change("exporters", to=another_kind("datadog/siem")),
    Change("exporters", to=another_kind("otlphttp/siem")),
    Change("exporters", to=another_kind("kafka")),
)
def its_exporter_is_one_whose_losses_are_known(_: str, config: Config) -> None:
    assert {kind(key) for key in config["exporters"]} <= EXPORTERS


@each_siem(
    Change("exporters.nop", to={}),
    Change("service.pipelines.*.exporters", to=also("file/archive")),
    Change("service.pipelines.*.receivers", to=["otlp/second"]),
    Change("service.pipelines.*.processors", to=also("transform/of_another")),
    Change("service.pipelines.*.processors", to=lambda old: [old[0], *reversed(old[1:])]),
    Change("service.pipelines.*.processors", to=lambda old: [each for each in old if not each.startswith("filter/")]),
    Change("service.pipelines.logs/second", to={"receivers": ["otlp"], "exporters": ["nop"]}),
    Change("service.pipelines.traces", to={"receivers": ["otlp"], "exporters": ["nop"]}),
)
def it_is_one_exporter_in_one_pipeline_that_begins_with_its_filter(name: str, config: Config) -> None:
    [exporter_id] = config["exporters"]
    [(pipeline_id, pipeline)] = config["service"]["pipelines"].items()
    assert pipeline_id == f"logs/{name}"
    processors = pipeline["processors"]
    assert pipeline == {"receivers": ["otlp"], "processors": processors, "exporters": [exporter_id]}
    # What changes a record stands behind the filter: it may take the mark away.
    assert processors[:2] == ["memory_limiter", f"filter/{name}"]
    assert processors[1:] == list(config["processors"])
    assert {kind(key) for key in processors[2:]} <= {"transform"}


@each_siem(
    Change("processors.filter/*.log_conditions", to=[]),
    Change("processors.filter/*.log_conditions", to=[f"{REPLAY_MARK} != nil"]),
    Change("processors.filter/*.log_conditions", to=[f'{REPLAY_MARK} != nil and {REPLAY_MARK} != "another"']),
    Change("processors.filter/*.log_conditions", to=also("true")),
    Change("processors.filter/*.log_conditions", to=lambda old: [{"conditions": old, "context": "log"}]),
)
def it_passes_over_what_is_sent_again_to_another_and_nothing_else(name: str, config: Config) -> None:
    assert config["processors"][f"filter/{name}"] == {
        "error_mode": "ignore",
        "log_conditions": [f'{REPLAY_MARK} != nil and {REPLAY_MARK} != "{name}"'],
    }


@each_siem(Change("processors.transform/*.log_statements", to=without("resource.attributes,")))
def it_stores_what_is_sent_again_like_the_first_time(_: str, config: Config) -> None:
    taken_away = [
        statement
        for statement in statements(config)
        if statement == 'delete_key(resource.attributes, "audit.replay.to")'
        or (statement.startswith("keep_keys(resource.attributes, ") and "audit.replay.to" not in statement)
    ]
    assert taken_away


@each_siem(
    Change("exporters.*.sending_queue.storage"),
    Change("exporters.*.sending_queue.storage", to="file_storage/of_all"),
    Change("exporters.*.sending_queue.enabled", to=False),
    Change("extensions.file_storage/*.directory", to="${env:AUDIT_COLLECTOR_DATA:-/var/lib/tron-audit}/queue"),
    Change("extensions.file_storage/*.fsync", to=False),
    Change("extensions.file_storage/*.fsync"),
    Change("extensions.file_storage/*.create_directory"),
    Change("extensions.file_storage/*.directory_permissions"),
    Change("extensions.file_storage/*.recreate"),
    Change("extensions.file_storage/*.max_size", to=1_000_000),
    Change("extensions.file_storage/*.compaction"),
    Change("extensions.file_storage/*.compaction.on_rebound", to=False),
    Change("extensions.file_storage/*.compaction.directory"),
    Change("extensions.file_storage/*.compaction.directory", to="/tmp"),  # noqa: S108 - which it must not be
    Change("extensions.file_storage/*.compaction.cleanup_on_start"),
    Change("extensions.file_storage/second", to={}),
)
def its_queue_is_on_disk_synced_compacted_and_its_own(name: str, config: Config) -> None:
    assert queue(config)["storage"] == f"file_storage/{name}"
    assert "enabled" not in queue(config)
    [storage] = [value for key, value in config["extensions"].items() if kind(key) == "file_storage"]
    directory = f"${{env:AUDIT_COLLECTOR_DATA:-/var/lib/tron-audit}}/queue/{name}"
    assert storage == {
        "directory": directory,
        "create_directory": True,
        "directory_permissions": "0700",
        "fsync": True,
        "recreate": True,
        "timeout": "10s",
        # The default directory is another file system, and not ours.
        "compaction": {"directory": directory, "on_rebound": True, "cleanup_on_start": True},
    }


@each_siem(
    Change("exporters.*.sending_queue.sizer"),
    Change("exporters.*.sending_queue.sizer", to="items"),
    Change("exporters.*.sending_queue.batch.sizer"),
    Change("exporters.*.sending_queue.batch.sizer", to="items"),
    Change("exporters.*.sending_queue.queue_size", to=21_474_836_480),
    Change("exporters.*.sending_queue.queue_size", to="${env:AUDIT_COLLECTOR_QUEUE_BYTES:-1073741824}"),
    Change("exporters.*.sending_queue.queue_size", to="${env:AUDIT_COLLECTOR_QUEUE_BYTES}"),
)
def its_queue_is_sized_in_bytes_for_weeks(_: str, config: Config) -> None:
    assert (queue(config)["sizer"], queue(config)["batch"]["sizer"]) == ("bytes", "bytes")
    size = queue(config)["queue_size"]
    assert str(size).startswith("${env:AUDIT_COLLECTOR_QUEUE_BYTES:-")
    needed = QUEUE_DAYS_MIN * DAY_SECONDS * RECORDS_PER_SECOND * RECORD_BYTES * QUEUE_MARGIN
    assert int(default(size)) >= needed


@each_siem(
    Change("exporters.*.sending_queue.block_on_overflow", to=True),
    Change("exporters.*.sending_queue.wait_for_result", to=True),
    Change("exporters.*.sending_queue.num_consumers", to=0),
)
def its_queue_blocks_nobody(_: str, config: Config) -> None:
    assert queue(config).keys().isdisjoint({"block_on_overflow", "wait_for_result"})
    assert queue(config)["num_consumers"] > 0


@each_siem(
    Change("exporters.*.sending_queue.batch"),
    Change("exporters.*.sending_queue.batch.max_size"),
    Change("exporters.*.sending_queue.batch.max_size", to=0),
    Change("exporters.*.sending_queue.batch.max_size", to=8_388_608),
    Change("exporters.*.sending_queue.batch.min_size", to=8_388_608),
    Change("exporters.*.sending_queue.batch.flush_timeout", to="60s"),
)
def its_batches_are_in_the_queue_and_fit_the_intake(_: str, config: Config) -> None:
    batch = queue(config)["batch"]
    assert 0 < batch["min_size"] < batch["max_size"] <= BATCH_BYTES_MAX
    assert seconds(batch["flush_timeout"]) <= 5


NOT_ELASTICSEARCH = tuple(name for name in SIEMS if name != "elasticsearch")


@each_siem(
    Change("exporters.*.retry_on_failure"),
    Change("exporters.*.retry_on_failure.enabled", to=False),
    Change("exporters.*.retry_on_failure.max_elapsed_time"),
    Change("exporters.*.retry_on_failure.max_elapsed_time", to="300s"),
    Change("exporters.*.retry_on_failure.max_interval", to="3600s"),
    of=NOT_ELASTICSEARCH,
)
def it_is_tried_for_ever(_: str, config: Config) -> None:
    retry = exporter(config)["retry_on_failure"]
    assert (retry["enabled"], retry["max_elapsed_time"]) == (True, "0s")
    assert seconds(retry["initial_interval"]) <= seconds(retry["max_interval"]) <= RETRY_SECONDS_MAX


@each_siem(
    Change("exporters.*.retry"),
    Change("exporters.*.retry.enabled", to=False),
    Change("exporters.*.retry.max_retries"),
    Change("exporters.*.retry.max_retries", to=2),
    Change("exporters.*.retry.max_interval", to="3600s"),
    Change("exporters.*.retry.retry_on_status"),
    Change("exporters.*.retry.retry_on_status", to=[429]),
    Change("exporters.*.retry.retry_on_status", to=also(400)),
    Change("exporters.*.retry_on_failure", to={"enabled": True}),
    of=("elasticsearch",),
)
def elasticsearch_is_tried_for_ever_by_keys_of_its_own(_: str, config: Config) -> None:
    assert "retry_on_failure" not in exporter(config)
    retry = exporter(config)["retry"]
    assert retry["enabled"] is True
    assert retry["max_retries"] >= 2**31 - 1
    assert seconds(retry["initial_interval"]) <= seconds(retry["max_interval"]) <= RETRY_SECONDS_MAX
    # What passes, and what an operator mends. Not 400 and 409: a document that the mapping refuses stays refused, and
    # one that is there already is there.
    assert set(retry["retry_on_status"]) == {401, 403, 404, 408, 429, 500, 502, 503, 504}


@each_siem(
    Change("extensions.bearertokenauth*.token", to="${env:TOKEN_OF_ANOTHER:-}"),
    Change("extensions.bearertokenauth*.filename"),
    Change("exporters.*.auth"),
    of=WITH_TOKEN_FILE,
)
def it_does_not_start_without_its_token_which_may_stand_in_a_file(name: str, config: Config) -> None:
    assert exporter(config)["auth"] == {"authenticator": f"bearertokenauth/{name}"}
    [secret] = [entry for siem in launch.SIEMS if siem.name == name for entry in siem.needs if len(entry) > 1]
    found = config["extensions"][f"bearertokenauth/{name}"]
    assert (found["token"], found["filename"]) == tuple(f"${{env:{variable}:-}}" for variable in secret)


@each_siem(
    Change("exporters.*.tls", to={"insecure": True}),
    Change("exporters.*.tls", to={"insecure_skip_verify": True}),
    Change("exporters.*.tls", to={"server_name_override": "elsewhere"}),
)
def no_certificate_goes_unchecked(_: str, config: Config) -> None:
    assert exporter(config).get("tls", {}).keys() <= {"ca_file", "cert_file", "key_file"}


@each_siem(
    Change("receivers", to={"otlp": {"protocols": {"http": {"endpoint": "0.0.0.0:4318"}}}}),
    Change("extensions.health_check/second", to={"endpoint": "0.0.0.0:13133"}),
    Change("service.telemetry", to={"metrics": {"level": "none"}}),
)
def it_adds_no_listener_and_changes_nothing_of_the_base(_: str, config: Config) -> None:
    assert set(config) == {"exporters", "processors", "extensions", "service"}
    assert set(config["service"]) == {"extensions", "pipelines"}
    assert {kind(key) for key in config["extensions"]} <= {"bearertokenauth", "file_storage"}


@each_siem(
    Change("exporters.*.tokens", to="t"),
    Change("exporters.*.sending_queue.batch.size", to=1),
    of=tuple(BUILT_ONLY_UPSTREAM),
)
def an_exporter_that_cannot_be_built_here_is_given_documented_keys_only(name: str, config: Config) -> None:
    assert unknown_keys(exporter(config), read(KEYS)[BUILT_ONLY_UPSTREAM[name]]) == []


# One SIEM.


@each_siem(
    Change("exporters.*.health_check_enabled", to=True),
    Change("exporters.*.health_check_enabled"),
    Change("exporters.*.heartbeat.startup", to=True),
    Change("exporters.*.heartbeat.interval", to="30s"),
    of=("splunk",),
)
def a_dead_splunk_does_not_keep_the_collector_from_starting(_: str, config: Config) -> None:
    assert exporter(config)["health_check_enabled"] is False
    assert exporter(config)["heartbeat"] == {"startup": False}


@each_siem(
    Change("exporters.*.log_data_enabled", to=False),
    Change("exporters.*.export_raw", to=True),
    Change("exporters.*.max_event_size", to=1_000),
    Change("exporters.*.max_content_length_logs", to=0),
    of=("splunk",),
)
def splunk_is_sent_every_event_with_its_metadata(_: str, config: Config) -> None:
    # Switched off, it drops and reports success; raw, there is no time and no index; smaller, it drops more events.
    assert (
        exporter(config)
        .keys()
        .isdisjoint({"log_data_enabled", "export_raw", "max_event_size", "max_content_length_logs"})
    )


@each_siem(
    Change("processors.transform/*.log_statements", to=without('delete_matching_keys(log.attributes, ".*")')),
    Change("processors.transform/*.log_statements", to=without("resource.attributes, [")),
    Change("processors.transform/*.log_statements", to=lambda old: [*reversed(old)]),
    of=("splunk",),
)
def a_sender_cannot_choose_splunks_token_or_index(_: str, config: Config) -> None:
    [transform] = [value for key, value in config["processors"].items() if kind(key) == "transform"]
    *records, resource = transform["log_statements"]
    assert any('delete_matching_keys(log.attributes, ".*")' in group["statements"] for group in records)
    assert resource["statements"] == ['keep_keys(resource.attributes, ["host.name"])']


@each_siem(
    Change(
        "processors.transform/*.log_statements",
        to=also('set(log.cache["status"], log.attributes["http.response.status_code"])'),
    ),
    of=("splunk",),
)
def splunks_status_is_the_outcome_and_never_the_number(_: str, config: Config) -> None:
    sources = {
        source
        for statement in statements(config)
        for source in re.findall(r'set\(log\.cache\["status"\], (\S+)\)', statement)
    }
    assert sources == {'log.attributes["audit.outcome"]'}


@each_siem(
    *(
        Change("processors.transform/*.log_statements", to=also(f'set({context}["{name}"], "x")'))
        for name in ("message", "msg", "log", "status", "severity", "level")
        for context in ("log.attributes", "resource.attributes")
    ),
    Change("processors.transform/*.log_statements", to=also('merge_maps(log.attributes, log.cache, "insert")')),
    of=("datadog",),
)
def no_attribute_has_a_name_that_datadog_takes_over(_: str, config: Config) -> None:
    named = set(re.findall(r'(?:log|resource)\.attributes\["([^"]+)"\]', "\n".join(statements(config))))
    assert named.isdisjoint({"message", "msg", "log", "status", "severity", "level"})
    assert not [statement for statement in statements(config) if statement.startswith(("merge_maps", "flatten"))]


@each_siem(
    Change("exporters.*.logs_endpoint", to="https://http-intake.logs.datadoghq.com/v1/logs"),
    Change("extensions.bearertokenauth*.header", to="authorization"),
    Change("extensions.bearertokenauth*.scheme", to="Bearer"),
    of=("datadog",),
)
def datadog_is_reached_by_the_otlp_intake_of_its_site(_: str, config: Config) -> None:
    assert default(exporter(config)["logs_endpoint"]) == "https://otlp.datadoghq.com/v1/logs"
    authenticator = config["extensions"]["bearertokenauth/datadog"]
    assert (authenticator["header"], authenticator["scheme"]) == ("dd-api-key", "")


@each_siem(
    Change("exporters.*.logs_dynamic_id.enabled", to=False),
    Change("exporters.*.logs_dynamic_id"),
    Change("processors.transform/*.log_statements", to=without("elasticsearch.document_id")),
    of=("elasticsearch",),
)
def the_record_id_is_the_document_id_so_that_a_retry_changes_nothing(_: str, config: Config) -> None:
    assert exporter(config)["logs_dynamic_id"] == {"enabled": True}
    assert [
        statement
        for statement in statements(config)
        if statement.startswith('set(log.attributes["elasticsearch.document_id"], log.attributes["audit.record.id"])')
    ]


@each_siem(
    Change("exporters.*.mapping", to={"mode": "bodymap"}),
    Change("exporters.*.logs_dynamic_index", to={"enabled": True}),
    Change("exporters.*.logs_index", to="audit"),
    Change("processors.transform/*.log_statements", to=without("elastic.mapping.mode")),
    Change("processors.transform/*.log_statements", to=without('"data_stream.dataset"')),
    of=("elasticsearch",),
)
def the_mapping_mode_and_the_data_stream_are_set_where_they_are_not_ignored(_: str, config: Config) -> None:
    assert exporter(config).keys().isdisjoint({"mapping", "logs_dynamic_index", "logs_index", "logstash_format"})
    said = statements(config)
    assert 'set(scope.attributes["elastic.mapping.mode"], "bodymap")' in said
    assert 'set(log.attributes["data_stream.dataset"], "tron.audit")' in said
    assert any(statement.startswith('set(log.attributes["data_stream.namespace"], ') for statement in said)


@each_siem(
    Change("exporters.*.include_source_on_error"),
    Change("exporters.*.telemetry", to={"log_failed_docs_input": True}),
    of=("elasticsearch",),
)
def elasticsearchs_log_shows_no_document(_: str, config: Config) -> None:
    assert exporter(config)["include_source_on_error"] is False
    assert "telemetry" not in exporter(config)


# docker-compose.yaml.


@compose(
    Change("services.collector.ports", to=["4318:4318"]),
    Change("services.collector.network_mode", to="host"),
    Change("services.collector.networks", to=also("default")),
    Change("services.collector.networks", to=["ingest"]),
    Change("services.victorialogs.networks", to=["ingest"]),
)
def the_collector_is_reached_from_the_applications_network_alone(_: str, config: Config) -> None:
    collector = config["services"]["collector"]
    assert collector.keys().isdisjoint({"ports", "network_mode", "extra_hosts"})
    assert collector["networks"] == ["ingest", "siem"]
    # The others there are what is built here: the application, and what asks the Collector how it does.
    built = config["services"]["api"]["image"]
    others = [service for name, service in config["services"].items() if name != "collector"]
    assert {service["image"] for service in others if "ingest" in service["networks"]} == {built}


@compose(Change("services.collector.command", to=lambda old: old.replace(GATE, "")))
def the_files_lists_are_appended(_: str, config: Config) -> None:
    gate = f"--feature-gates={GATE}"
    assert gate in config["services"]["collector"]["command"].split()
    assert gate in launch.flags([])


@pytest.mark.parametrize(("check", "name"), [case for traps in ALL for case in traps.held()])
def test_the_trap_is_held(check: Callable[[str, Config], None], name: str) -> None:
    check(name, READ[name])


@pytest.mark.parametrize(("check", "name", "change"), [case for traps in ALL for case in traps.broken()])
def test_the_trap_is_found(check: Callable[[str, Config], None], name: str, change: Change) -> None:
    check(name, READ[name])  # otherwise something else would be found
    broken = change.of_a_copy(READ[name])
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(name, broken)


# All files together.


def shared(files: Mapping[str, Config]) -> set[str]:
    """What stands in several files, and would be merged into one."""
    names = Counter(
        f"{section}::{key}"
        for config in files.values()
        for section, components in {**config, "pipelines": config["service"].get("pipelines", {})}.items()
        if section not in {"receivers", "service"}
        for key in components
    )
    return {name for name, count in names.items() if count > 1}


def exporters_not_used_once(files: Mapping[str, Config]) -> set[str]:
    """Exporters with no pipeline, or with several, where one SIEM's queue would have two readers."""
    used = Counter(
        each
        for config in files.values()
        for pipeline in config["service"].get("pipelines", {}).values()
        for each in pipeline["exporters"]
    )
    return {key for config in files.values() for key in config.get("exporters", {}) if used[key] != 1}


WHOLE = {name: {**config, "service": config.get("service", {})} for name, config in FILES.items()}


def test_no_file_changes_what_another_has() -> None:
    assert shared(WHOLE) == set()


def test_every_exporter_is_in_one_pipeline() -> None:
    assert exporters_not_used_once(WHOLE) == set()


@pytest.mark.parametrize("path", ["exporters", "processors", "extensions", "service.pipelines"])
def test_a_name_in_two_files_is_found(path: str) -> None:
    [first, second, *_] = SIEMS
    there = WHOLE[first]["service"]["pipelines"] if "." in path else WHOLE[first][path]
    broken = Change(path, lambda old: {**old, **there}).of_a_copy(WHOLE[second])
    assert shared({**WHOLE, second: broken}) == {f"{path.rpartition('.')[2]}::{key}" for key in there}


@pytest.mark.parametrize("more", [[], ["file/archive"]], ids=["none", "one of another file"])
def test_an_exporter_of_no_pipeline_or_of_two_is_found(more: list[str]) -> None:
    [first, *_] = SIEMS
    broken = Change("service.pipelines.*.exporters", to=lambda _: more).of_a_copy(WHOLE[first])
    assert exporters_not_used_once({**WHOLE, first: broken}) == {*WHOLE[first]["exporters"], *more}


def defaults(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Each variable's defaults in these files."""
    found: dict[str, set[str]] = {}
    for text in texts.values():
        for name, value in re.findall(r"\$\{env:(\w+)(?::-([^${}]*))?\}", text):
            found.setdefault(name, set()).add(value)
    return found


TEXTS = {file.name: file.read_text("utf-8") for file in launch.FILES}


def test_a_variable_has_one_default_in_all_files() -> None:
    found = defaults(TEXTS)
    assert {name: values for name, values in found.items() if len(values) > 1} == {}
    assert found[launch.DATA_DIR] == {launch.DATA_DIR_DEFAULT}


def test_a_second_default_is_found() -> None:
    changed = TEXTS["http.yaml"].replace(launch.DATA_DIR_DEFAULT, "/srv", 1)
    assert defaults({**TEXTS, "http.yaml": changed})[launch.DATA_DIR] == {launch.DATA_DIR_DEFAULT, "/srv"}
