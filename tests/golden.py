"""Golden files: what is expected, in a file that people read in review.

`UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes them anew; the diff then shows what a change does to the records.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).with_name("golden")


def check(name: str, found: dict[str, Any]) -> None:
    """Compares with the file, or writes it."""
    path = DIRECTORY / f"{name}.json"
    text = json.dumps(found, indent=2) + "\n"  # in ASCII: nothing hides from the reader of a diff
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    # As data first, because that difference is the readable one.
    assert found == json.loads(path.read_text(encoding="utf-8"))
    assert text == path.read_text(encoding="utf-8")


def names() -> set[str]:
    """The files that there are."""
    return {path.stem for path in DIRECTORY.glob("*.json")}
