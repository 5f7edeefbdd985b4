"""What a real Collector leaves on disk under the widest umask, through rotation, with queues."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway import EXEC, Gateway, record, settings_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_nobody_but_the_collectors_user_can_reach_archive_and_queues(
    umask: int, otelcol: Path, tmp_path: Path, runnable: list[str]
) -> None:
    before = os.umask(umask)
    try:
        with Gateway(
            otelcol, tmp_path / "data", settings_of(runnable) | {"AUDIT_COLLECTOR_ARCHIVE_FILE_MB": "1"}
        ) as own:
            for _ in range(3):
                assert own.send(record(EXEC | {"audit.exec.stdout.text": "x" * 600_000})).status_code == 200
    finally:
        os.umask(before)
    found = list((tmp_path / "data").rglob("*"))
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in found}
    assert len([path for path in found if path.name.startswith("audit-")]) >= 1, "nothing was rotated"
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file() and path.parent.name != "archive"} == {0o600}
    # Upstream's file exporter sets this itself; should it change, docs/threat-model.md has to.
    assert {mode for path, mode in modes.items() if path.parent.name == "archive"} == {0o644}
