"""One question to a SIEM's search over HTTP: bounded, never redirected, and worded without secrets when it fails."""

from __future__ import annotations

import json
import logging
import re
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from tron_audit_otel.answer import SECRET_CHARACTERS_MIN, user_agent
from tron_audit_otel.collector_metrics import Session
from tron_audit_otel.errors import SearchError
from tron_audit_otel.redact import MASK, line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from urllib3.response import BaseHTTPResponse

    from tron_audit_otel.archive import Span

ANSWER_BYTES_MAX = 64 << 20
"""The largest is Datadog's, which gives whole records: a hundred of a usual kilobyte."""

ANSWER_SECONDS_MAX = 300
"""For an answer, once its head is there. A search over months of a busy index takes minutes."""

CONNECT_SECONDS_MAX = 10
RETRIES_MAX = 5
BACKOFF_SECONDS = 0.5

RETRY_AFTER_SECONDS_MAX = 3600
"""Datadog counts queries by the hour; nobody makes us wait longer than that at once."""

REASON_CHARACTERS_MAX = 200

MARGIN_SECONDS = 1
"""Around the span that is asked for: stores cut timestamps to the millisecond or the second."""

_NS = 1_000_000_000
_LATEST_S = 4_102_444_800
"""2100: a time that every store takes."""

_PIECE_BYTES = 1 << 16

_logger = logging.getLogger(__name__)


class TooMuchError(SearchError):
    """The answer is longer than ``ANSWER_BYTES_MAX``; to ask for less may help."""


