"""Connections whose every wait is bounded by the request's deadline, put underneath a requests session.

Rule: names are resolved, connections made (through a proxy, too), headers and bodies sent and received only as long as
the deadline has not passed and the other side did not stall; the deadline is told of bytes that move. requests' own
timeouts begin anew with each received byte, so a server that sends one byte a second, in headers too, would hold a
reader for ever. A connection with TLS has the context that its request brings, and no other.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import urllib3
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError

from modelfs.stores.tls import usual_context
from modelfs.units import Deadline, KiB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_S = 5.0
STALL_S = 10.0  # without one byte; a server that streams at all is far quicker, and the retry needs time too
_ALERT_S = 0.5
_UNSENT_BYTES = 128 * KiB
"""What the kernel takes from us beyond what is on its way. Without this it takes 4 MiB, and more only once a third of
that has left: on a slow uplink minutes of seeming silence."""


@dataclass(slots=True)
class Exchange:
    """One request on its way. context: for https. connecting: to the store, or to its proxy and through that. body:
    what the connection answered; its head is there once headed is set."""

    deadline: Deadline
    stall_s: float
    context: ssl.SSLContext | None = None
    connecting: bool = False
    body: http.client.HTTPResponse | None = None
    headed: bool = False

    def wait_s(self) -> float:
        """How long one operation of the socket may take. Raises TimeoutError where that is no time at all."""
        seconds = min(self.stall_s, self.deadline.remaining())
        if seconds <= 0:
            raise TimeoutError("the deadline passed")
        return seconds


# The exchange of the calling thread: urllib3 hands a connection nothing but a number of seconds.
_current: ContextVar[Exchange] = ContextVar("modelfs_http_exchange")


class TimedSession(Session):
    """A session that follows no redirect by itself (it would read their bodies to the end, however long),
    takes no credentials from ~/.netrc, and keeps at most `connections` connections for later."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        self.auth = _NoAuth()
        adapter = _Adapter(pool_connections=4, pool_maxsize=connections, max_retries=0)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: Response) -> str | None:
        return None

    def exchange(self, exchange: Exchange, method: str, url: str, **arguments: Any) -> Response:
        """Like request(), streamed. Afterwards exchange.body is the answer's body.

        Raises what requests raises, TimeoutError where the deadline passed.
        """
        token = _current.set(exchange)
        try:
            seconds = exchange.wait_s()
            response = self.request(method, url, stream=True, allow_redirects=False,
                                    timeout=(min(CONNECT_S, seconds), seconds), **arguments)
            exchange.headed = True
            return response
        finally:
            _current.reset(token)


class _NoAuth(AuthBase):
    """Any auth keeps requests from looking into ~/.netrc, whose entry would replace our Authorization header."""

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        return r


class _TimedReader(io.RawIOBase):
    """A socket's reader that waits no longer than the exchange may."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, exchange: Exchange) -> None:
        self._sock, self._raw, self._exchange = sock, raw, exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._sock.settimeout(self._exchange.wait_s())
        size = self._raw.readinto(buffer)
        if size and self._exchange.headed:  # a head without an end moves nothing
            self._exchange.deadline.moved(size)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None,
                 url: str | None = None) -> None:
        super().__init__(sock, debuglevel, method, url)
        exchange = _current.get()
        self.fp = io.BufferedReader(_TimedReader(sock, self.fp.detach(), exchange), 64 * KiB)
        exchange.body = self


class _Timed(HTTPConnection):
    response_class = _TimedResponse

    def _new_conn(self) -> socket.socket:
        """In a thread of its own where a name must be resolved: the resolver knows no time limit, and a name may
        stand for many addresses, each of which would get the whole connect timeout."""
        exchange = _current.get()
        exchange.connecting = True
        sock = super()._new_conn() if _is_address(self.host) else self._new_conn_bounded(exchange.wait_s())
        sock.settimeout(min(CONNECT_S, exchange.wait_s()))  # for the TLS handshake that may follow
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        exchange.connecting = self.proxy_is_tunneling
        return sock

    def _new_conn_bounded(self, seconds: float) -> socket.socket:
        attempt = _Attempt()
        connect = super()._new_conn
        threading.Thread(target=lambda: attempt.run(connect), name="modelfs-connect", daemon=True).start()
        sock = attempt.wait(min(CONNECT_S, seconds))
        if sock is None:
            raise ConnectTimeoutError(self, f"{self.host} did not answer within {min(CONNECT_S, seconds):.1f} s")
        return sock

    def send(self, data: Any) -> None:
        """Not by sendall, which takes its timeout for the whole of data: each part that leaves has its own."""
        exchange, view = _current.get(), memoryview(data)
        if self.sock is None:
            self.connect()
        assert self.sock is not None
        while view:
            self.sock.settimeout(exchange.wait_s())
            try:
                size = self.sock.send(view)
            except (ssl.SSLError, ConnectionError):
                self._raise_alert()
                raise
            view = view[size:]
            exchange.deadline.moved(size)


    def _raise_alert(self) -> None:
        """TLS 1.3 has a server judge our certificate when we write already: what it says of it waits to be read."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(_ALERT_S)
            with suppress(TimeoutError, ConnectionError):
                self.sock.recv(1)


class _Attempt:
    """A connection made by one thread and awaited by another, which may have gone when it comes."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sock: socket.socket | None = None     # guarded by _condition, as the rest
        self._error: Exception | None = None
        self._abandoned = False

    def run(self, connect: Any) -> None:
        sock: socket.socket | None = None
        error: Exception | None = None
        try:
            sock = connect()
        except Exception as failed:  # handed to the waiting thread, whatever it is
            error = failed
        with self._condition:
            self._sock, self._error = sock, error
            if self._abandoned and sock is not None:
                sock.close()
            self._condition.notify()

    def wait(self, seconds: float) -> socket.socket | None:
        with self._condition:
            self._condition.wait_for(lambda: self._sock is not None or self._error is not None, seconds)
            if self._error is not None:
                raise self._error
            self._abandoned = self._sock is None
            return self._sock


class _TimedHttps(_Timed, HTTPSConnection):
    def _tunnel(self) -> None:
        super()._tunnel()
        _current.get().connecting = False
        assert self.sock is not None
        self.sock.settimeout(min(CONNECT_S, _current.get().wait_s()))  # the proxy took its time; now the handshake


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Timed


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TimedHttps


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def build_connection_pool_key_attributes(self, request: PreparedRequest, verify: Any, cert: Any = None) -> Any:
        """Connections are kept by their context: where a certificate changed there are none yet."""
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        context = _current.get().context
        return host, {} if context is None else {"cert_reqs": "CERT_REQUIRED", "ssl_context": context}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """A context has all of it. requests would load the usual authorities into it, for each connection anew."""

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        if proxy.lower().startswith("https:") and proxy not in self.proxy_manager:
            named["proxy_ssl_context"] = usual_context()  # the files of the remote are not about proxies
        manager = super().proxy_manager_for(proxy, **named)
        if isinstance(manager, urllib3.ProxyManager):  # a SOCKS manager brings connections of its own
            manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager


def proxy_of(url: str) -> str:
    """The proxy by which url is asked, as the environment says, without its user and password; "" without one."""
    found = select_proxy(url, get_environ_proxies(url))
    if not found:
        return ""
    scheme, _, rest = found.rpartition("://")
    return f"{scheme or 'http'}://{rest.partition('/')[0].rpartition('@')[2]}"


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ip_address(host.strip("[]"))
        return True
    return False
