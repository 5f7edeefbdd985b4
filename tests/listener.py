"""An endpoint that takes every POST, and remembers what came."""

from __future__ import annotations

import contextlib
import http.server
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Post:
    path: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[Post]]]:
    """Gives its address, and the list of what comes."""
    seen: list[Post] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(Post(self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()
