"""API, Collector and log store, killed in every order under load: each committed record is in the store, once by id."""

from __future__ import annotations

import re
import time
from itertools import permutations
from typing import TYPE_CHECKING

import httpx
import pytest

from collector import servers
from tests.integration import faulty
from tests.integration.faulty import Faulty
from tests.integration.gateway import ANSWER_SECONDS_MAX, Gateway
from tests.integration.load import Archive, Load, audited, some, until
from tests.integration.test_processes import UVICORN, Api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

RATE = 400
REQUESTS_PER_ORDER = 700
SECONDS_BETWEEN_KILLS = 0.3
STORE_SECONDS_MIN = 3
"""The store keeps in memory what it has acknowledged, for two seconds and a write, and not quite in its order."""

ORDERS = list(permutations(("API", "Collector", "store")))


def kill_and_start(parts: Mapping[str, servers.Server], order: Sequence[str]) -> None:
    """Kills them in that order, and starts them in the same: the first is back while the last is still dead."""
    for name in order:
        parts[name].kill()
        time.sleep(SECONDS_BETWEEN_KILLS)
    for name in order:
        parts[name].start()
        time.sleep(SECONDS_BETWEEN_KILLS)


def kept(store: servers.VictoriaLogs) -> Callable[[], bool]:
    """Gives what tells whether all that the store has now is on its disk, by its own metrics."""
    began = time.monotonic()
    try:
        store.flush()  # it counts what can be searched
        wanted = sum(stored_rows(store).values())
    except (servers.ServerError, httpx.HTTPError) as error:
        raise ConnectionResetError from error

    def is_kept() -> bool:
        if time.monotonic() - began < STORE_SECONDS_MIN:
            return False
        try:
            found = stored_rows(store)
        except httpx.HTTPError as error:
            raise ConnectionResetError from error
        return found.get("small", 0) + found.get("big", 0) >= wanted

    return is_kept


def stored_rows(store: servers.VictoriaLogs) -> dict[str, int]:
    """How many rows there are in memory, and how many in small and in big files."""
    answer = httpx.get(f"{store.url}/metrics", timeout=ANSWER_SECONDS_MAX, verify=servers.TLS, trust_env=False)
    return {
        kind: int(rows)
        for kind, rows in re.findall(r'^vl_storage_rows\{type="storage/(\w+)"\} (\d+)', answer.text, re.MULTILINE)
    }


def rows(store: servers.VictoriaLogs) -> list[dict[str, str]]:
    store.flush()
    return store.query('* | fields "audit.record.id", "audit.target.id", "http.route"')


@pytest.mark.parametrize(
    "orders",
    [
        pytest.param([ORDERS[0], ORDERS[-1]], id="short"),
        pytest.param([*ORDERS, *reversed(ORDERS)], id="long", marks=pytest.mark.soak),
    ],
)
def test_killed_in_every_order(
    otelcol: Path, tmp_path: Path, store: servers.VictoriaLogs, orders: Sequence[Sequence[str]]
) -> None:
    requests = REQUESTS_PER_ORDER * len(orders)
    with Faulty(f"{store.url}/insert/opentelemetry") as proxy:
        proxy.fault = faulty.durable(lambda: (store.pid, store.running), lambda: kept(store))
        siem = {"ELASTIC_OTLP_URL": proxy.url, "ELASTIC_OTLP_API_KEY": "made-up"}
        with (
            Gateway(otelcol, tmp_path, siem) as gateway,
            Api(UVICORN, audited(gateway.url, tmp_path, AUDIT_LOG_COMMIT="response")) as api,
        ):
            archive = Archive(gateway.data)
            with Load(api.url, range(requests), rate=RATE) as load:
                for turn, order in enumerate(orders):
                    load.wait_for((turn * 2 + 1) * requests // (len(orders) * 2))
                    kill_and_start({"API": api, "Collector": gateway.server, "store": store}, order)
            until(lambda: load.answered() <= archive.items(), lambda: some(load.answered() - archive.items()))
            until(lambda: archive.ids() <= stored(store), lambda: some(archive.ids() - stored(store)), 120)
    assert load.statuses() == {200: requests - len(load.broken)}
    assert archive.problems() == []
    found = [row for row in rows(store) if row.get("http.route") == "/items/{item}"]
    by_id = {row["audit.record.id"]: int(row["audit.target.id"]) for row in found}
    lost = load.answered() - set(by_id.values())
    assert not lost, f"of what was answered with a committed record, not in the store: {some(lost)}"
    assert len(set(by_id.values())) == len(by_id), "a request is in the store under several ids"
    unknown = set(by_id.values()) - load.answered() - load.broken
    assert not unknown, f"never asked for, and in the store: {some(unknown)}"


def stored(store: servers.VictoriaLogs) -> set[str]:
    return {row["audit.record.id"] for row in rows(store)}
