"""What the garbage collector would do meanwhile."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the garbage collector away: it takes what is to be seen, and most of the time where much is made."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
