"""Runs the real Prometheus for tests of the alerts and the dashboard, and asks it what it has seen.

    with prometheus(config) as server:
        firing = server.alerts()
        rows = server.query("up")

It also takes OTLP metrics, at `otlp_url`: so an application's names are translated by Prometheus itself.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from collector import build, servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Prometheus(servers.Server):
    """A running Prometheus; `url` is its address."""

    def __init__(self, binary: Path, config: Path, data: Path, port: int) -> None:
        """Describe it: its configuration, its data below `data`, on `port` of the loopback address."""
        self.url = f"http://127.0.0.1:{port}"
        self.otlp_url = f"{self.url}/api/v1/otlp/v1/metrics"
        command = [
            str(binary),
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-otlp-receiver",
            "--log.level=warn",
            "--scrape.discovery-reload-interval=100ms",  # by default it looks at its targets after 5 s
        ]
        super().__init__("prometheus", command, {}, f"{self.url}/-/ready")

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Run an instant query, and return the rows, each with its `metric` (labels) and `value`.

        Raises:
            ServerError: it refused the query, or did not answer.
        """
        return list(self._get("/api/v1/query", {"query": promql})["result"])

    def query_range(self, promql: str, start: float, end: float, step: float = 1) -> list[dict[str, Any]]:
        """Run the query at each `step` from `start` to `end` (seconds; times since the epoch).

        Raises:
            ServerError: it refused the query, or did not answer.
        """
        span = {"start": str(start), "end": str(end), "step": str(step)}
        return list(self._get("/api/v1/query_range", {"query": promql, **span})["result"])

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that fire at present, each with its `labels` and `annotations`."""
        return [alert for alert in self._get("/api/v1/alerts", {})["alerts"] if alert["state"] == "firing"]

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON of many shapes
        try:
            answer = httpx.get(
                self.url + path, params=dict(parameters), timeout=30, verify=servers.TLS, trust_env=False
            )
        except httpx.TransportError as error:
            raise servers.ServerError(self._with_tail(f"did not answer {path}: {error}")) from error
        if not answer.is_success:
            raise servers.ServerError(
                f"{self.name} answered {answer.status_code} to {path} {parameters}: {answer.text}"
            )
        return json.loads(answer.text)["data"]


@contextlib.contextmanager
def prometheus(config: Path, binary: Path | None = None) -> Iterator[Prometheus]:
    """Run Prometheus, built if need be, on a free port and with an empty directory that is removed at the end."""
    binary = binary or build.prometheus()
    with (
        tempfile.TemporaryDirectory(prefix="prometheus-", ignore_cleanup_errors=True) as data,
        Prometheus(binary, config, Path(data), *servers.free_ports(1)) as server,
    ):
        yield server
