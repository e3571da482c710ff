"""What there is to push or compress: the regular files below a directory, or one file, under their paths in the model.

Rule: nothing outside the source is taken unless --follow-links says so, and nothing that is no regular file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
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
        raise NotFound("no source", where=str(source), why="no such file or directory") from error
    except OSError as error:
        raise unreadable(str(source), error) from error
    if stat.S_ISREG(status.st_mode):
        return [_file(_utf8(source.name), str(source), status)]
    if not stat.S_ISDIR(status.st_mode):
        raise _odd(str(source), status)
    return sorted(_walk(os.path.realpath(source), follow_links), key=lambda file: path_key(file.path))


def unreadable(location: str, error: OSError) -> BadInput | Forbidden:
    kind = Forbidden if isinstance(error, PermissionError) else BadInput
    return kind("cannot be read", where=location, why=error.strerror or str(error))


def _walk(root: str, follow_links: bool) -> Iterator[SourceFile]:
    """All regular files below root. Without recursion: a path may have two thousand parts."""
    # each with its path in the version and the real paths of the directories that it lies in, itself last
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(root, "", (root,))]
    while waiting:
        location, path, above = waiting.pop()
        try:
            with os.scandir(location) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(location, error) from error
        for entry in entries:
            name = f"{path}/{_utf8(entry.name)}" if path else _utf8(entry.name)
            real = f"{above[-1]}/{entry.name}"
            if entry.is_symlink():
                real = _check_link(entry.path, above, root, follow_links)
            try:
                status = entry.stat()
            except OSError as error:
                raise unreadable(entry.path, error) from error
            if stat.S_ISDIR(status.st_mode):
                waiting.append((entry.path, name, (*above, real)))
            elif stat.S_ISREG(status.st_mode):
                yield _file(name, entry.path, status)
            else:
                raise _odd(entry.path, status)


def _check_link(link: str, above: tuple[str, ...], root: str, follow_links: bool) -> str:
    """Where it leads to."""
    target = os.path.realpath(link)
    if not os.path.exists(target):
        raise BadInput("a link leads nowhere", where=link, why=f"it points to {os.readlink(link)}")
    if target in above or os.path.commonpath((target, above[-1])) == target:
        raise BadInput("a link leads to a directory above itself", where=link)
    if not follow_links and os.path.commonpath((target, root)) != root:
        raise BadInput("a link leads out of the source", where=link, why=f"to {target}",
                       advice="--follow-links takes what it leads to.")
    return target


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
    return BadInput(f"a {kind} is no file of a model", where=location)