class Client:
    """Posts questions to one server. Not for several threads at once."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, authority: Path | None = None) -> None:
        """Takes the server's address, the headers that let us in, and who vouches for its certificate (PEM)."""
        self._url = url
        words = [part for value in (headers or {}).values() for part in value.split()]
        self._secrets = [part for part in words if len(part) >= SECRET_CHARACTERS_MIN]
        self._session = Session()
        self._session.auth = _Headers(headers or {})
        self._session.headers["user-agent"] = user_agent()
        adapter = HTTPAdapter(max_retries=_patience())
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # On each request, since the session's own would give way to REQUESTS_CA_BUNDLE.
        self._verify = str(authority) if authority else None

    def post(self, path: str, **body: Any) -> bytes:  # noqa: ANN401 - `json` or `data`, as requests takes them
        """Gives the body of the answer to a question.

        Args:
            path: Below the server's address.
            body: ``json`` or ``data`` (a form), as :mod:`requests` takes it.

        Raises:
            SearchError: There is no answer, or one that is no success. :class:`TooMuchError`: it is too long.
        """
        url = self._url + path
        where = url.partition("?")[0]
        deadline_s = time.monotonic() + ANSWER_SECONDS_MAX
        try:
            with self._session.post(
                url,
                **body,
                verify=self._verify,
                timeout=(CONNECT_SECONDS_MAX, ANSWER_SECONDS_MAX),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _content(response, where, deadline_s)
                if response.status_code != requests.codes.ok:
                    raise SearchError(f"{where} answers {self._told(response, content)}")
                return content
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:  # the last: a header is none
            raise SearchError(f"{where} {_cause(error)}") from None

    def question(self, path: str, **body: Any) -> Any:  # noqa: ANN401 - whatever JSON there is
        """Gives the answer to a question as the JSON object that it is.

        Raises:
            SearchError: As :meth:`post`, and when it is none.
        """
        return self.parsed(path, self.post(path, **body))

    def parsed(self, path: str, text: bytes) -> dict[str, Any]:
        """Reads a JSON object.

        Raises:
            SearchError: It is none.
        """
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            if isinstance(found, dict):
                return found
        raise self.odd(path, f"is no JSON object: {text[:REASON_CHARACTERS_MAX].decode('utf-8', 'replace')}")

    def odd(self, path: str, what: str) -> SearchError:
        """Gives the error for an answer that is not as its documentation has it."""
        return SearchError(f"{self._url}{path.partition('?')[0]}: its answer {self._clean(what)}")

    def _told(self, response: requests.Response, content: bytes) -> str:
        """Words a refusal; by the server's own words, which can be anything."""
        if response.is_redirect:
            return f"HTTP {response.status_code}, a redirect, which is not followed"
        words = content[: 4 * REASON_CHARACTERS_MAX].decode("utf-8", "replace").strip()
        return f"HTTP {response.status_code}" + (f" ({self._clean(words)})" if words else "")

    def _clean(self, words: str) -> str:
        for secret in self._secrets:  # a server may give back what it was sent
            words = words.replace(secret, MASK)
        return line(words, REASON_CHARACTERS_MAX)


class _Headers(AuthBase):
    """What lets us in. As the session's own authentication, so that no netrc puts its password in the place."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As bytes: in an error about a header's text requests would show it.
        request.headers.update({name: value.encode() for name, value in self._headers.items()})  # type: ignore[misc]
        return request


class _Patience(Retry):
    def increment(self, *args: Any, **options: Any) -> Self:  # noqa: ANN401 - passed through
        """Takes one try away, and closes what was answered: urllib3 would read it to its end, however long it is."""
        left = super().increment(*args, **options)
        if (response := options.get("response")) is not None:
            response.close()
        return left

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Gives what the server asks for, by Retry-After or by Datadog's X-RateLimit-Reset (both in seconds)."""
        asked: float | None = None
        with suppress(InvalidHeader, ValueError, OverflowError):  # the last: a year that no calendar has
            asked = super().get_retry_after(response)
        reset = response.headers.get("X-RateLimit-Reset", "")
        if asked is None and re.fullmatch(r"[0-9]{1,9}", reset):
            asked = float(reset)
        if asked is None:
            return None
        asked = min(asked, RETRY_AFTER_SECONDS_MAX)
        if asked >= CONNECT_SECONDS_MAX:
            _logger.warning("the search answers HTTP %d: asked again in %d s, as it wishes", response.status, asked)
        return asked


def _patience() -> Retry:
    return _Patience(
        total=RETRIES_MAX,
        connect=0,  # an operator waits, and sees it at once
        read=1,  # a kept connection may have been closed meanwhile
        redirect=0,
        other=0,
        status_forcelist=[429, 502, 503, 504],
        allowed_methods=["POST"],  # a search changes nothing
        backoff_factor=BACKOFF_SECONDS,
        raise_on_status=False,
    )


def _content(response: requests.Response, where: str, deadline_s: float) -> bytes:
    """Reads an answer, unpacked, no longer than it may be or take."""
    content = bytearray()
    # What is there, and not until so much has come: no dripping server takes longer than the deadline.
    while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
        content += piece
        if len(content) > ANSWER_BYTES_MAX:
            raise TooMuchError(f"{where} answers with more than {ANSWER_BYTES_MAX >> 20} MiB")
        if time.monotonic() > deadline_s:
            raise SearchError(f"{where} has not answered in whole within {ANSWER_SECONDS_MAX} s")
    return bytes(content)


def _cause(error: BaseException) -> str:
    """Says what is at the root of an error; only in words that cannot hold a header or a password."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be reached: {error.strerror}"
    return f"cannot be asked: {type(error).__name__}"


def window_s(span: Span) -> tuple[int, int]:
    """Gives the seconds of the epoch between which a SIEM may have a record of the span.

    A record without a time, or with one that is too old for the SIEM, gets that of its arrival: until now.
    """
    until_s = max(-(-span.until_ns // _NS), int(time.time())) + MARGIN_SECONDS
    return max(span.since_ns // _NS - MARGIN_SECONDS, 0), min(until_s, _LATEST_S)


def iso(epoch_s: int) -> str:
    """Gives a time as every store reads it.

    >>> iso(0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parts(terms: Sequence[str], count_max: int, bytes_max: int, written: Callable[[str], str]) -> Iterator[list[str]]:
    """Splits what is asked for, so that each question is short enough: so many at most, so many bytes as written."""
    part: list[str] = []
    size = 0
    for term in terms:
        term_size = len(written(term).encode())
        if part and (len(part) == count_max or size + term_size > bytes_max):
            yield part
            part, size = [], 0
        part.append(term)
        size += term_size
    if part:
        yield part
