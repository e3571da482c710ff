"""One HTTP answer: what its head claims, checked, and its body as it arrives.

Rule: status, encoding, range and length are judged before one byte of a body counts, and a body that ends early is an
error, never a shorter object.
"""

from __future__ import annotations

import http.client
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from types import TracebackType

from requests import Response

from modelfs.errors import Forbidden, Malformed, NoSpace, ObjectMissing, Unavailable
from modelfs.stores.http_errors import NETWORK_ERRORS, failure
from modelfs.stores.store import as_content, room_for
from modelfs.units import Deadline, KiB, MiB

_MAX_SKIP = 64 * MiB  # the largest pack: what a server without ranges may make us read in vain
_DRAIN = 64 * KiB  # an error's text is read to keep its connection; what is longer costs more than a new one
_REASON = 500
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_LENGTH = re.compile(r"[0-9]{1,19}")
_NGINX_ON_TLS = re.compile(rb"<title>400 ([^<]*SSL certificate[^<]*)</title>")
_RETRY_STATUS = frozenset({408, 425, 429})


class Answer:
    """An answer whose head has come: what it says, checked, and its body as it arrives."""

    __slots__ = ("_body", "_credentials", "_deadline", "_response", "_told", "status", "where")

    def __init__(self, response: Response, body: http.client.HTTPResponse, deadline: Deadline, where: str,
                 credentials: str = "") -> None:
        """credentials: what to tell who is refused for want of them."""
        self._response, self._body, self._deadline, self._credentials = response, body, deadline, credentials
        self.status, self.where = response.status_code, where
        self._told: bytes | None = None

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    def length(self) -> int | None:
        """Content-Length, or None where there is none. Raises Unavailable where it is no number."""
        text = self.header("Content-Length")
        if text is None:
            return None
        if not _LENGTH.fullmatch(text.strip()):
            raise self._wrong(f"Content-Length {text[:40]!r}")
        return int(text)

    def expect(self, status: int) -> None:
        """Raises what the status means where it is another, Unavailable where the body is encoded."""
        found = self.status
        if found in (404, 410):
            raise ObjectMissing("an object is missing", where=self.where, why=f"HTTP {found}")
        if found == 416:
            raise Malformed("an object is too short", where=self.where, why="HTTP 416: it does not have the range")
        if found >= 500 or found in _RETRY_STATUS:
            raise Unavailable("a store does not answer well", where=self.where, why=self._status_text(),
                              retry_after_s=_retry_after(self.header("Retry-After"), self.header("Date")))
        if found == 400 and (complaint := self._on_our_certificate()):
            raise Forbidden("a store refuses", where=self.where, why=f"{self._status_text()}: {complaint}",
                            advice="client_cert of a remote names the certificate that it is shown.")
        if found >= 400:
            raise Forbidden("a store refuses", where=self.where, why=self._status_text() + self._reason(),
                            advice=self._credentials if found in (401, 403) else "")
        if found != status:
            raise self._wrong(self._status_text())
        encoding = (self.header("Content-Encoding") or "identity").strip().lower()
        if encoding != "identity":
            raise self._wrong(f"Content-Encoding {encoding[:40]!r} where none was asked for")

    def expect_written(self, refused: str = "a store only reads") -> None:
        """The answer to PUT and DELETE. A store that does not know the method says so by 405 or 501."""
        if self.status in (405, 501):
            raise Forbidden(refused, where=self.where, why=self._status_text() + self._reason())
        if self.status == 507:
            raise NoSpace("an object cannot be written", where=self.where, why=self._status_text() + self._reason())
        if self.status == 422:  # what was sent is not what arrived
            raise Unavailable("an upload was damaged on its way", where=self.where, why=self._reason().lstrip(": "))
        if self.status not in (200, 201, 202, 204):
            self.expect(200)

    def check_range(self, offset: int, length: int) -> None:
        """The head of a 206 names exactly the range. Raises Malformed where the object ends before it does."""
        self.expect(206)
        text = self.header("Content-Range") or ""
        found = _CONTENT_RANGE.fullmatch(text.strip())
        if not found or int(found[1]) != offset:
            raise self._wrong(f"Content-Range {text[:80]!r} for {length} bytes at {offset}")
        last, total = int(found[2]), found[3]
        if last < offset + length - 1 and total == str(last + 1):
            raise self._too_short(last + 1, offset, length)
        if last != offset + length - 1 or self.length() not in (length, None):
            raise self._wrong(f"Content-Range {text[:80]!r}, Content-Length {self.length()}, "
                              f"for {length} bytes at {offset}")

    def skip_to(self, offset: int, length: int) -> None:
        """Read in vain up to offset, where the server sends the whole object."""
        total = self.length()
        if total is not None and total < offset + length:
            raise self._too_short(total, offset, length)
        if offset > _MAX_SKIP:
            raise Unavailable("a store ignores ranges", where=self.where,
                              why=f"it sends the whole object where {length} bytes at {offset} were asked for")
        waste = memoryview(bytearray(min(offset, MiB)))
        while offset:
            piece = waste[:min(offset, MiB)]
            self.readinto(piece)
            offset -= len(piece)

    def readinto(self, view: memoryview) -> None:
        """Fill view, straight from the socket: a copy in between would hold the interpreter. Per GB from a local nginx,
        into buffers that are used again, 0.44 to 0.49 CPU s; by way of pieces of 1 MiB 0.46 to 0.57, and
        response.content 4.1."""
        missing = view
        while missing:
            try:
                size = self._body.readinto(missing)
            except NETWORK_ERRORS as error:
                raise failure(error, self._deadline, self.where) from error
            except ValueError as error:  # http.client's, of a chunk's length
                raise self._wrong(str(error)) from error
            if not size:
                raise Unavailable("a store broke off", where=self.where, why=f"{len(missing)} bytes are missing")
            missing = missing[size:]

    def read_to_end(self, limit: int) -> bytes | memoryview | None:
        """The whole body, as a Fetched has it, or None where it has more than limit bytes."""
        length = self.length()
        if length is not None:
            view = room_for(length)
            self.readinto(view)
            return as_content(view)
        data = bytearray()
        try:
            while piece := self._body.read1(min(limit + 1 - len(data), MiB)):
                data += piece
                if len(data) > limit:
                    return None
        except NETWORK_ERRORS as error:
            raise failure(error, self._deadline, self.where) from error
        except ValueError as error:
            raise self._wrong(str(error)) from error
        return as_content(memoryview(data))

    def close(self) -> None:
        """Keep the connection where the answer was read, or little of it is left; else end it."""
        try:
            if not self._body.isclosed() and self._body.length is not None and self._body.length <= _DRAIN:
                self._body.read()
        except NETWORK_ERRORS:
            self._body.close()  # the connection is of no use; what was asked for is here, or its error is raised
            self._response.raw.close()
        if self._body.isclosed():
            self._response.raw.release_conn()
        else:
            self._response.raw.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _status_text(self) -> str:
        return f"HTTP {self.status} {(self._response.reason or '')[:60]}".strip()

    def _reason(self) -> str:
        """What modelfs's own server says of it, one line; pages for browsers are left out."""
        if not (self.header("Content-Type") or "").startswith("text/plain"):
            return ""
        text = self._short_body().decode("utf-8", "replace")
        return text and ": " + " ".join("".join(char if char.isprintable() else " " for char in text).split())

    def _short_body(self) -> bytes:
        """Nothing where it is long or does not come: the status says enough."""
        if self._told is None:
            self._told, length = b"", self.length()
            if length and length <= _REASON:
                with suppress(Unavailable):
                    self._told = bytes(self.read_to_end(_REASON) or b"")
        return self._told

    def _on_our_certificate(self) -> str:
        """What nginx says of a client's certificate that is missing or bad: in a page for browsers, and by 400."""
        found = _NGINX_ON_TLS.search(self._short_body())
        return found[1].decode("ascii", "replace") if found else ""

    def _wrong(self, why: str) -> Unavailable:
        return Unavailable("a store does not answer well", where=self.where, why=why)

    def _too_short(self, size: int, offset: int, length: int) -> Malformed:
        return Malformed("an object is too short", where=self.where,
                         why=f"it has {size} bytes, and {length} at {offset} are asked for")


def http_date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, TypeError, OverflowError):
        return None


def _retry_after(text: str | None, now: str | None) -> float | None:
    """Seconds from now, of a number of seconds or a date. now: the server's date, whose clock may differ from ours."""
    if text and _LENGTH.fullmatch(text.strip()):
        return float(text)
    moment = http_date(text)
    return None if moment is None else max(0.0, moment - (http_date(now) or time.time()))
