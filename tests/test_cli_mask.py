from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tron_audit_otel import cli
from tron_audit_otel.cli_mask import INPUT_BYTES_MAX
from tron_audit_otel.redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def mask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(raw: bytes, *arguments: str, **environ: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code = cli.main(["mask", *arguments], environ)
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("raw", "printed"),
    [
        pytest.param(b"password=hunter2\nls\n", "password=[masked]\nls\n", id="text"),
        pytest.param(b"nothing", "nothing\n", id="no-line-break"),
        pytest.param(b"\x1b[2J\xff", "\\x1b[2J\\udcff\n", id="what-would-steer-a-terminal"),
        pytest.param(b"", "\n", id="empty"),
    ],
)
def test_a_text_is_shown_as_a_record_has_it(mask: Any, raw: bytes, printed: str) -> None:
    assert mask(raw) == (0, printed, "")


def test_a_program_gets_it_as_json(mask: Any) -> None:
    code, out, _ = mask(b"password=hunter2\n\x00", "--json")
    assert (code, json.loads(out)) == (0, {"ok": True, "masked": 1, "text": "password=[masked]\n\\x00"})


@pytest.mark.parametrize("raw", [b"hunter2", b"hunter2\n", b"hunter2\r\n"])
def test_the_mask_of_a_secret_is_the_one_in_records(mask: Any, raw: bytes) -> None:
    expected = Redactor(KEY).mask("hunter2")
    assert mask(raw, "--secret", AUDIT_LOG_HASH_KEY=KEY) == (0, f"{expected}\n", "")
    assert expected in Redactor(KEY).block("password=hunter2").head


@pytest.mark.parametrize(
    ("raw", "environ", "said"),
    [
        pytest.param(b"hunter2", {}, "AUDIT_LOG_HASH_KEY is not set", id="no-key"),
        pytest.param(b"\n", {"AUDIT_LOG_HASH_KEY": KEY}, "--secret: standard input holds no secret", id="no-secret"),
        pytest.param(b"x" * (INPUT_BYTES_MAX + 1), {"AUDIT_LOG_HASH_KEY": KEY}, "at most 1 MiB", id="too-much"),
    ],
)
def test_what_cannot_be_masked_is_refused(mask: Any, raw: bytes, environ: dict[str, str], said: str) -> None:
    code, out, err = mask(raw, "--secret", **environ)
    assert (code, out) == (2, "")
    assert said in err
    assert "hunter2" not in err
