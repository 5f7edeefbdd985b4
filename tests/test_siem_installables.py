"""What is to be installed in Splunk and Datadog names only what these are sent, and covers what they look for."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from collector import launch
from tests import golden
from tests.listener import listening

if TYPE_CHECKING:
    from pathlib import Path

SIEM = launch.HERE / "siem"


def sent(name: str) -> dict[str, Any]:
    """The golden file of a SIEM."""
    found: dict[str, Any] = json.loads((golden.DIRECTORY / "siem" / f"{name}.json").read_text())
    return found


def shell_block(readme: Path) -> str:
    """The one block of commands in a README."""
    [block] = re.findall(r"```sh\n(.*?)```", readme.read_text(), re.DOTALL)
    return str(block)


APP = SIEM / "splunk" / "TA-tron-audit"
EVENTS: dict[str, dict[str, Any]] = {name: each["event"] for name, each in sent("splunk")["records"].items()}
FIELDS = {field for event in EVENTS.values() for field in event}
COMPUTED = {"duration", "command"}
OF_SPLUNK = {"_time", "_raw", "index", "sourcetype"}
# Words of the search language that our searches use.
WORDS = set(
    "search stats timechart streamstats table sort where eval convert dedup fillnull count dc values min max sum "  # noqa: SIM905 - to be read
    "earliest latest last ctime coalesce current by as and or not in keepempty value true false".split()
)
CONFS = sorted((APP / "default").glob("*.conf"))

# What the data models take, from the CIM add-on's tables (docs.splunk.com, CIM 6.0: Change, Authentication, Endpoint):
# their tags, their values of `action`, and of the fields that they want those that a record can have.
TAGS = {
    "Change": {"change"},
    "Change.Auditing_Changes": {"change", "audit"},
    "Authentication": {"authentication"},
    "Endpoint.Processes": {"process", "report"},
}
ACTIONS = {
    "Change": {"created", "read", "modified", "deleted", "started", "stopped"},
    "Authentication": {"success", "failure", "pending", "error"},
    "Endpoint.Processes": {"allowed", "blocked", "deferred"},
}
REQUIRED = {
    "Change": {"action", "change_type", "dest", "dvc", "object", "object_category", "status", "vendor_product"},
    "Authentication": {"action", "app", "dest", "src", "user"},
    "Endpoint.Processes": {"action", "dest", "process", "process_name", "user", "vendor_product"},
}
MODELS = {
    "create": {"Change"},
    "read": {"Change"},
    "update": {"Change"},
    "delete": {"Change"},
    "delete-refused": {"Change"},
    "crash": {"Change"},
    "websocket": {"Change"},
    "fact": {"Change"},
    "bare": {"Change"},
    "start": {"Change", "Change.Auditing_Changes"},
    "policy-change": {"Change", "Change.Auditing_Changes"},
    "login": {"Authentication"},
    "login-refused": {"Authentication"},
    "exec": {"Endpoint.Processes"},
    "exec-failed": {"Endpoint.Processes"},
    "exec-refused": {"Endpoint.Processes"},
    "hostile": {"Endpoint.Processes"},
    "logout": set[str](),
    "not-found": set[str](),
    "adopt": set[str](),
    "loss": set[str](),
}

DATADOG = SIEM / "datadog"
FILES = sorted(DATADOG.rglob("*.json"))
SENT = sent("datadog")


class TestSplunk:
    def conf(self, name: str) -> configparser.ConfigParser:
        # Strict: what stands twice would silently count once.
        found = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=True)
        found.optionxform = str  # type: ignore[assignment,method-assign] # as the documentation of configparser does
        text = (APP / name).read_text()
        found.read_string(text.replace("[]", "[everything]", 1))  # of default.meta
        return found

    def searches(self) -> dict[str, str]:
        """Everything in the search language, by where it stands."""
        found: dict[str, str] = {}
        for file, key in (("savedsearches", "search"), ("macros", "definition"), ("eventtypes", "search")):
            conf = self.conf(f"default/{file}.conf")
            found |= {f"{file}: {section}": conf[section][key] for section in conf.sections()}
        for number, query in enumerate(self.dashboard().iter("query")):
            found[f"dashboard: {number}"] = query.text or ""
        return found

    def dashboard(self) -> ET.Element:
        return ET.parse(APP / "default/data/ui/views/tron_audit.xml").getroot()  # noqa: S314 - our own file

    def named(self, search: str) -> set[str]:
        """The fields that a search reads."""
        made = set(re.findall(r"\bas (\w+)", search)) | set(re.findall(r"\beval (\w+)=", search))
        text = re.sub(r"\$[^$]*\$|`\w+`|\"[^\"]*\"|\bIN \([^)]*\)", " ", search)
        words: set[str] = set()
        for command in text.split("|"):
            # On the right of a comparison stands a value, but an expression in these.
            expression = command.strip().startswith(("eval", "where", "stats", "streamstats"))
            words |= set(re.findall(r"[A-Za-z_]\w*", command if expression else re.sub(r"=\S+", " ", command)))
        return {word for word in words if word.lower() not in WORDS} - made - OF_SPLUNK

    @pytest.mark.parametrize("file", CONFS, ids=lambda file: file.name)
    def test_every_conf_file_is_whole_and_says_nothing_twice(self, file: Path) -> None:
        assert self.conf(f"default/{file.name}").sections()

    def test_no_search_and_no_panel_names_a_field_that_splunk_is_not_sent(self) -> None:
        found = {where: self.named(search) - FIELDS - COMPUTED for where, search in self.searches().items()}
        assert {where: fields for where, fields in found.items() if fields} == {}
        assert len(found) > 20

    def test_a_field_that_is_not_sent_would_be_found(self) -> None:
        assert self.named("search userr=alice http_status IN (1, 2) | stats count as n by src | sort - n") == {
            "userr",
            "http_status",
            "src",
        }

    def test_a_long_output_hides_no_field_that_a_model_or_a_search_asks_for(self) -> None:
        props = self.conf("default/props.conf")["tron:audit"]
        by_name = {key.removeprefix("EVAL-") for key in props if key.startswith("EVAL-")}
        asked = {field for search in self.searches().values() for field in self.named(search)}
        asked |= set().union(
            *REQUIRED.values(), {"action", "result", "result_id", "reason", "process_exec", "process_path"}
        )
        # Of the trail's own records, which have no output.
        short = {"policy_sha256", "policy_previous_sha256", "system_commit", "system_on_full"}
        short |= {"system_proxy_hops", "system_proxy_header"}
        assert asked - by_name - short == set()
        for field in by_name - COMPUTED:
            assert props[f"EVAL-{field}"] == f'coalesce({field}, json_extract(_raw, "{field}"))'
        for key in by_name:
            assert set(re.findall(r'_raw, "(\w+)"', props[f"EVAL-{key}"])) <= FIELDS

    def test_a_list_that_a_search_reads_is_one_value_under_its_own_name(self) -> None:
        # Splunk names what it finds in a list `name{}`.
        lists = {field for event in EVENTS.values() for field, value in event.items() if isinstance(value, list)}
        asked = {field for search in self.searches().values() for field in self.named(search)}
        assert lists & asked == {"system_trusted_proxies"}
        assert lists & asked <= {key.removeprefix("EVAL-") for key in self.conf("default/props.conf")["tron:audit"]}

    def test_no_search_leaves_out_records_that_lack_a_field_it_groups_by(self) -> None:
        always = set.intersection(*(set(event) for event in EVENTS.values()))
        macro = self.conf("default/macros.conf")["tron_audit"]["definition"]
        grouping = {where: search for where, search in self.searches().items() if re.search(r"stats .* by ", search)}
        assert len(grouping) > 5
        for where, search in grouping.items():
            filled = {
                field for names in re.findall(r"fillnull value=\w+ ([\w ]+)", macro + search) for field in names.split()
            }
            grouped = {
                field
                for command in search.split("|")
                for names in re.findall(r"stats .* by ([\w, ]+)", command)
                for field in names.replace(",", " ").split()
            }
            assert grouped - filled - always == set(), where

    @pytest.mark.parametrize(
        ("asking", "shown"),
        [
            pytest.param("src_suspect=true", {"src", "src_peer", "src_rule"}, id="addresses in doubt"),
            pytest.param(
                "change_type=audit",
                {"policy_sha256", "policy_previous_sha256"}
                | {"system_trusted_proxies", "system_proxy_hops", "system_proxy_header"},
                id="changes of the trail",
            ),
        ],
    )
    def test_what_an_auditor_must_notice_is_shown_on_the_dashboard_and_in_a_search(
        self, asking: str, shown: set[str]
    ) -> None:
        found = []
        for where, search in self.searches().items():
            tables = [each for each in search.split("|") if each.strip().startswith(("stats", "table"))]
            if asking in search and tables and shown <= self.named(tables[-1]):
                found.append(where)
        assert {where.partition(":")[0] for where in found} == {"savedsearches", "dashboard"}

    def test_every_macro_that_is_used_is_there(self) -> None:
        used = {name for search in self.searches().values() for name in re.findall(r"`(\w+)`", search)}
        assert used == set(self.conf("default/macros.conf").sections())

    def test_every_tag_is_on_an_event_type_that_is_there(self) -> None:
        tagged = {section.removeprefix("eventtype=") for section in self.conf("default/tags.conf").sections()}
        assert tagged == set(self.conf("default/eventtypes.conf").sections()) - {"tron_audit"}

    def tags(self, event: dict[str, Any]) -> set[str]:
        """The tags that Splunk gives to an event."""
        types, tags = self.conf("default/eventtypes.conf"), self.conf("default/tags.conf")
        found: set[str] = set()
        for name in types.sections():
            terms = dict(term.split("=", 1) for term in shlex.split(types[name]["search"]))
            assert terms.pop("sourcetype") == "tron:audit"
            if all(field in event and value in {"*", event[field]} for field, value in terms.items()):
                section = f"eventtype={name}"
                found |= {
                    tag for tag, state in (tags[section].items() if section in tags else ()) if state == "enabled"
                }
        return found

    def test_each_record_is_in_the_data_models_that_it_belongs_to(self) -> None:
        assert set(MODELS) == set(EVENTS)
        for name, event in EVENTS.items():
            tags = self.tags(event)
            assert {model for model, needed in TAGS.items() if needed <= tags} == MODELS[name], name
            assert set().union(*(TAGS[model] for model in MODELS[name]), set()) == tags, name

    def test_each_model_finds_its_fields_and_values(self) -> None:
        # Of `bare` nothing is known, and the request in `hostile` failed without a word on whether its command ran.
        unknown = {"bare", "hostile"}
        for name, models in MODELS.items():
            event = EVENTS[name]
            assert event.get("status", "success") in {"success", "failure"}, name
            for model in models & ACTIONS.keys():
                assert event.get("action", "allowed") in ACTIONS[model], name
                missing = REQUIRED[model] - event.keys()
                allowed = {"status"} if name == "websocket" else set()  # a client that left knows none
                assert name in unknown or missing == allowed, (name, model)

    def test_nothing_but_the_event_goes_to_splunk(self) -> None:
        for each in sent("splunk")["records"].values():
            assert each.keys() == {"time", "event"}

    def test_what_asks_for_losses_finds_no_refused_requests_which_are_none(self) -> None:
        asking = {where: search for where, search in self.searches().items() if "audit_action=LOSS" in search}
        assert len(asking) == 2
        assert [where for where, search in asking.items() if "NOT system_reason=request_refused" not in search] == []

    def test_no_search_runs_by_itself(self) -> None:
        conf = self.conf("default/savedsearches.conf")
        assert {conf[section].get("enableSched", "0") for section in conf.sections()} == {"0"}

    def test_other_apps_see_what_the_data_models_need(self) -> None:
        conf = self.conf("metadata/default.meta")
        assert {name for name in conf.sections() if conf[name].get("export") == "system"} == {
            "props",
            "eventtypes",
            "tags",
            "macros",
        }


class TestDatadog:
    def read(self, name: str) -> Any:
        return json.loads((DATADOG / name).read_text())

    def attributes(self) -> dict[str, set[type]]:
        found: dict[str, set[type]] = {}
        around = {"attributes": SENT["resource"]}
        for each in (around, *SENT["records"].values()):
            for name, value in each["attributes"].items():
                found.setdefault(name, set()).add(type(value))
        return found

    def named(self) -> dict[str, set[str]]:
        """The attributes that each file names."""
        found: dict[str, set[str]] = {}
        for file in FILES:
            content = json.loads(file.read_text())
            names = set(re.findall(r"@([\w.]+)", json.dumps(content)))
            if file.name == "pipeline.json":
                names |= {source for processor in content["processors"] for source in processor.get("sources", [])}
            found[file.name] = names
        return found

    def test_no_file_names_an_attribute_that_datadog_is_not_sent(self) -> None:
        added = tuple(processor["target"] for processor in self.read("pipeline.json")["processors"])
        known = self.attributes().keys()
        for file, names in self.named().items():
            unknown = {name for name in names - known if not name.startswith(added)}
            assert unknown == set(), file
        assert set(self.named()) == {
            "dashboard.json",
            "facets.json",
            "failed-logins.json",
            "pipeline.json",
            "records-lost.json",
            "silence.json",
        }

    def test_every_query_is_for_the_source_that_the_records_have(self) -> None:
        source = f"source:{SENT['resource']['datadog.log.source']}"
        assert self.read("pipeline.json")["filter"]["query"] == source
        text = json.dumps([self.read("dashboard.json"), *(json.loads(each.read_text()) for each in self.monitors())])
        queries = re.findall(r'"(?:query|query_string)": "((?:[^"\\]|\\.)*)"', text)
        assert len(queries) > 10
        assert [query for query in queries if source not in query] == []

    def monitors(self) -> list[Path]:
        return [file for file in FILES if file.parent.name == "monitors"]

    def test_what_is_grouped_by_or_summed_up_is_in_the_list_of_facets(self) -> None:
        text = " ".join(file.read_text() for file in (DATADOG / "dashboard.json", *self.monitors()))
        grouped = set(re.findall(r'"(?:facet|metric)": "@([\w.]+)"', text)) | set(re.findall(r'by\(\\"@([\w.]+)', text))
        facets = {facet["path"].removeprefix("@") for facet in self.read("facets.json")}
        assert len(grouped) > 5
        assert grouped - facets == set()

    def test_whom_each_process_believes_and_by_which_rule_is_on_the_dashboard(self) -> None:
        columns = set(re.findall(r'"field": "@([\w.]+)"', json.dumps(self.read("dashboard.json"))))
        settings = {name for name in SENT["records"]["start"]["attributes"] if name.startswith("audit.system.")}
        assert {name for name in settings if "prox" in name} <= columns
        assert {"audit.source_ip.rule", "audit.policy.previous_sha256"} <= columns

    def test_every_facet_is_of_the_type_that_is_sent(self) -> None:
        types = {"string": {str}, "integer": {int}, "boolean": {bool}}
        added = tuple(processor["target"] for processor in self.read("pipeline.json")["processors"])
        attributes = self.attributes()
        for facet in self.read("facets.json"):
            path = facet["path"].removeprefix("@")
            assert path.startswith(added) or attributes[path] == types[facet["type"]], facet

    def test_each_monitor_has_the_threshold_of_its_query(self) -> None:
        for file in self.monitors():
            monitor = json.loads(file.read_text())
            assert monitor["query"].split()[-1] == str(monitor["options"]["thresholds"]["critical"]), file.name

    def test_the_commands_of_the_readme_send_every_file_with_the_keys_in_no_argument(self, tmp_path: Path) -> None:
        commands = shell_block(DATADOG / "README.md")
        for name in ("api", "app"):
            (tmp_path / name).write_text(f"s3cret-{name}\n")
        (tmp_path / "bin").mkdir()
        spy = tmp_path / "bin" / "curl"
        spy.write_text(
            f'#!/bin/sh\necho "$@" >> "{tmp_path}/arguments"\nexec /usr/bin/env PATH="$REAL_PATH" curl "$@"\n'
        )
        spy.chmod(0o755)
        with listening() as (url, taken):
            environ = {
                "DD_API_URL": url,
                "DD_API_KEY_FILE": str(tmp_path / "api"),
                "DD_APP_KEY_FILE": str(tmp_path / "app"),
                "PATH": f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin",
                "REAL_PATH": "/usr/local/bin:/usr/bin:/bin",
                "TMPDIR": str(tmp_path),
            }
            subprocess.run(["/bin/sh", "-euc", commands], cwd=DATADOG, env=environ, check=True, timeout=60)
        assert [(post.path, json.loads(post.body)) for post in taken] == [
            ("/api/v1/logs/config/pipelines", self.read("pipeline.json")),
            ("/api/v1/dashboard", self.read("dashboard.json")),
            *(("/api/v1/monitor", json.loads(file.read_text())) for file in self.monitors()),
        ]
        for post in taken:
            headers = post.headers
            assert (headers["dd-api-key"], headers["dd-application-key"]) == ("s3cret-api", "s3cret-app")
            assert headers["content-type"] == "application/json"
        assert "s3cret" not in (tmp_path / "arguments").read_text()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["api", "app", "arguments", "bin"]  # no key is left
