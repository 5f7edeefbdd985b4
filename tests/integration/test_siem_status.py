"""`tron-audit status` and the command that it prints, with the real Collector."""

from __future__ import annotations

import json
import re
import shlex
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.integration.faulty import Faulty, passing, reset, status
from tests.integration.gateway import EXEC, Gateway, eventually, hasten, hasty, record
from tron_audit_otel import cli, cli_queue, cli_siems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from collector import servers

    Open = Callable[..., Gateway]

OTLP = "/insert/opentelemetry/v1/logs"
HOUR_NS = 3_600 * 10**9


@pytest.fixture
def proxy(store: servers.VictoriaLogs) -> Iterator[Faulty]:
    """What stands for Datadog's intake: a real store, and faults before it."""
    with Faulty(store.url + OTLP) as found:
        yield found


@pytest.fixture
def gateway(otelcol: Path, tmp_path: Path, proxy: Faulty, store: servers.VictoriaLogs) -> Iterator[Gateway]:
    """A Collector with two SIEMs: Datadog behind the proxy, and Elastic's OTLP, which is well."""
    with opened(otelcol, tmp_path, proxy, store) as found:
        yield found


def opened(otelcol: Path, data: Path, proxy: Faulty, store: servers.VictoriaLogs, **more: str) -> Gateway:
    settings = {
        "DD_API_KEY": "s3cret-datadog",
        "DD_OTLP_LOGS_URL": proxy.url,
        "ELASTIC_OTLP_URL": store.url + OTLP.removesuffix("/v1/logs"),
        "ELASTIC_OTLP_API_KEY": "s3cret-elastic",
    }
    return Gateway(otelcol, data / "collector", settings | more, hasty(data, "datadog", "elastic-otlp"))


