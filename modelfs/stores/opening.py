"""From what a user writes for a repository to its store.

Rule: nothing is asked of the store here, and the HTTP client is imported only where a URL needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelfs.errors import BadInput
from modelfs.stores.file_store import FileStore
from modelfs.stores.store import ObjectStore

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(spec: str, *, connections: int = 8, headers: Callable[[], Mapping[str, str]] | None = None,
               verify: bool | str = True, credentials: str = "") -> ObjectStore:
    """The store of a directory's path, a file:// URL or an http(s):// URL, without retries (see RetryingStore).

    connections, headers, verify, credentials: of HttpStore; a directory needs none of them. Raises BadInput.
    """
    found = _SCHEME.match(spec)
    if not found:
        if not spec or "\0" in spec:
            raise BadInput(f"not a repository {spec!r}", why="a path or a URL is needed")
        return FileStore(Path(spec))
    scheme = found[1].lower()
    if scheme == "file":
        return FileStore(_path_of(spec))
    if scheme in ("http", "https"):
        from modelfs.stores.http_store import HttpStore  # 100 ms of imports that a local repository does without
        return HttpStore(scheme + spec[len(scheme):], connections=connections, headers=headers, verify=verify,
                         credentials=credentials)
    raise BadInput(f"no store for {scheme}://", why="a repository is a path, file://, http:// or https://")


def is_http(spec: str) -> bool:
    found = _SCHEME.match(spec)
    return found is not None and found[1].lower() in ("http", "https")


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise BadInput(f"not a file URL {url[:200]!r}", why="write it like file:///srv/models")
    if parts.query or parts.fragment:
        raise BadInput(f"a file URL has no ? and no # in it, {url[:200]!r}", why="write them as %3F and %23")
    return Path(path)
