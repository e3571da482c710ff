"""Who may ask the server for what: by a token, or because it only listens to this machine.

Rule: with a token file nothing is answered to who shows no token, but reads under anonymous_read. Without one only
this machine is listened to, and answered only by its own names, unless all may read and none may write.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from modelfs.errors import BadInput
from modelfs.tokens import Role, TokenFile

READING = frozenset({"GET", "HEAD"})
_PORT = re.compile(r":[0-9]*$")


@dataclass(frozen=True, slots=True)
class Refusal:
    """status: of HTTP. line: for the client; it holds no token."""

    status: int
    line: str


@dataclass(frozen=True, slots=True)
class Access:
    """tokens: None where nobody needs one. anonymous_read: all may read, and only tokens write. name: by which the
    server was told to listen; without either of the others only this machine knows itself by it."""

    tokens: TokenFile | None = None
    anonymous_read: bool = False
    name: str = ""

    @property
    def may_ever_write(self) -> bool:
        return self.tokens is not None or not self.anonymous_read

    def refusal(self, method: str, authorization: str | None, from_web_page: bool, host: str) -> Refusal | None:
        """authorization, host: the headers. from_web_page: the request has an Origin, as browsers send it with each
        write; a page of anybody's must neither write nor read what only whoever is on this machine may."""
        if self.tokens is None and not self.anonymous_read:
            if not self._is_ours(host):
                return Refusal(403, "only an address or localhost names this server: "
                                    "--token-file or --anonymous-read lets it have other names")
            return Refusal(403, "web pages may not write here") if from_web_page and method not in READING else None
        if method in READING and self.anonymous_read:
            return None
        if self.tokens is None:
            return Refusal(403, "this server only reads")
        token = _bearer(authorization)
        if token is None:
            return Refusal(401, "a token is needed")
        role = self.tokens.role_of(token)
        if role is None:
            return Refusal(401, "this token is not known here")
        if method not in READING and role < Role.WRITE:
            return Refusal(403, "this token may only read")
        return None

    def _is_ours(self, host: str) -> bool:
        """A browser that was led to 127.0.0.1 by a name of somebody's (DNS rebinding) says that name. Without a Host
        at all it is no browser."""
        name = _PORT.sub("", host.strip()).lower().removesuffix(".")
        if name in ("", "localhost", self.name.lower()):
            return True
        with suppress(ValueError):
            ip_address(name.removeprefix("[").removesuffix("]"))
            return True
        return False


def check_exposure(host: str, access: Access) -> None:
    """Raises BadInput where others than this machine could read and write without a token."""
    if access.tokens is None and not access.anonymous_read and not _is_loopback(host):
        raise BadInput(f"cannot serve at {host or 'all addresses'}", why="who reaches it could read and write all",
                       advice="Give --token-file, or --anonymous-read to let everyone read and nobody write.")


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _is_loopback(host: str) -> bool:
    """Whether every address that host stands for is this machine's own. Raises BadInput where it stands for none."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadInput("cannot listen", where=host, why=getattr(error, "strerror", None) or str(error)) from error
    return all(ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)