class Operator:
    """Somebody who runs `tron-audit` on the Collector's machine."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def status(self, gateway: Gateway) -> tuple[int, Any]:
        code, out = self.run(gateway, ["status", "--json", *where(gateway)])
        return code, json.loads(out)

    def told(self, gateway: Gateway) -> str:
        return self.run(gateway, ["status", *where(gateway)])[1]

    def run(self, gateway: Gateway, arguments: list[str]) -> tuple[int, str]:
        environ = {
            "AUDIT_LOG_JOURNAL": "memory",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": gateway.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        self._capsys.readouterr()
        code = cli.main(arguments, environ)
        return code, self._capsys.readouterr().out


@pytest.fixture
def operator(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    hasten(monkeypatch, (cli_queue, "LOOK_SECONDS"), (cli_siems, "SETTLE_SECONDS"))
    return Operator(capsys)


def where(gateway: Gateway) -> list[str]:
    return ["--collector", gateway.metrics, "--archive", str(gateway.data / "archive")]


def send(gateway: Gateway, count: int, *, age_ns: int = 0) -> set[str]:
    """Sends records that happened so long ago, one a request; gives their ids."""
    ids = [str(uuid4()) for _ in range(count)]
    for each in ids:
        now_ns = time.time_ns() - age_ns
        times = {"timeUnixNano": str(now_ns - 10**6), "observedTimeUnixNano": str(now_ns)}
        assert gateway.send({**record({**EXEC, "audit.record.id": each}), **times}).status_code == 200
    return set(ids)


def kinds(answer: Any) -> list[str]:
    return [problem["kind"] for problem in answer["problems"]]


def siem(answer: Any, name: str) -> Any:
    return next(each for each in answer["siems"] if each["name"] == name)


def datadog_alone_is_down(answer: Any) -> bool:
    """It has all ten records waiting, and was tried for some time; the other SIEM has them all."""
    down, other = siem(answer, "datadog"), siem(answer, "elastic-otlp")
    is_tried = down["unanswered"] >= 3 and down["waiting"] == 10
    return kinds(answer) == ["siem_down"] and is_tried and (other["delivered"], other["waiting_bytes"]) == (10, 0)


def settled(operator: Operator, gateway: Gateway, found: Callable[[Any], object]) -> Any:
    """Looks until the answer is so; gives it."""
    answers: list[Any] = []

    def look() -> object:
        answers.append(operator.status(gateway)[1])
        return found(answers[-1])

    eventually(look, "the status")
    return answers[-1]


def stored(store: servers.VictoriaLogs, ids: set[str]) -> int:
    """How many of these Datadog has: only its records have its source."""
    store.flush()
    rows = store.query('"datadog.log.source":="tron_audit_otel" | fields "audit.record.id"')
    return len(ids & {row.get("audit.record.id", "") for row in rows})


def test_siems_that_take_all_are_well(gateway: Gateway, operator: Operator) -> None:
    send(gateway, 10)
    answer = settled(
        operator,
        gateway,
        lambda answer: {(each["delivered"], each["waiting"]) for each in answer["siems"]} == {(10, 0)},
    )
    assert operator.status(gateway)[0] == 0
    for name in ("datadog", "elastic-otlp"):
        found = siem(answer, name)
        assert (found["taken"], found["refused"], found["waiting"], found["replay"]) == (10, 0, 0, None)
        assert found["since_is_clean"]
    assert set(siem(answer, "datadog")["answers"]) == {"200"}
    assert answer["collector"]["archived"] == answer["collector"]["accepted"] == 10
    assert operator.told(gateway).endswith("\nAll is well.\n")


def test_a_siem_that_is_down_is_told_with_what_waits_until_it_is_back(
    gateway: Gateway, operator: Operator, proxy: Faulty
) -> None:
    proxy.fault = reset
    begun = time.time()
    send(gateway, 10)
    sent = time.time()
    answer = settled(operator, gateway, datadog_alone_is_down)
    assert operator.status(gateway)[0] == 1
    found = siem(answer, "datadog")
    assert (found["taken"], found["delivered"], found["refused"], found["waiting"]) == (10, 0, 0, 10)
    assert found["waiting_bytes"] > 10 * 500
    assert begun - 1 <= found["oldest_waiting_at"] <= sent + 1
    proxy.fault = passing
    settled(operator, gateway, lambda answer: answer["ok"] and siem(answer, "datadog")["delivered"] == 10)


def test_what_waits_on_disk_is_told_after_the_collector_was_killed(
    gateway: Gateway, operator: Operator, proxy: Faulty
) -> None:
    proxy.fault = reset
    begun = time.time()
    send(gateway, 10)
    sent = time.time()
    settled(operator, gateway, datadog_alone_is_down)
    gateway.server.kill()
    gateway.server.start()
    answer = settled(operator, gateway, lambda answer: siem(answer, "datadog")["waiting"] == 10)
    found = siem(answer, "datadog")
    assert (found["taken"], found["delivered"], found["owed"]) == (0, 0, 0)
    assert begun - 1 <= found["oldest_waiting_at"] <= sent + 1
    proxy.fault = passing
    # A kill at another moment would have lost some, and nobody could tell.
    answer = settled(
        operator,
        gateway,
        lambda answer: siem(answer, "datadog")["delivered"] == 10 and kinds(answer) == ["siem_doubt"],
    )
    named = re.search(r"`tron-audit (replay [^`]*)`", answer["problems"][0]["text"])
    assert named
    assert operator.run(gateway, shlex.split(named[1]))[0] == 0
    settled(operator, gateway, lambda answer: answer["ok"] and siem(answer, "datadog")["delivered"] == 20)


def test_a_siem_that_takes_nobody_in_is_told_by_its_answers(
    gateway: Gateway, operator: Operator, proxy: Faulty
) -> None:
    proxy.fault = status(503)
    send(gateway, 10)
    settled(
        operator,
        gateway,
        lambda answer: kinds(answer) == ["siem_down"] and siem(answer, "datadog")["answers"]["503"] >= 3,
    )


@pytest.mark.parametrize("restarted", [False, True], ids=["collector-runs-on", "collector-starts-anew"])
def test_the_command_that_status_prints_mends_what_was_refused(
    restarted: bool, gateway: Gateway, operator: Operator, proxy: Faulty, store: servers.VictoriaLogs
) -> None:
    ids = send(gateway, 10, age_ns=4 * HOUR_NS)
    settled(operator, gateway, lambda answer: siem(answer, "datadog")["delivered"] == 10)
    proxy.fault = status(401)
    # First come records that waited at their sender for hours, as after an outage.
    ids |= send(gateway, 5, age_ns=3 * HOUR_NS) | send(gateway, 5)
    # What still waits when the Collector starts anew would be in doubt, and the counters are no snapshot.
    answer = settled(
        operator,
        gateway,
        lambda answer: (
            siem(answer, "datadog")["refused"] == 10 and not any(s["waiting_bytes"] for s in answer["siems"])
        ),
    )
    assert kinds(answer) == ["siem_refused"]
    assert siem(answer, "elastic-otlp")["replay"] is None
    if restarted:
        gateway.server.restart()
        code, answer = operator.status(gateway)
        assert (code, kinds(answer), siem(answer, "datadog")["refused"]) == (1, ["siem_refused"], 0)
    assert siem(answer, "datadog")["owed"] == 10
    assert stored(store, ids) == 10

    [line] = [line for line in operator.told(gateway).splitlines() if line.startswith("To do: ")]
    program, *arguments = shlex.split(line[line.index("tron-audit replay") :])
    assert program == "tron-audit"
    proxy.fault = passing
    code, _ = operator.run(gateway, arguments)
    assert code == 0
    eventually(lambda: stored(store, ids) == 20, "every record at the SIEM")
    settled(operator, gateway, lambda answer: answer["ok"])
    assert operator.status(gateway)[0] == 0
    assert siem(operator.status(gateway)[1], "datadog")["owed"] == 0


def test_what_is_refused_again_while_it_is_replayed_stays_to_be_done(
    gateway: Gateway, operator: Operator, proxy: Faulty
) -> None:
    proxy.fault = status(401)
    send(gateway, 10)
    answer = settled(operator, gateway, lambda answer: siem(answer, "datadog")["refused"] == 10)
    operator.run(gateway, siem(answer, "datadog")["replay"][1:])
    answer = settled(operator, gateway, lambda answer: siem(answer, "datadog")["refused"] == 20)
    assert siem(answer, "datadog")["owed"] == 10
    proxy.fault = passing
    assert operator.run(gateway, siem(answer, "datadog")["replay"][1:])[0] == 0
    settled(operator, gateway, lambda answer: answer["ok"])


def test_a_full_queue_is_told_long_before_and_when_it_is(
    otelcol: Path, tmp_path: Path, operator: Operator, proxy: Faulty, store: servers.VictoriaLogs
) -> None:
    proxy.fault = status(503)
    # No less can be had: a batch has to fit.
    with opened(otelcol, tmp_path, proxy, store, AUDIT_COLLECTOR_QUEUE_BYTES="300000") as gateway:

        def send_one() -> int:
            one = record({**EXEC, "audit.record.id": str(uuid4())}, body="x" * 50_000)
            return gateway.send(one).status_code

        assert [send_one() for _ in range(4)] == [200] * 4
        answer = operator.status(gateway)[1]
        assert "siem_queue" in kinds(answer)
        assert siem(answer, "datadog")["waiting"] == 4
        assert [send_one() for _ in range(3)][-1] == 503
        # The other SIEM's queue is as small, and empties first.
        answer = settled(operator, gateway, lambda answer: not siem(answer, "elastic-otlp")["waiting_bytes"])
        assert "siem_queue_full" in kinds(answer)
        assert not {"siem_queue", "collector_refused"} & set(kinds(answer))
        assert siem(answer, "datadog")["turned_away"] >= 1
        assert answer["collector"]["refused"] >= 1


def test_a_collector_that_has_ended_is_told(gateway: Gateway, operator: Operator) -> None:
    gateway.server.stop()
    code, answer = operator.status(gateway)
    assert (code, kinds(answer), answer["siems"]) == (1, ["collector_silent"], [])
