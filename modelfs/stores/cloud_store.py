"""Objects in S3 (and what speaks like it), Google Cloud Storage or Azure Blob Storage, by obstore.

Rule: obstore tries nothing again (RetryingStore does), nobody waits past the deadline, and the catalog moves by the
store's own conditions; where a store ignores these it may have one writer only, and that is said.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

from modelfs import __version__
from modelfs.errors import BadInput, Forbidden, Malformed, ModelfsError, ObjectMissing, SwapLost, Unavailable
from modelfs.logs import log_event, logger_for
from modelfs.stores.cloud_access import CloudOptions, access_to, parse_place
from modelfs.stores.cloud_calls import Allowance, Calls, shielded
from modelfs.stores.cloud_errors import failure, is_under_way
from modelfs.stores.cloud_range import CloudRange, check_encoding
from modelfs.stores.names import check_key, check_prefix, check_range, is_key
from modelfs.stores.store import LARGE_BYTES, Buffer, Fetched, ObjectInfo, as_content, room_for
from modelfs.units import Deadline, MiB

T = TypeVar("T")
_LOG = logger_for(__name__)
_CONNECT_S, _STALL_S = 5, 10  # as over HTTP
_PART_TIMEOUT_S = 900  # of one request that writes; its deadline ends it sooner, unless a half upload is to be removed
_PART = 8 * MiB
_PARTS_AT_ONCE = 4
_WHOLE = 2 * _PART
"""Up to here an object is one request; a larger one is parts, several at once, so that one connection's speed is not
the bound."""
_NOBODYS_ETAG = '1 "00000000000000000000000000000000"'
"""As _name makes one: with a generation, without which obstore does not ask Google's."""
_EXPECTED = (AlreadyExistsError, NotModifiedError, PreconditionError)


