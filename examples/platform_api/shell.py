"""What "running a command in a pod" means here: looking the answer up in a table.

Nothing is executed. The API is a sample that is safe to run anywhere; it only looks like a shell from outside.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_SECONDS = 0.2
_LONG_LISTING_LINES = 2_000


class Result(NamedTuple):
    """What a command left behind."""

    stdout: str
    stderr: str
    return_code: int


_RESULTS = {
    ("ls", "/app"): Result("app.py\nrequirements.txt\n", "", 0),
    ("whoami",): Result("app\n", "", 0),
    ("cat", "/missing"): Result("", "cat: /missing: No such file or directory\n", 1),
    ("find", "/"): Result("".join(f"/usr/lib/file-{n}\n" for n in range(_LONG_LISTING_LINES)), "", 0),
}
_NEVER_RETURNS = ("sleep", "infinity")


class CommandTimeoutError(Exception):
    """The command was still running after ``TIMEOUT_SECONDS``."""


async def run(command: Sequence[str]) -> Result:
    """Pretend to run ``command`` and return what the table says; 127 for a command that the table lacks.

    Raises:
        CommandTimeoutError: for ``sleep infinity``.

    """
    if tuple(command) == _NEVER_RETURNS:
        await asyncio.sleep(TIMEOUT_SECONDS)
        message = f"no answer within {TIMEOUT_SECONDS} s"
        raise CommandTimeoutError(message)
    name = command[0] if command else ""
    return _RESULTS.get(tuple(command), Result("", f"sh: {name}: not found\n", 127))
