"""Objects behind HTTP: modelfs's own server, any static server, a CDN or a caching proxy.

Rule: what an answer claims (status, range, length, encoding) is checked before one byte of it counts, nobody waits
past the deadline, and the headers that hold credentials go to no other host.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from urllib.parse import urljoin, urlsplit

from modelfs import __version__
from modelfs.errors import BadInput, Forbidden, Malformed, ModelfsError, SwapLost, Unavailable
from modelfs.stores.http_answer import Answer, http_date
from modelfs.stores.http_errors import NETWORK_ERRORS, failure, proxy_refuses
from modelfs.stores.http_transport import STALL_S, Exchange, TimedSession, proxy_of
from modelfs.stores.names import check_key, check_range
from modelfs.stores.opening import TlsFiles
from modelfs.stores.store import Buffer, Fetched, ObjectInfo
from modelfs.stores.tls import Tls
from modelfs.units import Deadline, KiB

MAX_REDIRECTS = 5
_UPLOAD_PIECE = 256 * KiB
_WRITE_STALL_S = 30.0  # a server answers once the object is on its disk; several packs at once keep a slow one busy


class HttpStore:
    """The ObjectStore at an http or https URL. An etag is the ETag header, verbatim.

    headers: asked before every request, for headers like Authorization; they go to url's own host only, as the client
    certificate does. credentials: what to tell who is refused about where they come from, without a secret.
    stall_s: how long a read waits for the next byte. Proxies are those of the environment, as in requests.
    Raises BadInput; Forbidden of certificates that may not be read, and of a key that others can read.
    """

    def __init__(self, url: str, *, connections: int = 8, headers: Callable[[], Mapping[str, str]] | None = None,
                 tls: TlsFiles | None = None, credentials: str = "", stall_s: float | None = None) -> None:
        self.url = _checked_url(url)
        self._headers = headers
        self._credentials = credentials
        self._stall_s = STALL_S if stall_s is None else stall_s
        self._tls = Tls(tls or TlsFiles())
        self._context(self.url, elsewhere=False)
        self._session = TimedSession(connections)

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        headers = {"Cache-Control": "no-cache"} if fresh else {}
        if etag is not None:
            headers["If-None-Match"] = etag
        with self._ask("GET", key, deadline, headers) as answer:
            if etag is not None and answer.status == 304:
                return None
            answer.expect(200)
            if etag is not None and answer.header("ETag") == etag:  # a server that knows no conditions
                return None
            length = answer.length()
            if length is None or length <= limit:
                data = answer.read_to_end(limit if length is None else length)
                if data is not None:
                    return Fetched(data, answer.header("ETag"))
            raise Malformed("an object is too large", where=answer.where,
                            why=f"at most {limit} bytes are expected")

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> _HttpRange:
        check_range(key, offset, length)
        answer = self._ask("GET", key, deadline, {"Range": f"bytes={offset}-{offset + length - 1}"})
        try:
            if answer.status == 206:
                answer.check_range(offset, length)
            else:
                answer.expect(200)
                answer.skip_to(offset, length)
        except BaseException:
            answer.close()
            raise
        return _HttpRange(answer, length)

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        with self._ask("HEAD", key, deadline) as answer:
            answer.expect(200)
            size = answer.length()
            if size is None:
                raise Unavailable("a store does not say how large an object is", where=answer.where)
            return ObjectInfo(key, size, http_date(answer.header("Last-Modified")) or 0.0)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        headers = {"If-None-Match": "*"} if only_if_absent else {}
        with self._ask("PUT", key, deadline, headers, _Upload(data)) as answer:
            if only_if_absent and answer.status == 412:
                return False
            answer.expect_written()
            return True

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        headers = {"If-None-Match": "*"} if expected is None else {"If-Match": expected}
        with self._ask("PUT", key, deadline, headers, _Upload(new)) as answer:
            if answer.status in (404, 409, 412):
                raise SwapLost("an object was changed meanwhile", where=answer.where,
                               why="it is not what was read before", advice="Read it again and retry.")
            answer.expect_written()
            return answer.header("ETag")

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        raise Forbidden("a store cannot list its objects", where=self.url, why="HTTP has no listing",
                        advice="Run this where the repository is a directory, or at its object store.")

    def delete(self, key: str, deadline: Deadline) -> None:
        with self._ask("DELETE", key, deadline) as answer:
            if answer.status not in (404, 410):
                answer.expect_written("a store deletes nothing over HTTP")

    def _ask(self, method: str, key: str, deadline: Deadline, headers: Mapping[str, str] | None = None,
             body: _Upload | None = None) -> Answer:
        """The answer to one request, after redirects where nothing is written."""
        url = f"{self.url}/{check_key(key)}"
        deadline.check("a store was not asked in time", url)
        own = dict(self._headers()) if self._headers else {}
        elsewhere = False
        for _ in range(MAX_REDIRECTS + 1):
            context = self._context(url, elsewhere=elsewhere)
            answer = self._send(method, url, context, deadline, {**(headers or {}), **own}, body, f"{self.url}/{key}")
            location = answer.header("Location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            answer.close()
            if body is not None or method == "DELETE":
                raise Forbidden("a store answers writes with a redirect", where=answer.where)
            target = urljoin(url, location)
            if urlsplit(target).scheme not in ("http", "https"):
                raise Unavailable("a store redirects to what is not HTTP", where=answer.where)
            if not _may_know_secrets(url, target):
                own, elsewhere = {}, True
            url = target
        raise Unavailable("a store redirects without end", where=answer.where,
                          why=f"more than {MAX_REDIRECTS} redirects")

    def _context(self, url: str, *, elsewhere: bool) -> ssl.SSLContext | None:
        return self._tls.context(elsewhere=elsewhere) if url.lower().startswith("https:") else None

    def _send(self, method: str, url: str, context: ssl.SSLContext | None, deadline: Deadline,
              headers: dict[str, str], body: _Upload | None, where: str) -> Answer:
        exchange = Exchange(deadline, self._stall_s if body is None else _WRITE_STALL_S, context)
        try:
            response = self._session.exchange(
                exchange, method, url, data=body,
                headers={"User-Agent": f"modelfs/{__version__}", "Accept-Encoding": "identity", **headers})
        except NETWORK_ERRORS as error:
            raise failure(error, deadline, where, proxy_of(url), connecting=exchange.connecting) from error
        assert exchange.body is not None
        answer = Answer(response, exchange.body, deadline, where, self._credentials)
        if answer.status == 407 and (proxy := proxy_of(url)):
            answer.close()
            raise proxy_refuses(proxy, 407, "Proxy Authentication Required")
        return answer


class _Upload:
    """A body that is sent in pieces, so that large ones are not copied."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self._view), _UPLOAD_PIECE):
            yield self._view[start:start + _UPLOAD_PIECE]


