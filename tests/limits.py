"""The system's own limits, for what a disk or a machine would refuse."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def small_files(bytes_max: int) -> Iterator[None]:
    """No file of this process may grow past so many bytes: the system's own EFBIG, as on a full disk.

    No fixture: the file that the tests' output may go to is one of them.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
