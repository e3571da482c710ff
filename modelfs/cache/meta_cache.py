"""Manifests, layouts, the last catalog: kept beside the chunks, so that a mount can start while the store is down.

Rule: a failure is a miss; what `get` returns is what was put under that very kind and name.
"""

from __future__ import annotations

from collections.abc import Callable

from modelfs.cache.eviction import Evictor
from modelfs.cache.meta_files import MetaFiles
from modelfs.cache.trouble import Trouble
from modelfs.errors import NoSpace


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
        try:
            try:
                self._files.write(kind, name, data)
            except NoSpace:
                if self._evictor.make_room(len(data) + 8192):
                    self._files.write(kind, name, data)
        except OSError as error:
            self._trouble.note("write of small objects", error)
        except NoSpace:
            return  # others were faster: a miss

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

    def _set_pinned(self, kind: str, name: str, pinned: bool) -> bool:
        try:
            return self._files.set_pinned(kind, name, pinned)
        except OSError as error:
            self._trouble.note("pin", error)
            return False