class CloudStore:
    """The ObjectStore at s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.

    An etag is the store's own, with an object's generation before it where that is what conditions go by (gs).
    tell: is told once where the store ignores conditions, by the first call that needs them.

    A call that is given up at its deadline is cancelled, which closes its connection. A put in parts goes on in the
    background until its next part, or for at most 15 minutes: then obstore aborts it, and what was uploaded goes. What
    a process leaves that ends before that, a lifecycle rule of the bucket removes.
    """

    def __init__(self, spec: str, options: CloudOptions | None = None, *, connections: int = 8,
                 tell: Callable[[str], None] | None = None) -> None:
        self._place = parse_place(spec)
        options = options or CloudOptions()
        self._access = access_to(self._place, options)
        self._single_writer = not options.moved_elsewhere
        # One bucket's name may stand at many endpoints, and the cache knows a repository by its URL.
        self.url = self._place.url + (f"?endpoint={self._access.endpoint}" if self._access.endpoint else "")
        self._connections = connections
        self._tell = tell
        self._calls = Calls()
        self._reads = self._store(read_timeout=f"{_STALL_S}s", timeout="24h")
        self._lock = threading.Lock()
        self._writing: Any = None  # guarded by _lock, as the next
        self._conditions: bool | None = None if self._access.endpoint else True

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        """fresh: nothing stands between, unlike over HTTP."""
        path, where = self._at(key)
        options: Any = {"if_none_match": _etag_of(etag)} if etag is not None else {}

        async def fetch() -> tuple[Any, Any]:
            result = await obstore.get_async(self._reads, path, options=options)
            small = result.meta["size"] <= min(limit, LARGE_BYTES - 1)
            return result, await result.bytes_async() if small else None

        try:
            result, small = self._run(fetch, deadline, where)
        except NotModifiedError:
            return None
        check_encoding(result, where)
        size, name = result.meta["size"], self._name(result.meta)
        if etag is not None and name == etag:  # a server that knows no conditions
            return None
        if size > limit:
            raise Malformed("an object is too large", where=where, why=f"at most {limit} bytes are expected")
        if small is not None:
            if len(small) != size:
                raise Unavailable("a store broke off", where=where, why=f"{size - len(small)} bytes are missing")
            deadline.moved(size)
            return Fetched(bytes(small), name)
        view = room_for(size)
        with self._stream(result, size, deadline, where) as stream:
            stream.readinto(view)
        return Fetched(as_content(view), name)

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> CloudRange:
        check_range(key, offset, length)
        path, where = self._at(key)
        options: Any = {"range": (offset, offset + length)}
        result = self._run(lambda: obstore.get_async(self._reads, path, options=options), deadline, where)
        check_encoding(result, where)
        start, end = result.range
        if (start, end) != (offset, offset + length):
            if start == offset and end == result.meta["size"]:
                raise Malformed("an object is too short", where=where,
                                why=f"it has {end} bytes, and {length} at {offset} are asked for")
            raise Unavailable("a store does not answer well", where=where,
                              why=f"bytes {start} to {end} for {length} bytes at {offset}")
        return self._stream(result, length, deadline, where)

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        path, where = self._at(key)
        return _info(key, self._run(lambda: obstore.head_async(self._reads, path), deadline, where))

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        path, where = self._at(key)
        view = memoryview(data).cast("B")
        if not only_if_absent:
            self._put(path, view, deadline, where)
            return True
        if not self._keeps_conditions(deadline):
            with suppress(ObjectMissing):
                self.stat(key, deadline)
                return False
            self._put(path, view, deadline, where)
            return True
        try:
            self._put_whole(path, view, deadline, where, "create")
        except (AlreadyExistsError, PreconditionError) as error:
            if is_under_way(error):
                raise Unavailable("an object is being written by another", where=where, why="HTTP 409") from error
            return False
        return True

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        path, where = self._at(key)
        if not self._keeps_conditions(deadline):
            self._compare(key, expected, deadline, where)
            return self._name(self._put_whole(path, new, deadline, where, "overwrite"))
        mode: Any = "create" if expected is None else self._version_of(expected)
        try:
            return self._name(self._put_whole(path, new, deadline, where, mode))
        except (AlreadyExistsError, PreconditionError, ObjectMissing) as error:
            raise _lost(where) from error

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        """The deadline holds for each page of 1000. Stores list by whole parts of a key, the rest is done here."""
        directory = check_prefix(prefix).rpartition("/")[0]
        base = f"{self._place.prefix}/" if self._place.prefix else ""
        patience = deadline.patient()
        stream = obstore.list(self._reads, (base + directory).rstrip("/") or None, chunk_size=1000)

        async def page() -> Any:
            try:
                return await stream.__anext__()
            except StopAsyncIteration:
                return None

        found: list[ObjectInfo] = []
        while (metas := self._run(page, patience, self._place.url)) is not None:
            patience.renewed()
            for meta in metas:
                key = meta["path"].removeprefix(base)
                if meta["path"].startswith(base) and key.startswith(prefix) and is_key(key):
                    found.append(_info(key, meta))
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str, deadline: Deadline) -> None:
        path, where = self._at(key)
        with suppress(ObjectMissing):
            self._run(lambda: obstore.delete_async(self._writes(), path), deadline, where)

    def _at(self, key: str) -> tuple[str, str]:
        """The object's path in its bucket, and its URL for messages."""
        path = f"{self._place.prefix}/{check_key(key)}".lstrip("/")
        return path, f"{self._place.url}/{key}"

    def _run(self, make: Callable[[], Awaitable[T]], deadline: Deadline, where: str,
             allowance: Allowance | None = None) -> T:
        """Raises what is expected of conditions as obstore does, all else as ours."""
        try:
            return self._calls.run(make, deadline, where, allowance)
        except _EXPECTED:
            raise
        except (BaseError, FileNotFoundError) as error:
            raise failure(error, where, self._access.credentials) from error

    def _stream(self, result: Any, length: int, deadline: Deadline, where: str) -> CloudRange:
        return CloudRange(self._calls, result, length, deadline, where, self._access.credentials)

    def _put(self, path: str, view: memoryview, deadline: Deadline, where: str) -> None:
        if len(view) <= _WHOLE:
            self._put_whole(path, view, deadline, where, "overwrite")
        else:
            self._put_parts(path, view, deadline, where)

    def _put_whole(self, path: str, data: Buffer, deadline: Deadline, where: str, mode: Any) -> Any:
        put = self._run(lambda: obstore.put_async(self._writes(), path, data, mode=mode, use_multipart=False),
                        deadline, where, Allowance(len(data)))
        deadline.moved(len(data))
        return put

    def _put_parts(self, path: str, view: memoryview, deadline: Deadline, where: str) -> None:
        """Given up by an error out of its body: obstore aborts an upload after an error, not when it is cancelled."""
        allowance, given_up = Allowance(_PARTS_AT_ONCE * _PART), threading.Event()

        def parts() -> Iterator[memoryview]:
            for start in range(0, len(view), _PART):
                if given_up.is_set():
                    raise TimeoutError("the deadline passed")
                if start >= _PARTS_AT_ONCE * _PART:
                    deadline.moved(_PART)
                    allowance.sending(_PARTS_AT_ONCE * _PART)
                yield view[start:start + _PART]

        deadline.check("a store was not asked in time", where)
        body = parts()
        upload = self._calls.start(lambda: shielded(obstore.put_async(
            self._writes(), path, body, use_multipart=True, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)))
        try:
            self._calls.wait(upload, deadline, where, allowance)
        except (BaseError, FileNotFoundError) as error:
            raise failure(error, where, self._access.credentials) from error
        finally:
            given_up.set()

    def _keeps_conditions(self, deadline: Deadline) -> bool:
        """Whether writes may be conditional: found out once, by an object that nobody reads. The clouds' own endpoints
        promise it; of the servers that speak like S3 some take conditions and ignore them."""
        with self._lock:
            known = self._conditions
        if known is not None:
            return known
        found = self._probe(deadline)
        with self._lock:
            first, self._conditions = self._conditions is None, found
        if first and not found and self._single_writer:
            log_event(_LOG, "warning", "store.single_writer", store=self.url)
            if self._tell is not None:
                self._tell(f"warning: {self.url} ignores the conditions of writes: two pushes at once may lose one. "
                           "Let one host at a time write")
        return found

    def _probe(self, deadline: Deadline) -> bool:
        key = f"probes/{secrets.token_hex(16)}"
        path, where = self._at(key)
        try:
            try:
                first = self._put_whole(path, b"1", deadline, where, "create")
            except Forbidden:
                # Who may not write is told so by a plain put; else it is the condition that is not known here.
                self._put_whole(path, b"1", deadline, where, "overwrite")
                return False
            if not self._refuses(path, deadline, where, "create"):
                return False
            if not self._refuses(path, deadline, where, self._version_of(_NOBODYS_ETAG)):
                return False
            try:
                self._put_whole(path, b"2", deadline, where, self._version_of(self._name(first) or ""))
            except PreconditionError:
                return False
            return True
        finally:
            with suppress(ModelfsError):  # it is in nobody's way
                self.delete(key, deadline)

    def _refuses(self, path: str, deadline: Deadline, where: str, mode: Any) -> bool:
        try:
            self._put_whole(path, b"3", deadline, where, mode)
        except (AlreadyExistsError, PreconditionError):
            return True
        return False

    def _compare(self, key: str, expected: str | None, deadline: Deadline, where: str) -> None:
        """Raises SwapLost: all that a store without conditions allows."""
        try:
            path = self._at(key)[0]
            found = self._name(self._run(lambda: obstore.head_async(self._reads, path), deadline, where))
        except ObjectMissing:
            found = None
        if found != expected:
            raise _lost(where)

    def _name(self, meta: Any) -> str | None:
        """The etag that names this state of an object."""
        if self._place.scheme == "gs" and meta.get("version"):
            return f"{meta['version']} {meta['e_tag']}"
        etag: str | None = meta["e_tag"]
        return etag

    def _version_of(self, etag: str) -> Any:
        """As obstore wants it, of what _name made."""
        generation, _, rest = etag.rpartition(" ")
        return {"e_tag": rest, "version": generation} if self._place.scheme == "gs" and generation else {"e_tag": rest}

    def _writes(self) -> Any:
        """A client of its own: the time limit of reads would count a long upload as silence. It is made when it is
        needed, because that takes 45 ms."""
        with self._lock:
            if self._writing is None:
                self._writing = self._store(timeout=f"{_PART_TIMEOUT_S}s")
            return self._writing

    def _store(self, **limits: str) -> Any:
        """Raises BadInput where the environment's settings are none."""
        make: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[self._place.scheme]
        plain = (self._access.endpoint or "").startswith("http://")
        client: dict[str, Any] = {"user_agent": f"modelfs/{__version__}", "connect_timeout": f"{_CONNECT_S}s",
                                  "pool_max_idle_per_host": str(self._connections), **limits}
        if plain:
            client["allow_http"] = True
        if self._access.authorities and not plain:
            client["root_certificate"] = _certificates(self._access.authorities)
        provider = {"credential_provider": self._access.provider} if self._access.provider else {}
        try:
            return make(self._place.bucket, config=self._access.config, client_options=client,
                        retry_config={"max_retries": 0}, **provider)
        except (BaseError, ValueError, TypeError, OSError) as error:
            # obstore's text may repeat a setting, and so a secret
            raise BadInput("cannot use an object store", where=self._place.url, why=type(error).__name__,
                           advice="Check its settings in the environment.") from None


def _certificates(file: Path) -> bytes:
    """Raises BadInput."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput("cannot read certificates", where=str(file), why=error.strerror or "",
                       advice="Check AWS_CA_BUNDLE.") from error


def _lost(where: str) -> SwapLost:
    return SwapLost("an object was changed meanwhile", where=where, why="it is not what was read before",
                    advice="Read it again and retry.")


def _info(key: str, meta: Any) -> ObjectInfo:
    """In whole seconds: listings tell milliseconds and HEAD does not, and gc compares the two."""
    return ObjectInfo(key, meta["size"], float(int(meta["last_modified"].timestamp())))


def _etag_of(name: str) -> str:
    return name.rpartition(" ")[2]
