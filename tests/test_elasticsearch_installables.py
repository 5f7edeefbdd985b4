"""What is there to install into Elasticsearch and Kibana, as files; integration/test_elasticsearch.py installs it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from collector import launch
from tron_audit_otel import search_elasticsearch

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED = launch.HERE / "siem" / "elasticsearch"
README = (SHIPPED / "README.md").read_text(encoding="utf-8")
KEYWORD_BYTES_MAX = 32_766  # Lucene's, of one term; more refuses the document
UTF8_BYTES_MAX = 4  # a character


def read(name: str) -> Any:
    return json.loads((SHIPPED / name).read_text(encoding="utf-8"))


def fields(properties: dict[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field that is not the parent of others, with the fields within fields."""
    for name, field in properties.items():
        if "properties" in field:
            yield from fields(field["properties"], f"{above}{name}.")
        else:
            yield f"{above}{name}", field
            yield from fields(field.get("fields", {}), f"{above}{name}.")


MAPPINGS = read("mappings.json")["template"]["mappings"]
FIELDS = dict(fields(MAPPINGS["properties"]))


def each_of(*types: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field["type"] in types])


OBJECTS = [json.loads(line) for line in (SHIPPED / "kibana.ndjson").read_text(encoding="utf-8").splitlines()]
TEMPLATE = read("index-template.json")


def written() -> set[str]:
    """The fields that the transform writes."""
    config = YAML(typ="safe").load(launch.HERE / "siem" / "elasticsearch.yaml")
    statements = config["processors"]["transform/elasticsearch"]["log_statements"]
    paths = (re.match(r"(?:set|append)\(log\.cache((?:\[\"[^\"]+\"\])+)", statement) for statement in statements)
    return {".".join(re.findall(r'"([^"]+)"', path[1])) for path in paths if path} - {"headers"}


class TestMappings:
    def test_every_field_that_is_written_is_mapped_and_every_other_is_not(self) -> None:
        within = {f"{name}.text" for name, field in FIELDS.items() if "fields" in field}
        assert written() == set(FIELDS) - within

    def test_a_field_that_nobody_mapped_stays_unmapped(self) -> None:
        assert MAPPINGS["dynamic"] is False
        assert FIELDS["audit.headers"] == {"type": "object", "enabled": False}

    @each_of("keyword", "wildcard")
    def test_a_long_text_is_left_out_of_the_search_and_not_refused(self, name: str) -> None:
        assert FIELDS[name]["ignore_above"] * UTF8_BYTES_MAX <= KEYWORD_BYTES_MAX

    @each_of("date", "ip", "long")
    def test_a_value_of_the_wrong_kind_is_left_out_of_the_search_and_not_refused(self, name: str) -> None:
        # A data stream's own timestamp may not be malformed; the transform always writes one that is not.
        assert FIELDS[name]["ignore_malformed"] is (name != "@timestamp")

    def test_there_are_fewer_fields_than_the_bound(self) -> None:
        parents = {".".join(name.split(".")[:depth]) for name in FIELDS for depth in range(1, name.count(".") + 1)}
        limits = read("settings.json")["template"]["settings"]["index"]["mapping"]
        assert len(parents | set(FIELDS)) < limits["total_fields"]["limit"]


class TestTemplate:
    def test_it_wins_over_elastics_own_for_logs(self) -> None:
        assert TEMPLATE["index_patterns"] == ["logs-tron.audit-*"]
        assert TEMPLATE["priority"] > 500  # Elastic's own are at 100 and 200, and it asks for more than 500
        assert TEMPLATE["data_stream"] == {}

    def test_it_is_composed_of_what_the_readme_installs(self) -> None:
        installed = re.findall(r"_component_template/(\S+?)\"", README)
        assert sorted(TEMPLATE["composed_of"]) == sorted(installed)

    def test_the_lifecycle_that_it_names_is_installed(self) -> None:
        name = read("lifecycle.json")["template"]["settings"]["index"]["lifecycle"]["name"]
        assert f"/_ilm/policy/{name}" in README

    def test_records_are_kept_for_the_days_that_the_readme_says(self) -> None:
        phases = read("ilm-policy.json")["policy"]["phases"]
        assert phases["hot"]["actions"]["rollover"].keys() == {"max_primary_shard_size", "max_age"}
        days = phases["delete"]["min_age"].removesuffix("d")
        assert f"{days} days" in README


