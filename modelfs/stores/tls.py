"""Certificates: whom an https:// store must prove to be, and what we show it.

Rule: a file that is of no use is an error that names it and the key, before anything is asked; a private key that
others can read is refused. Files that change hold from the next connection on; while what they hold is of no use (a
renewal half done), what they held before does.
"""

from __future__ import annotations

import os
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from modelfs.errors import BadInput, Forbidden, ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.stores.opening import TlsFiles

_log = logger_for(__name__)
_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_MAX_FILE_BYTES = 4 << 20
_SETTLED_S = 1.0  # the clock of files ticks every few ms: what was just written may be written again within a tick


class Tls:
    """The contexts for one store's connections. Any thread may ask."""

    def __init__(self, files: TlsFiles) -> None:
        if files.key and not files.cert:
            raise BadInput(f"{files.keys}client_key without client_cert", where=str(files.key))
        self._files = files
        self._lock = threading.Lock()
        self._own: ssl.SSLContext | None = None  # guarded by _lock, as the rest
        self._elsewhere: ssl.SSLContext | None = None
        self._stamps: list[object] | None = None
        self._content = b""

    def context(self, *, elsewhere: bool = False) -> ssl.SSLContext:
        """For a connection that is made now; the same object as long as no file changed. To read the usual authorities
        takes 60 ms of processor time, which each connection would take; to see that nothing changed, 22 µs.

        elsewhere: for where the store sends us: by the usual authorities, too, and without our certificate.
        Raises BadInput and Forbidden, before there ever was a good one.
        """
        with self._lock:
            stamps = [_stamp(path) for path in self._paths()]
            if self._own is None or stamps != self._stamps:
                self._own = self._look()
                self._stamps = stamps if all(map(_is_settled, self._paths())) else None
            if not elsewhere:
                return self._own
            if self._elsewhere is None:
                self._elsewhere = usual_context()
                if self._files.ca:
                    self._elsewhere.load_verify_locations(self._files.ca)
            return self._elsewhere

    def _look(self) -> ssl.SSLContext:
        """Another one where the files hold something else by now: connections are kept by their context."""
        content = b"".join(map(_digest, self._paths()))
        if self._own is not None and content == self._content:
            return self._own
        files = self._files
        try:
            context = _trusting(files.ca, f"{files.keys}ca_file") if files.ca else usual_context()
            if files.cert:
                _show(context, files.cert, files.key, files.keys)
        except ModelfsError as error:
            if self._own is None:
                raise
            log_event(_log, "warning", "tls_files.bad", why=str(error))
            return self._own
        self._content, self._elsewhere = content, None
        return context

    def _paths(self) -> Iterator[Path]:
        files = self._files
        yield from (path for path in (files.ca, files.cert, files.key) if path is not None)
        yield _usual_authorities()[0]


def usual_context() -> ssl.SSLContext:
    """Of the authorities that the environment names, else those that everybody trusts. Raises BadInput, Forbidden."""
    return _trusting(*_usual_authorities())


def _usual_authorities() -> tuple[Path, str]:
    """A file or directory, and what names it."""
    for name in _VARIABLES:
        if found := os.environ.get(name):
            return Path(found), name
    return Path(DEFAULT_CA_BUNDLE_PATH), "certifi"


def _trusting(path: Path, named_by: str) -> ssl.SSLContext:
    where = str(path)
    if not path.is_dir():
        _content(path, named_by)
    try:
        return ssl.create_default_context(cafile=None if path.is_dir() else where, capath=where if path.is_dir() else
                                          None)
    except (ssl.SSLError, OSError) as error:
        raise BadInput("no certificates of authorities", where=where, why=f"{named_by} names it, and it holds none",
                       advice="It is PEM: -----BEGIN CERTIFICATE-----") from error


def _show(context: ssl.SSLContext, cert: Path, key: Path | None, keys: str) -> None:
    cert_named, key_named = f"{keys}client_cert", f"{keys}client_key" if key else f"{keys}client_cert"
    if b"-----BEGIN CERTIFICATE-----" not in _content(cert, cert_named):
        raise BadInput("no client certificate", where=str(cert), why=f"{cert_named} names it, and it holds none",
                       advice="It is PEM: -----BEGIN CERTIFICATE-----")
    at = key or cert
    if b"PRIVATE KEY-----" not in _content(at, key_named, private=True):
        raise BadInput("no key of a client certificate", where=str(at),
                       why=f"{key_named} names it, and it holds no private key",
                       advice="" if key else f"Name its file by {keys}client_key.")
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # a passphrase is asked of nobody
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or ""
        raise BadInput("a client certificate cannot be used", where=str(cert),
                       why=f"the key in {at} is not its own" if reason == "KEY_VALUES_MISMATCH" else
                       f"it, or the key in {at}, is damaged or has a passphrase") from error


def _content(path: Path, named_by: str, *, private: bool = False) -> bytes:
    where = str(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hang
    except PermissionError as error:
        raise Forbidden("cannot read a file of certificates", where=where, why=f"{error.strerror}; {named_by} names it"
                        ) from error
    except (OSError, ValueError) as error:
        raise BadInput("cannot read a file of certificates", where=where,
                       why=f"{getattr(error, 'strerror', None) or error}; {named_by} names it") from error
    with os.fdopen(fd, "rb") as stream:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise BadInput("not a file of certificates", where=where, why=f"no regular file; {named_by} names it")
        if private and found.st_mode & 0o077:
            raise Forbidden("a private key that others can read", where=where, advice=f"chmod 600 {where}",
                            why=f"its mode is {stat.S_IMODE(found.st_mode):04o}; {named_by} names it")
        return stream.read(_MAX_FILE_BYTES)


def _stamp(path: Path) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_settled(path: Path) -> bool:
    try:
        return time.time() - os.stat(path).st_ctime > _SETTLED_S
    except OSError:
        return False


def _digest(path: Path) -> bytes:
    """Of a directory, what its stamp says."""
    try:
        return sha256(path.read_bytes() if path.is_file() else repr(_stamp(path)).encode()).digest()
    except OSError:
        return b""
