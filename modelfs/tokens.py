"""Token files: who may read and who may write at a server, and by which token a client asks.

Rule: a token never leaves this module but into the Authorization header: messages name files and lines. A file that
others can read is refused; one that changes is read again, and a token that no longer stands there is refused from
then on. Only where the file cannot be read, or holds what are no tokens, the last good ones stay.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from pathlib import Path

from modelfs.errors import BadInput, Forbidden, ModelfsError
from modelfs.logs import log_event, logger_for

MAX_FILE_BYTES = 1 << 20
_TOKEN = re.compile(r"[!-~]{1,512}")
_COMMENT = re.compile(r"(?:^|\s)#")  # elsewhere # is part of a token: cut there, it would be a shorter one
_SETTLED_S = 1.0
_log = logger_for(__name__)


class Role(IntEnum):
    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Token:
    """hashed: compared in place of the text, so that all comparisons take equally long."""

    text: str = field(repr=False)
    hashed: bytes = field(repr=False)
    role: Role


class TokenFile:
    """The tokens of a file as it is now. Any thread may ask.

    A file that became empty, or was deleted, has no tokens: whoever removed them takes everybody's away. So it is to
    be replaced by a rename, not emptied and filled. One that others can read by now, that is malformed, or that
    cannot be read, says nothing about its tokens: the last good ones stay. All of that is logged, once a change.

    Raises, when it is made: Forbidden where others can read the file, or it is another user's; BadInput where there is
    none, it is empty, or what it holds are no tokens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: _Stamp | None  # guarded by _lock, as the rest
        self._tokens, self._stamp = self._read()
        self._complaint: str | None = None
        if not self._tokens:
            raise BadInput("no token in the token file", where=str(path))

    def tokens(self) -> tuple[Token, ...]:
        """One stat a call while nothing changes: about 2 µs."""
        with self._lock:
            try:
                if self._stamp != _Stamp.of(os.stat(self.path)):
                    self._take(*self._read())
                self._complaint = None
            except FileNotFoundError as error:
                self._tokens, self._stamp = (), None
                self._complain(error.strerror or str(error))
            except ModelfsError as error:
                self._complain(str(error))
            except OSError as error:
                self._complain(error.strerror or str(error))
            return self._tokens

    def role_of(self, presented: str) -> Role | None:
        """Every token is compared, also after one that is equal: how long it takes tells nothing."""
        hashed, role = _hash(presented), None
        for token in self.tokens():
            if hmac.compare_digest(token.hashed, hashed):
                role = token.role
        return role

    def _read(self) -> tuple[tuple[Token, ...], _Stamp | None]:
        """The tokens, and the stamp by which a later change is seen; None where it might not be: the kernel's clock
        for files ticks every few ms, and what was just written may be written again within a tick."""
        text, stamp = _read_private(self.path)
        return _parse(text, self.path), stamp if time.time() - stamp.changed_ns / 1e9 > _SETTLED_S else None

    def _take(self, tokens: tuple[Token, ...], stamp: _Stamp | None) -> None:
        if [token.hashed for token in tokens] != [token.hashed for token in self._tokens]:
            log_event(_log, "info" if tokens else "warning", "token_file.read", file=self.path, tokens=len(tokens))
        self._tokens, self._stamp = tokens, stamp

    def _complain(self, why: str) -> None:
        if why != self._complaint:
            self._complaint = why
            log_event(_log, "warning", "token_file.bad", file=self.path, why=why, kept=len(self._tokens))


class ClientToken:
    """The one token of a client's file, as a header. Raises as TokenFile, and BadInput where there are several."""

    def __init__(self, path: Path) -> None:
        self._file = TokenFile(path)
        tokens = self._file.tokens()
        if len(tokens) != 1:
            raise BadInput("not a token file of a client", where=str(path), why=f"it holds {len(tokens)} tokens",
                           advice="Leave one in it.")
        self._last = tokens[0]

    @property
    def path(self) -> Path:
        return self._file.path

    def headers(self) -> dict[str, str]:
        """Where several tokens came into the file later, the first of them; where none is left, the last that there
        was: it is for the server to refuse it."""
        for token in self._file.tokens()[:1]:
            self._last = token
        return {"Authorization": f"Bearer {self._last.text}"}


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes whenever a file is written, replaced, or gets another owner or mode."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Stamp:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read_private(path: Path) -> tuple[str, _Stamp]:
    """O_NONBLOCK: a FIFO must not hang. What is checked is the file that was opened, not what its name is by then."""
    where = str(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise Forbidden("cannot read the token file", where=where, why=error.strerror or str(error)) from error
    except (OSError, ValueError) as error:
        raise BadInput("cannot read the token file", where=where,
                       why=getattr(error, "strerror", None) or str(error)) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise BadInput("not a token file", where=where, why="it is no regular file")
        if found.st_mode & 0o077:
            raise Forbidden("a token file that others can read", where=where,
                            why=f"its mode is {stat.S_IMODE(found.st_mode):04o}", advice=f"chmod 600 {where}")
        if found.st_uid not in (0, os.geteuid()):
            raise Forbidden("a token file of somebody else", where=where, why=f"its owner is uid {found.st_uid}",
                            advice=f"It must belong to uid {os.geteuid()} or root.")
        data = b""
        while len(data) <= MAX_FILE_BYTES and (piece := os.read(fd, MAX_FILE_BYTES + 1 - len(data))):
            data += piece
    except OSError as error:
        raise BadInput("cannot read the token file", where=where, why=error.strerror or str(error)) from error
    finally:
        os.close(fd)
    if len(data) > MAX_FILE_BYTES:
        raise BadInput("not a token file", where=where, why="it has more than 1 MiB")
    return data.decode("utf-8", "surrogateescape"), _Stamp.of(found)


def _parse(text: str, path: Path) -> tuple[Token, ...]:
    tokens: dict[str, Token] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = _COMMENT.split(line, maxsplit=1)[0].split()
        if not words:
            continue
        if words[1:] not in ([], ["read"]) or not _TOKEN.fullmatch(words[0]):
            raise BadInput("not a token", where=f"{path} line {number}",
                           why="a line is TOKEN or TOKEN read, and a token at most 512 printable ASCII characters")
        if words[0] in tokens:
            raise BadInput("a token that stands there twice", where=f"{path} line {number}")
        tokens[words[0]] = Token(words[0], _hash(words[0]), Role.READ if words[1:] else Role.WRITE)
    return tuple(tokens.values())
