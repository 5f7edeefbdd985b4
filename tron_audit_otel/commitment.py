"""What an answer waits for under ``commit: response``: that its record is on disk.

The journal's thread settles it; the request's task awaits it, on asyncio or trio.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Commitment(Protocol):
    """One record's; made and awaited in the event loop of its request."""

    kept: bool
    soon: Callable[..., object]
    """Runs a function in that loop, from any thread."""

    def settle(self) -> None:
        """Ends the wait; called in the loop."""

    async def wait(self, seconds_max: float) -> bool:
        """Waits, for so long since it was made, however often; tells whether the record is on disk."""


class _OnAsyncio:
    """Takes a fifth of the time that anyio's event and deadline take."""

    __slots__ = ("_is_settled", "_loop", "_made_at", "_waiting", "kept", "soon")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.soon: Callable[..., object] = loop.call_soon_threadsafe
        self.kept = False
        self._loop = loop
        self._made_at = loop.time()
        self._waiting: list[asyncio.Future[None]] = []
        self._is_settled = False

    def settle(self) -> None:
        self._is_settled = True
        for waiting in self._waiting:
            _wake(waiting)

    async def wait(self, seconds_max: float) -> bool:
        if not self._is_settled:
            waiting = self._loop.create_future()  # each its own: who is cancelled in here cancels it
            self._waiting.append(waiting)
            timer = self._loop.call_at(self._made_at + seconds_max, _wake, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
                self._waiting.remove(waiting)
        return self.kept


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class _OnTrio:
    __slots__ = ("_made_at", "_settled", "kept", "soon")

    def __init__(self) -> None:
        self.soon: Callable[..., object] = current_token().native_token.run_sync_soon  # type: ignore[attr-defined] # trio's
        self.kept = False
        self._made_at = anyio.current_time()
        self._settled = anyio.Event()

    def settle(self) -> None:
        self._settled.set()

    async def wait(self, seconds_max: float) -> bool:
        if not self._settled.is_set():
            with anyio.move_on_after(max(0, self._made_at + seconds_max - anyio.current_time())):
                await self._settled.wait()
        return self.kept


def _commitment() -> Commitment:
    """Makes one for the event loop that runs."""
    try:
        return _OnAsyncio(asyncio.get_running_loop())
    except RuntimeError:
        return _OnTrio()


class Commitments:
    """Those that are waited for, by record id."""

    def __init__(self) -> None:
        """Begins with none."""
        self._open: dict[str, Commitment] = {}

    def promise(self, record_id: str) -> Commitment:
        """Makes one for a record that is about to be emitted."""
        self._open[record_id] = commitment = _commitment()
        return commitment

    def settle_all(self) -> None:
        """None of those that are left will be kept."""
        self.settle(list(self._open), kept=False)

    def settle(self, record_ids: Iterable[str], *, kept: bool) -> None:
        """Says what became of records, from any thread; of those that nobody waits for too."""
        if not self._open:
            return
        by_loop: defaultdict[Callable[..., object], list[Commitment]] = defaultdict(list)
        for record_id in record_ids:
            if (commitment := self._open.pop(record_id, None)) is not None:
                commitment.kept = kept
                by_loop[commitment.soon].append(commitment)
        for soon, commitments in by_loop.items():
            try:
                soon(_settle_all, commitments)
            except RuntimeError:  # the loop is closed: nobody waits
                continue


def _settle_all(commitments: list[Commitment]) -> None:
    for commitment in commitments:
        commitment.settle()
