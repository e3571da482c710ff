"""What there is to push: the regular files below a directory, or one file, under their paths in the version.

Rule: nothing outside the source is pushed unless --follow-links says so, and nothing that is no regular file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from modelfs.errors import BadInput, Forbidden, NotFound
from modelfs.repository.manifest import EXECUTE_BITS, path_key

_KINDS = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "FIFO (fifo)", stat.S_IFBLK: "block device",
          stat.S_IFCHR: "character device"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """path: in the version. location: on this disk, links not resolved."""

    path: str
    location: str
    size: int
    mtime_ns: int
    mode: int


def scan(source: Path, follow_links: bool) -> list[SourceFile]:
    """Sorted by path_key. Raises NotFound, BadInput (naming what is refused), Forbidden."""
    try:
        status = os.stat(source)
    except FileNotFoundError as error:
        raise NotFound("nothing to push", where=str(source), why="no such file or directory") from error
    except OSError as error:
        raise _unreadable(str(source), error) from error
    if stat.S_ISREG(status.st_mode):
        return [_file(_utf8(source.name), str(source), status)]
    if not stat.S_ISDIR(status.st_mode):
        raise _odd(str(source), status)
    root = os.path.realpath(source)
    return sorted(_Walk(root, follow_links).directory(root, "", (root,)), key=lambda file: path_key(file.path))


@dataclass(frozen=True, slots=True)
class _Walk:
    root: str
    follow_links: bool

    def directory(self, location: str, path: str, above: tuple[str, ...]) -> list[SourceFile]:
        """above: the real paths of the directories that this one lies in, itself last."""
        out: list[SourceFile] = []
        try:
            entries = sorted(os.scandir(location), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(location, error) from error
        for entry in entries:
            name = f"{path}/{_utf8(entry.name)}" if path else _utf8(entry.name)
            if entry.is_symlink():
                self._check_link(entry.path, above)
            try:
                status = entry.stat()
            except OSError as error:
                raise _unreadable(entry.path, error) from error
            if stat.S_ISDIR(status.st_mode):
                out += self.directory(entry.path, name, (*above, os.path.realpath(entry.path)))
            elif stat.S_ISREG(status.st_mode):
                out.append(_file(name, entry.path, status))
            else:
                raise _odd(entry.path, status)
        return out

    def _check_link(self, link: str, above: tuple[str, ...]) -> None:
        target = os.path.realpath(link)
        if not os.path.exists(target):
            raise BadInput("a link leads nowhere", where=link, why=f"it points to {os.readlink(link)}")
        if target in above:
            raise BadInput("a link leads to a directory above itself", where=link)
        if not self.follow_links and os.path.commonpath((target, self.root)) != self.root:
            raise BadInput("a link leads out of the source", where=link, why=f"to {target}",
                           advice="--follow-links pushes what it leads to.")


def _file(path: str, location: str, status: os.stat_result) -> SourceFile:
    return SourceFile(path, location, status.st_size, status.st_mtime_ns, status.st_mode & EXECUTE_BITS | 0o444)


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise BadInput(f"a file's name is not UTF-8, {shown}") from error
    return name


def _odd(location: str, status: os.stat_result) -> BadInput:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
    return BadInput(f"a {kind} cannot be pushed", where=location)


def _unreadable(location: str, error: OSError) -> BadInput | Forbidden:
    kind = Forbidden if isinstance(error, PermissionError) else BadInput
    return kind("cannot be read", where=location, why=error.strerror or str(error))
