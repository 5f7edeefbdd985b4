"""The same stage out of docker compose: the upstream Collector, which has every exporter, and nothing to build here.

It is `docker-compose.yaml` with its VictoriaLogs profile, in a project of its own, plus what `stage` adds as well: a
tenant's header for each SIEM, and the gateway.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector import launch, servers
from examples.demo.stage import (
    GATEWAY,
    ROOT,
    TENANTS,
    Stage,
    gateway_settings,
    read_archive,
    siem_settings,
    tenant_overlay,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack

PROJECT = "tron-audit-demo"
"""Not the project of `docker-compose.yaml`: the volumes are removed at the end."""
UP_SECONDS_MAX = 900
"""The first time, images are pulled and the API's is built."""
STORE, HOOK = "http://victorialogs:9428", "http://gateway:4318"
ARCHIVE = "collector:/var/lib/tron-audit/archive"
CONFIG_DIR = "/etc/tron-audit"


class ComposeError(Exception):
    """Docker compose is not there, or did not do what it was asked; the message has what it said."""


def docker(stack: ExitStack, say: Callable[[str], None]) -> Stage:
    """Start everything with docker compose. The stack stops it, and removes its volumes.

    Raises:
        ComposeError: Docker is missing, does not run, or a container did not start.
    """
    if shutil.which("docker") is None or not _run(["docker", "compose", "version"], os.environ).stdout:
        raise ComposeError("DOCKER=1 needs docker with its compose plugin; without it the demo builds all it needs")
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tron-audit-demo-")))
    api_port, store_port = servers.free_ports(2)
    token = secrets.token_urlsafe(16)
    environ = _environ(token, api_port, store_port)
    resolved = json.loads(_compose(["config", "--format", "json"], environ))
    file = directory / "compose.json"
    file.write_text(json.dumps(with_additions(resolved, directory, token)), encoding="utf-8")

    say(f"docker compose up (project {PROJECT}); the first time this pulls images, for minutes")
    stack.callback(_compose, ["-f", str(file), "down", "--volumes"], environ)
    _compose(["-f", str(file), "up", "--build", "--detach", "--wait"], environ)
    store = servers.VictoriaLogs(Path("docker"), directory, store_port)  # only to be asked: docker runs it
    stack.push(store)

    def archive() -> list[dict[str, Any]]:
        with tarfile.open(fileobj=io.BytesIO(_compose(["-f", str(file), "cp", ARCHIVE, "-"], environ))) as tar:
            files = (tar.extractfile(member) for member in tar if member.name.endswith(".jsonl"))
            return read_archive(file.read().decode() for file in files if file is not None)

    def log(name: str) -> str:
        return _compose(["-f", str(file), "logs", "--no-color", name], environ).decode(errors="replace")

    api_url = f"http://127.0.0.1:{api_port}"
    say(f"log store   {store.url}")
    say(f"API         {api_url}/docs")
    return Stage(api_url, store, tuple(TENANTS), (), archive, log)


def _environ(token: str, api_port: int, store_port: int) -> dict[str, str]:
    """Return the variables for compose: none of this shell's or of `.env`, which may turn a real SIEM on."""
    ours = ("AUDIT_", "OTEL_", "DD_", "SPLUNK_", "ELASTIC", "COMPOSE_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    for settings in siem_settings(STORE, HOOK, token).values():
        environ |= settings
    return environ | {
        "AUDIT_COLLECTOR_TOKEN": token,
        "AUDIT_COMPOSE_API_PORT": str(api_port),
        "AUDIT_COMPOSE_VICTORIALOGS_PORT": str(store_port),
        "COMPOSE_PROFILES": "victorialogs",
    }


def with_additions(project: dict[str, Any], directory: Path, token: str) -> dict[str, Any]:
    """Add to a resolved compose project what the demo adds: each SIEM's tenant, and the gateway."""
    overlay = directory / "tenants.yaml"
    overlay.write_text(tenant_overlay(TENANTS), encoding="utf-8")
    collector = project["services"]["collector"]
    collector["command"].append(f"--config={CONFIG_DIR}/tenants.yaml")
    collector["volumes"].append(_mount(overlay))
    project["services"]["gateway"] = {
        "image": collector["image"],
        "command": launch.flags([Path(f"{CONFIG_DIR}/{GATEWAY.name}")]),
        "environment": gateway_settings("0.0.0.0:4318", "0.0.0.0:13133", STORE, token),
        "networks": ["siem"],
        "volumes": [_mount(GATEWAY)],
    }
    return project


def _mount(file: Path) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": str(file),
        "target": f"{CONFIG_DIR}/{file.name}",
        "read_only": True,
        "bind": {"selinux": "z"},
    }


def _compose(arguments: list[str], environ: Mapping[str, str]) -> bytes:
    options = ["--project-name", PROJECT, "--project-directory", str(ROOT), "--env-file", os.devnull]
    command = ["docker", "compose", *options, *arguments]
    done = _run(command, environ)
    if done.returncode != 0:
        raise ComposeError(f"`{' '.join(command)}` failed:\n{done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _run(command: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(  # noqa: S603 - nothing of it comes from outside
            command, env=environ, capture_output=True, timeout=UP_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ComposeError(f"`{' '.join(command)}` took more than {UP_SECONDS_MAX} s") from error
