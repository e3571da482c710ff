"""From what a user writes for a repository to its store.

Rule: nothing is asked of the store here, and the HTTP client, or the clouds' library, is imported only where a URL
needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelfs.errors import BadInput
from modelfs.stores.cloud_access import SCHEMES, CloudOptions
from modelfs.stores.file_store import FileStore
from modelfs.stores.store import ObjectStore

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. ca: of the authorities that count, in place of the usual ones. cert: what we show. key: of cert,
    where that does not hold it. keys: what messages put before ca_file, client_cert, client_key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    keys: str = ""


def open_store(spec: str, *, connections: int = 8, headers: Callable[[], Mapping[str, str]] | None = None,
               tls: TlsFiles | None = None, credentials: str = "", stall_s: float | None = None,
               cloud: CloudOptions | None = None, tell: Callable[[str], None] | None = None) -> ObjectStore:
    """The store of a directory's path, a file:// URL, an http(s):// URL, or of s3://, gs:// or az://, without retries
    (see RetryingStore).

    connections: of all but a directory. headers, tls, credentials, stall_s: of HttpStore. cloud, tell: of CloudStore.
    Raises BadInput; Forbidden of a private key that others can read.
    """
    scheme = _scheme_of(spec)
    if scheme is None:
        if not spec or "\0" in spec:
            raise BadInput(f"not a repository {spec!r}", why="a path or a URL is needed")
        return FileStore(Path(spec))
    if scheme == "file":
        return FileStore(_path_of(spec))
    if scheme in ("http", "https"):
        from modelfs.stores.http_store import HttpStore  # 100 ms of imports that a local repository does without
        return HttpStore(scheme + spec[len(scheme):], connections=connections, headers=headers, tls=tls,
                         credentials=credentials, stall_s=stall_s)
    if scheme in SCHEMES:
        try:
            from modelfs.stores.cloud_store import CloudStore
        except ModuleNotFoundError as error:
            raise BadInput(f"no library for {scheme}://", why=f"{error.name} is not installed",
                           advice="pip install 'modelfs[cloud]'") from error
        return CloudStore(spec, cloud, connections=connections, tell=tell)
    raise BadInput(f"no store for {scheme}://",
                   why="a repository is a path, file://, http://, https://, s3://, gs:// or az://")


def is_http(spec: str) -> bool:
    return _scheme_of(spec) in ("http", "https")


def is_cloud(spec: str) -> bool:
    return _scheme_of(spec) in SCHEMES


def is_network(spec: str) -> bool:
    return is_http(spec) or is_cloud(spec)


def _scheme_of(spec: str) -> str | None:
    found = _SCHEME.match(spec)
    return found[1].lower() if found else None


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise BadInput(f"not a file URL {url[:200]!r}", why="write it like file:///srv/models")
    if parts.query or parts.fragment:
        raise BadInput(f"a file URL has no ? and no # in it, {url[:200]!r}", why="write them as %3F and %23")
    return Path(path)
