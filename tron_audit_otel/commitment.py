"""What an answer waits for under ``commit: response``: that its record is on disk.

The journal's thread settles it; the request's task awaits it, on asyncio or trio.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Commitment:
    """One record's; made and awaited in the event loop of its request."""

    __slots__ = ("_made_at", "_settled", "kept", "soon")

    def __init__(self) -> None:
        """Belongs to the event loop that runs."""
        token: Any = current_token()
        loop: Any = getattr(token, "native_token", token)
        self.soon: Callable[..., object] = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        """Runs a function in that loop, from any thread: asyncio's name for it, or trio's."""
        self._settled = anyio.Event()
        self._made_at = anyio.current_time()
        self.kept = False

    def settle(self) -> None:
        """Ends the wait; called in the loop."""
        self._settled.set()

    async def wait(self, seconds_max: float) -> bool:
        """Waits, for so long since it was made, however often; tells whether the record is on disk."""
        if not self._settled.is_set():
            with anyio.move_on_after(max(0, self._made_at + seconds_max - anyio.current_time())):
                await self._settled.wait()
        return self.kept


class Commitments:
    """Those that are waited for, by record id."""

    def __init__(self) -> None:
        """Begins with none."""
        self._open: dict[str, Commitment] = {}

    def promise(self, record_id: str) -> Commitment:
        """Makes one for a record that is about to be emitted."""
        self._open[record_id] = commitment = Commitment()
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
