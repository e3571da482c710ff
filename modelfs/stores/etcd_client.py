"""Values in etcd, by the JSON gateway of its version 3: read as of now, and put where nobody changed them meanwhile.

Rule: each call asks the members in turn, the one that answered last first, and gives up with its deadline. A put that
ends in Unavailable may have been done, or may yet be: whoever needs to know reads again.
"""

from __future__ import annotations

import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfs.errors import Forbidden, Malformed, ModelfsError, NoSpace, Unavailable, WrongServer
from modelfs.stores.http_answer import Answer
from modelfs.stores.http_errors import NETWORK_ERRORS, failure
from modelfs.stores.http_transport import Exchange, TimedSession
from modelfs.stores.opening import TlsFiles
from modelfs.stores.tls import Tls
from modelfs.units import Deadline, MiB

_STALL_S = 2.5
"""How long one member may be silent: one without a majority is for ever, and an election takes about a second."""
_MAX_ANSWER_BYTES = 128 * MiB
_REASON = 200


@dataclass(frozen=True, slots=True)
class Value:
    """revision: that of the change that put it; 0 is none's, and stands for a key that is not there."""

    data: bytes
    revision: int


class EtcdClient:
    """members: URLs. tls: of https:// ones. Calls may come from several threads.

    All raise Unavailable where no member answers that has a majority behind it, Forbidden where etcd refuses.
    """

    def __init__(self, members: Sequence[str], tls: TlsFiles | None = None) -> None:
        self.members = tuple(members)
        self._session = TimedSession(4)
        self._tls = Tls(tls or TlsFiles())
        self._lock = threading.Lock()
        self._first = 0  # which member answered last; guarded by _lock

    @property
    def where(self) -> str:
        return ", ".join(self.members)

    def read(self, key: str, deadline: Deadline) -> Value | None:
        """What a majority agrees on now; None where nothing is."""
        return _value(self._ask("kv/range", {"key": _text(key.encode())}, deadline))

    def put_if(self, key: str, revision: int, data: bytes, deadline: Deadline, *,
               lease: str | None = None) -> tuple[bool, Value | None]:
        """Put data where the key's revision is still this one, 0: where it is not there. Else False, and what is there.

        lease: of grant; the value goes with it. Raises NoSpace where etcd takes no value of this size, or none at all.
        """
        put: dict[str, Any] = {"key": _text(key.encode()), "value": _text(data)}
        if lease is not None:
            put["lease"] = lease
        answer = self._ask("kv/txn", {
            "compare": [{"key": put["key"], "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}],
            "success": [{"requestPut": put}],
            "failure": [{"requestRange": {"key": put["key"]}}]}, deadline)
        if answer.get("succeeded"):
            return True, None
        found = answer.get("responses") or [{}]
        return False, _value(found[0].get("response_range") or found[0].get("responseRange") or {})

    def grant(self, seconds: int, deadline: Deadline) -> str:
        """A lease: what is put with it is gone so many seconds later, or a little more, at the latest."""
        return str(self._ask("lease/grant", {"TTL": str(seconds)}, deadline)["ID"])

    def revoke(self, lease: str, deadline: Deadline) -> None:
        self._ask("lease/revoke", {"ID": lease}, deadline)

    def _ask(self, call: str, body: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        with self._lock:
            first = self._first
        errors: list[Unavailable] = []
        for count in range(len(self.members)):
            number = (first + count) % len(self.members)
            share = deadline.remaining() / (len(self.members) - count)
            try:
                found = self._post(f"{self.members[number]}/v3/{call}", body, deadline.sooner(min(_STALL_S, share)))
            except Unavailable as error:
                errors.append(error)
                continue
            with self._lock:
                self._first = number
            return found
        if all(isinstance(error, WrongServer) for error in errors):
            raise errors[0]
        said = dict.fromkeys(error.why or error.what for error in errors)
        raise Unavailable("etcd does not answer", where=self.where,
                          why=f"no majority of {len(self.members)} members does: {', '.join(said)}")

    def _post(self, url: str, body: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        exchange = Exchange(deadline, _STALL_S, self._tls.context() if url.startswith("https:") else None)
        try:
            response = self._session.exchange(exchange, "POST", url, data=json.dumps(body).encode(),
                                              headers={"Content-Type": "application/json"})
        except NETWORK_ERRORS as error:
            raise failure(error, deadline, url) from error
        assert exchange.body is not None
        with Answer(response, exchange.body, deadline, url) as answer:
            text = answer.read_to_end(_MAX_ANSWER_BYTES)
            try:
                found = json.loads(bytes(text or b""))
                if not isinstance(found, dict):
                    raise ValueError
            except ValueError:
                if answer.status >= 500:
                    raise Unavailable("etcd does not answer well", where=url, why=f"HTTP {answer.status}") from None
                raise WrongServer("what answers is no etcd", where=url, why=f"HTTP {answer.status}",
                                  advice="Is it a client URL of etcd 3.4 or later?") from None
        if answer.status != 200:
            raise _refusal(answer.status, str(found.get("message") or found.get("error") or ""), url)
        return found


def _refusal(status: int, said: str, url: str) -> ModelfsError:
    why = f"HTTP {status} {' '.join(said.split())[:_REASON]}".strip()
    if "too large" in said or "larger than max" in said:
        return NoSpace("the catalog is too large for etcd", where=url, why=why,
                       advice="Start its members with a larger --max-request-bytes.")
    if "space exceeded" in said:
        return NoSpace("etcd is full", where=url, why=why, advice="Compact it, or raise its --quota-backend-bytes.")
    if status in (404, 405):
        return WrongServer("what answers is no etcd", where=url, why=why,
                           advice="Is it a client URL of etcd 3.4 or later?")
    if status >= 500 or status in (408, 429):
        return Unavailable("etcd does not answer well", where=url, why=why)
    return Forbidden("etcd refuses", where=url, why=why)


def _value(answer: Mapping[str, Any]) -> Value | None:
    kvs = answer.get("kvs") or []
    if not kvs:
        return None
    try:
        return Value(b64decode(kvs[0].get("value", ""), validate=True), int(kvs[0]["mod_revision"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed("etcd's answer", why=type(error).__name__) from error


def _text(data: bytes) -> str:
    return b64encode(data).decode()