class _HttpRange:
    """A RangeStream of an answer."""

    __slots__ = ("_answer", "_left")

    def __init__(self, answer: Answer, length: int) -> None:
        self._answer, self._left = answer, length

    def readinto(self, view: memoryview) -> None:
        view = view.cast("B")
        if len(view) > self._left:
            raise ModelfsError("more was read than the range has", where=self._answer.where)
        self._answer.readinto(view)
        self._left -= len(view)

    def close(self) -> None:
        self._answer.close()

    def __enter__(self) -> _HttpRange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _checked_url(url: str) -> str:
    """Without its last slashes. Raises BadInput; credentials in a URL would end up in messages."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise BadInput("not an http or https URL", why="write it like https://models.example.org/repo")
    if "@" in parts.netloc:
        raise BadInput("a URL holds credentials", where=parts.hostname or "",
                       advice="Name a token_file in the configuration instead.")
    if parts.query or parts.fragment:
        raise BadInput(f"a repository's URL has no ? and no # in it, {url[:200]!r}")
    return url.rstrip("/")


def _may_know_secrets(origin: str, target: str) -> bool:
    """Whether a redirect stays with the same server; from plain HTTP to HTTPS on the usual ports it does, too."""
    old, new = urlsplit(origin), urlsplit(target)
    if old.hostname != new.hostname:
        return False
    ports = {"http": 80, "https": 443}
    old_port, new_port = old.port or ports[old.scheme], new.port or ports[new.scheme]
    return (old.scheme, old_port) == (new.scheme, new_port) or (
        (old.scheme, old_port, new.scheme, new_port) == ("http", 80, "https", 443))