class TestKeys:
    def test_the_collectors_key_can_add_records_and_neither_read_nor_change_any(self) -> None:
        [role] = read("api-key.json")["role_descriptors"].values()
        assert role == {
            "cluster": [],
            "indices": [{"names": TEMPLATE["index_patterns"], "privileges": ["auto_configure", "create_doc"]}],
        }

    def test_the_key_to_compare_with_can_only_read(self) -> None:
        [role] = read("search-api-key.json")["role_descriptors"].values()
        names = search_elasticsearch.STREAMS.split(",")
        assert role == {"cluster": [], "indices": [{"names": names, "privileges": ["read"]}]}

    def test_no_key_stands_on_a_command_line(self) -> None:
        assert not re.search(r"Authorization|ApiKey |--user\b|-u ", README)
        assert "--netrc-file" in README


class TestKibana:
    def test_every_reference_is_to_an_object_of_the_same_file(self) -> None:
        there = {(each["type"], each["id"]) for each in OBJECTS}
        assert len(there) == len(OBJECTS)
        assert {(ref["type"], ref["id"]) for each in OBJECTS for ref in each["references"]} <= there

    def test_the_data_view_is_of_the_streams_of_the_template(self) -> None:
        [view] = [each["attributes"] for each in OBJECTS if each["type"] == "index-pattern"]
        assert (view["title"], view["timeFieldName"]) == (*TEMPLATE["index_patterns"], "@timestamp")

    def test_the_searches_name_no_field_that_is_not_there(self) -> None:
        searches = [each["attributes"] for each in OBJECTS if each["type"] == "search"]
        queries = [json.loads(each["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]["query"] for each in searches]
        named = {column for each in searches for column in each["columns"]}
        named |= {name for query in queries for name in re.findall(r"([\w.]+):", query)}
        assert len(searches) > 3
        assert named <= set(FIELDS)

    @pytest.mark.parametrize(
        ("search", "shown"),
        [
            ("tron-audit-doubtful-sources", {"client.address", "audit.network.peer.address", "audit.source_ip.rule"}),
            (
                "tron-audit-the-trail-itself",
                {"audit.policy.sha256", "audit.policy.previous_sha256"}
                | {f"audit.system.{name}" for name in ("trusted_proxies", "proxy_hops", "proxy_header")},
            ),
        ],
    )
    def test_a_search_shows_what_an_auditor_must_notice(self, search: str, shown: set[str]) -> None:
        [found] = [each["attributes"]["columns"] for each in OBJECTS if each["id"] == search]
        assert shown <= set(found)

    def test_the_dashboard_shows_every_search_in_a_place_of_its_own(self) -> None:
        [dashboard] = [each for each in OBJECTS if each["type"] == "dashboard"]
        panels = json.loads(dashboard["attributes"]["panelsJSON"])
        shown = {ref["name"]: ref["id"] for ref in dashboard["references"]}
        assert {f"{panel['panelIndex']}:{panel['panelRefName']}" for panel in panels} == set(shown)
        assert set(shown.values()) == {each["id"] for each in OBJECTS if each["type"] == "search"}
        assert len({(panel["gridData"]["x"], panel["gridData"]["y"]) for panel in panels}) == len(panels)


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"[`@]([\w-]+\.(?:nd)?json)\b", README))
    assert named == {path.name for path in SHIPPED.iterdir() if path.suffix in {".json", ".ndjson"}}
