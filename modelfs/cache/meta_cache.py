"""Manifests, layouts, the last catalog: kept beside the chunks, so that a mount can start while the store is down.

Rule: a failure is a miss; what `get` returns is what was put under that very kind and name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from modelfs.cache.eviction import Evictor
from modelfs.cache.meta_files import MetaFiles
from modelfs.cache.trouble import Trouble
from modelfs.errors import NoSpace
from modelfs.ids import ObjectId
from modelfs.repository.held import Held
from modelfs.stores.store import LARGE_BYTES


class MetaCache:
    def __init__(self, files: MetaFiles, evictor: Evictor, trouble: Trouble) -> None:
        self._files, self._evictor, self._trouble = files, evictor, trouble

    def get(self, kind: str, name: str) -> bytes | None:
        """The object, or None where it is not here or not whole."""
        try:
            return self._files.read(kind, name)
        except (OSError, NoSpace) as error:
            self._trouble.note("read of small objects", error)
            return None

    def put(self, kind: str, name: str, data: bytes) -> None:
        """Keep it, in the place of an older one, if there is room."""
        self._written(partial(self._files.write, kind, name, data), len(data))

    def hold(self, kind: str, name: str, digest: ObjectId | None = None) -> Held | None:
        """As `get`; what is large is mapped: see `MetaFiles.map` for what that means. digest: of the object, where
        known; then it is checked, too."""
        try:
            return self._files.map(kind, name, digest, LARGE_BYTES)
        except (OSError, NoSpace) as error:
            self._trouble.note("read of small objects", error)
            return None

    def keep(self, kind: str, name: str, data: bytes | memoryview, digest: ObjectId | None = None) -> Held:
        """As `put`, and what is held from then on: what is large as it is mapped now, so that its memory may go; data
        itself where there was no room, or the disk fails. digest: of data, where known; it is believed."""
        write = partial(self._files.write, kind, name, data, digest, mapped=len(data) >= LARGE_BYTES)
        return self._written(write, len(data)) or Held(data)

    def receive(self, kind: str, name: str, size: int, readinto: Callable[[memoryview], None],
                digest: ObjectId) -> Held | None:
        """As `keep`, from who has the object in pieces; None where there was no room, the disk fails, or it does not
        hash to digest. Raises what readinto raises."""
        return self._written(partial(self._files.receive, kind, name, size, readinto, digest), size)

    def pin(self, kind: str, name: str) -> bool:
        """Keep it whatever else needs room, until `unpin`; False where it is not here."""
        return self._set_pinned(kind, name, True)

    def unpin(self, kind: str, name: str) -> None:
        self._set_pinned(kind, name, False)

    def update(self, kind: str, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace it by what change makes of it (None: it is not here), one process at a time."""
        try:
            self._files.update(kind, name, change)
        except (OSError, NoSpace) as error:
            self._trouble.note("write of small objects", error)

    def clear(self) -> None:
        """Drop all that are not pinned."""
        try:
            self._files.drop_oldest(1 << 62)
        except (OSError, NoSpace) as error:
            self._trouble.note("clearing", error)

    def _written(self, write: Callable[[], Held | None], size: int) -> Held | None:
        try:
            try:
                return write()
            except NoSpace:
                if self._evictor.make_room(size + 8192):
                    return write()
        except OSError as error:
            self._trouble.note("write of small objects", error)
        except NoSpace:
            pass  # others were faster: a miss
        return None

    def _set_pinned(self, kind: str, name: str, pinned: bool) -> bool:
        try:
            return self._files.set_pinned(kind, name, pinned)
        except OSError as error:
            self._trouble.note("pin", error)
            return False
