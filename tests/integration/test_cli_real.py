"""What a killed API has left is delivered by hand to the real Collector, and what was refused is delivered later."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx

from collector import servers
from tests.integration import faulty
from tests.integration.faulty import Faulty
from tests.integration.gateway import ANSWER_SECONDS_MAX, REFUSED, Gateway
from tests.integration.load import Archive, audited, until, waiting
from tests.integration.test_processes import ROOT, UVICORN, Api

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

REQUESTS = 50


def tron_audit(environ: dict[str, str], *arguments: str) -> tuple[int, Any]:
    """Runs a command as an operator would, in the environment of the application."""
    done = subprocess.run(
        [sys.executable, "-m", "tron_audit_otel.cli", *arguments, "--json"],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def kinds(answer: Any) -> list[str]:
    return [problem["kind"] for problem in answer["problems"]]


def is_poison(record: LogRecord) -> bool:
    return faulty.attribute(record, "audit.target.id") == "7"


def test_an_operator_delivers_what_a_killed_process_has_left(otelcol: Path, tmp_path: Path) -> None:
    environ = audited(f"{REFUSED}/v1/logs", tmp_path)
    journal = tmp_path / "journal"
    with Api(UVICORN, environ) as api:
        for number in range(REQUESTS):
            httpx.get(f"{api.url}/kept/{number}", timeout=ANSWER_SECONDS_MAX, verify=servers.TLS, trust_env=False)
        until(lambda: any(journal.glob("*/status.json")), lambda: "no note")
        until(lambda: tron_audit(environ, "status")[1]["processes"][0]["note"]["reason"], lambda: "no attempt")
        answers: list[Any] = []

        def is_noted() -> bool:
            answers.append(tron_audit(environ, "status"))
            totals = answers[-1][1]["totals"]
            return bool(totals["counts"]["pending"] == totals["records"] == waiting(journal) > REQUESTS)

        until(is_noted, lambda: f"the note, renewed each second, still says {answers[-1]}")
        code, answer = answers[-1]
        assert (code, answer["processes"][0]["pid"], kinds(answer)) == (0, api.pid, [])
        assert tron_audit(environ, "journal", "ship")[1]["live"]["journals"] == 1
        api.kill()
    code, answer = tron_audit(environ, "status")
    assert (code, kinds(answer)) == (1, ["left"])

    with Gateway(otelcol, tmp_path, {}) as gateway, Faulty(gateway.url) as proxy:
        proxy.fault = faulty.poison(is_poison)
        archive = Archive(tmp_path)
        found = waiting(journal)
        code, answer = tron_audit({**environ, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": proxy.url}, "journal", "ship")
        assert (code, answer["delivered"], answer["dead_lettered"], answer["left"]) == (1, found - 1, 1, 0), answer
        assert archive.items() == set(range(REQUESTS)) - {7}
        actions = [record.attributes["audit.action"] for record in archive.system()]
        assert actions.count("ADOPT") == 1, "the command itself is not on record"

        environ["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"] = gateway.url
        assert kinds(tron_audit(environ, "status")[1]) == ["dead_letters"]
        [letter] = tron_audit(environ, "journal", "dead-letters")[1]["dead_letters"]
        code, shown = tron_audit(environ, "journal", "dead-letters", "--show", letter["id"])
        assert code == 0
        # What is shown is OTLP/JSON that a real Collector takes.
        taken = httpx.post(gateway.url, json=shown, timeout=ANSWER_SECONDS_MAX, trust_env=False)
        assert taken.json() == {"partialSuccess": {}}
        assert tron_audit(environ, "journal", "dead-letters", "--retry")[1]["delivered"] == 1
        assert archive.items() == set(range(REQUESTS))
        assert archive.duplicates() == 1, "by --show and --retry, with the same id and content"
        assert archive.problems() == []
    assert tron_audit(environ, "journal", "dead-letters")[0] == 0
    assert tron_audit(environ, "status")[0] == 0
    assert not list((journal / "dead-letter").iterdir())
