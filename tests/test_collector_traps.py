"""Every trap of the Collector that a configuration can hold is held here, by reading the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from collector import launch

# Configuration as YAML gives it: maps of maps, lists and scalars.
Config = dict[str, Any]

KEYS = Path(__file__).parent / "data" / "exporter_keys.yaml"
BUILT_ONLY_UPSTREAM = {"elasticsearch": "elasticsearch", "splunk": "splunk_hec"}
DAY_SECONDS = 86_400


def read(file: Path) -> Config:
    config: Config = YAML(typ="safe").load(file)
    return config


BASE = read(launch.BASE)
SIEMS = {siem.name: read(siem.file) for siem in launch.SIEMS}
EVERY_FILE = {launch.BASE.name: BASE} | {part.file.name: read(part.file) for part in launch.PARTS}
each_siem = pytest.mark.parametrize("name", SIEMS)
each_file = pytest.mark.parametrize("name", EVERY_FILE)


def exporter(name: str) -> Config:
    [(_, config)] = SIEMS[name]["exporters"].items()
    assert isinstance(config, dict)
    return config


def service(file: str) -> Config:
    config: Config = EVERY_FILE[file].get("service", {})
    return config


def storage(name: str) -> Config:
    [config] = [value for key, value in SIEMS[name]["extensions"].items() if key.startswith("file_storage/")]
    assert isinstance(config, dict)
    return config


def default(value: str) -> str:
    """The text of a configuration value when none of its variables is set."""
    while (found := re.search(r"\$\{env:\w+(?::-([^${}]*))?\}", value)) is not None:
        value = value.replace(found[0], found[1] or "")
    return value


def unknown_keys(config: Config, known: Config, path: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        if key not in known:
            found.append(f"{path}{key}")
        elif isinstance(value, dict) and isinstance(known[key], dict):
            found += unknown_keys(value, known[key], f"{path}{key}::")
    return found


class TestBase:
    def test_otlp_health_and_metrics_are_on_loopback_by_default(self) -> None:
        protocols = BASE["receivers"]["otlp"]["protocols"]
        [reader] = BASE["service"]["telemetry"]["metrics"]["readers"]
        addresses = [
            protocols["grpc"]["endpoint"],
            protocols["http"]["endpoint"],
            BASE["extensions"]["health_check"]["endpoint"],
            reader["pull"]["exporter"]["prometheus"]["host"],
        ]
        assert [default(address).partition(":")[0] for address in addresses] == ["127.0.0.1"] * 4

    def test_both_protocols_take_a_batch_of_the_same_size(self) -> None:
        protocols = BASE["receivers"]["otlp"]["protocols"]
        assert protocols["grpc"]["max_recv_msg_size_mib"] * 1024 * 1024 == protocols["http"]["max_request_body_size"]

    def test_the_archive_rotates_for_only_then_it_is_written_before_the_answer(self) -> None:
        archive = BASE["exporters"]["file/archive"]
        assert {key: default(value) for key, value in archive["rotation"].items()} == {
            "max_megabytes": "100",
            "max_days": "365",
            "max_backups": "0",
        }
        assert archive["create_directory"] is True
        assert "compression" not in archive  # it would be written in frames, and no longer a line a request

    def test_the_archive_and_the_queues_can_be_read_by_the_collector_alone(self) -> None:
        assert BASE["exporters"]["file/archive"]["directory_permissions"] == "0700"
        assert {storage(name)["directory_permissions"] for name in SIEMS} == {"0700"}

    def test_no_line_of_the_log_is_sampled_away(self) -> None:
        assert BASE["service"]["telemetry"]["logs"]["sampling"] == {"enabled": False}


class TestEveryFile:
    @each_file
    def test_the_memory_limiter_is_first(self, name: str) -> None:
        for pipeline in service(name).get("pipelines", {}).values():
            assert pipeline["processors"][0] == "memory_limiter"

    @each_file
    def test_there_is_no_batch_processor_for_it_acknowledges_early(self, name: str) -> None:
        kinds = {key.partition("/")[0] for key in EVERY_FILE[name].get("processors", {})}
        assert kinds <= {"memory_limiter", "transform", "filter"}

    @each_file
    def test_a_failing_statement_does_not_drop_the_payload(self, name: str) -> None:
        for key, processor in EVERY_FILE[name].get("processors", {}).items():
            if key.startswith(("transform", "filter")):
                assert processor["error_mode"] == "ignore"

    @each_file
    def test_no_deprecated_name_is_used(self, name: str) -> None:
        kinds = {key.partition("/")[0] for key in EVERY_FILE[name].get("exporters", {})}
        assert kinds.isdisjoint({"otlp", "otlphttp", "datadog"})  # `datadog` acknowledges what it then loses

    @each_file
    def test_every_extension_that_is_configured_is_started(self, name: str) -> None:
        assert service(name).get("extensions", []) == list(EVERY_FILE[name].get("extensions", {}))


def test_a_variable_has_one_default_in_all_files() -> None:
    defaults: dict[str, set[str]] = {}
    for part in launch.FILES:
        for name, text in re.findall(r"\$\{env:(\w+)(?::-([^${}]*))?\}", part.read_text()):
            defaults.setdefault(name, set()).add(text)
    assert {name: texts for name, texts in defaults.items() if len(texts) > 1} == {}
    assert defaults[launch.DATA_DIR] == {launch.DATA_DIR_DEFAULT}


class TestEverySiem:
    @each_siem
    def test_it_adds_one_exporter_one_storage_and_one_pipeline(self, name: str) -> None:
        config = SIEMS[name]
        [exporter_id] = config["exporters"]
        transforms = list(config.get("processors", {}))
        assert transforms == ([] if name == "http" else [f"transform/{name}"])
        assert config["service"]["pipelines"] == {
            f"logs/{name}": {
                "receivers": ["otlp"],
                "processors": ["memory_limiter", *transforms],
                "exporters": [exporter_id],
            }
        }

    @each_siem
    def test_its_queue_is_on_disk_synced_compacted_and_its_own(self, name: str) -> None:
        config = storage(name)
        directory = f"${{env:AUDIT_COLLECTOR_DATA:-/var/lib/tron-audit}}/queue/{name}"
        assert config["directory"] == directory
        assert config["compaction"]["directory"] == directory  # the default is another file system, and not ours
        assert config["compaction"]["on_rebound"] is True
        assert (config["fsync"], config["create_directory"], config["recreate"]) == (True, True, True)
        assert exporter(name)["sending_queue"]["storage"] == f"file_storage/{name}"

    @each_siem
    def test_its_queue_is_sized_in_bytes_for_weeks(self, name: str) -> None:
        queue = exporter(name)["sending_queue"]
        assert (queue["sizer"], queue["batch"]["sizer"]) == ("bytes", "bytes")
        assert int(default(queue["queue_size"])) / 1500 / 8 > 20 * DAY_SECONDS  # 8 records a second of 1,500 bytes

    @each_siem
    def test_its_queue_blocks_nobody(self, name: str) -> None:
        assert exporter(name)["sending_queue"].keys().isdisjoint({"block_on_overflow", "wait_for_result"})

    @each_siem
    def test_its_batches_are_in_the_queue_and_fit_the_intake(self, name: str) -> None:
        batch = exporter(name)["sending_queue"]["batch"]
        assert 0 < batch["min_size"] < batch["max_size"] <= 2 * 1024 * 1024  # Splunk's and Datadog's limits are above

    @each_siem
    def test_it_is_tried_for_ever(self, name: str) -> None:
        if name == "elasticsearch":
            retry = exporter(name)["retry"]
            assert retry["enabled"] is True
            assert retry["max_retries"] >= 2**31 - 1
            assert set(retry["retry_on_status"]) >= {401, 403, 429, 500, 502, 503, 504}
        else:
            retry = exporter(name)["retry_on_failure"]
            assert (retry["enabled"], retry["max_elapsed_time"]) == (True, "0s")

    @each_siem
    def test_it_does_not_start_without_its_token(self, name: str) -> None:
        if name == "splunk":
            assert (
                exporter(name)["token"].partition(":")[2] == "SPLUNK_HEC_TOKEN}"
            )  # which the exporter wants not to be empty
            return
        authenticator = exporter(name)["auth"]["authenticator"]
        [secret] = [entry for siem in launch.SIEMS if siem.name == name for entry in siem.needs if len(entry) > 1]
        config = SIEMS[name]["extensions"][authenticator]
        assert (config["token"], config["filename"]) == tuple(f"${{env:{variable}:-}}" for variable in secret)

    @each_siem
    def test_no_certificate_goes_unchecked(self, name: str) -> None:
        assert exporter(name).get("tls", {}).keys() <= {"ca_file"}


class TestSplunk:
    def test_a_dead_splunk_does_not_keep_the_collector_from_starting(self) -> None:
        config = exporter("splunk")
        assert config["health_check_enabled"] is False
        assert config["heartbeat"] == {"startup": False}

    def test_a_sender_cannot_choose_token_or_index(self) -> None:
        records, resource = SIEMS["splunk"]["processors"]["transform/splunk"]["log_statements"]
        assert 'delete_matching_keys(log.attributes, ".*")' in records["statements"]
        assert resource["statements"] == ['keep_keys(resource.attributes, ["host.name"])']

    def test_status_is_the_outcome_and_never_the_number(self) -> None:
        text = (launch.HERE / "siem" / "splunk.yaml").read_text()
        assert re.findall(r'set\(log\.cache\["status"\], (\S+)\)', text) == ['log.attributes["audit.outcome"]']


class TestDatadog:
    def test_no_attribute_has_a_name_that_datadog_takes_over(self) -> None:
        text = (launch.HERE / "siem" / "datadog.yaml").read_text()
        named = set(re.findall(r'set\(log\.attributes\["([^"]+)"\]', text))
        assert named.isdisjoint({"message", "msg", "log", "status", "severity", "level"})

    def test_it_goes_to_the_otlp_intake_of_its_site(self) -> None:
        assert default(exporter("datadog")["logs_endpoint"]) == "https://otlp.datadoghq.com/v1/logs"
        assert SIEMS["datadog"]["extensions"]["bearertokenauth/datadog"]["header"] == "dd-api-key"


class TestElasticsearch:
    def test_the_record_id_is_the_document_id_so_that_a_retry_changes_nothing(self) -> None:
        assert exporter("elasticsearch")["logs_dynamic_id"] == {"enabled": True}
        statements = SIEMS["elasticsearch"]["processors"]["transform/elasticsearch"]["log_statements"]
        assert any(
            statement.startswith('set(log.attributes["elasticsearch.document_id"], log.attributes["audit.record.id"])')
            for statement in statements
        )

    def test_the_mapping_mode_is_set_where_it_is_not_ignored(self) -> None:
        assert "mapping" not in exporter("elasticsearch")
        statements = SIEMS["elasticsearch"]["processors"]["transform/elasticsearch"]["log_statements"]
        assert 'set(scope.attributes["elastic.mapping.mode"], "bodymap")' in statements

    def test_the_log_shows_no_document(self) -> None:
        assert exporter("elasticsearch")["include_source_on_error"] is False
        assert "telemetry" not in exporter("elasticsearch")


@pytest.mark.parametrize(("name", "kind"), BUILT_ONLY_UPSTREAM.items())
def test_exporters_that_cannot_be_built_here_are_given_documented_keys_only(name: str, kind: str) -> None:
    assert unknown_keys(exporter(name), read(KEYS)[kind]) == []


def test_a_key_that_is_not_documented_is_found() -> None:
    known = read(KEYS)["splunk_hec"]
    config = {"tokens": "t", "sending_queue": {"batch": {"size": 1}}, "retry_on_failure": {"enabled": True}}
    assert unknown_keys(config, known) == ["tokens", "sending_queue::batch::size"]
