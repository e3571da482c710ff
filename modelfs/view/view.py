"""The filesystem, without FUSE: lookup, attributes, directories, links, extended attributes, open, read.

Rule: what is below a version is answered from memory once its manifest is loaded, and the loading of one
version, or a read that waits for the network, holds up nothing but those who asked for it.
"""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from modelfs.errors import BadInput, Forbidden, ModelfsError, NotFound
from modelfs.ids import ModelName, parse_version
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.reading.reader import Reader
from modelfs.reading.versions import LoadedVersion, ModelFile
from modelfs.repository.catalog import Catalog
from modelfs.settings import Yanked
from modelfs.view import tree
from modelfs.view.loading import Library, Loader, ShelvesInMemory, VersionsInMemory
from modelfs.view.tree import (
    Directory,
    Entry,
    File,
    FollowedRoot,
    Link,
    ModelDirectory,
    Node,
    Organisation,
    Root,
    VersionId,
    VersionRoot,
)

_LOG = logger_for(__name__)
BLOCK_BYTES = 4096
NAME_MAX = 255
XATTRS = tuple(f"user.modelfs.{name}" for name in ("digest", "sha256", "version", "manifest", "cached", "stored"))
_HIDDEN = re.compile(r"\.(v[0-9]+)-[0-9a-f]{16}")


class NoData(NotFound):
    """An extended attribute that is not there."""

    errno = errno.ENODATA


class NotADirectory(NotFound):
    errno = errno.ENOTDIR


@dataclass(frozen=True, slots=True)
class Attr:
    """mode: with the type bits. Owner is whoever mounted: engines know him."""

    ino: int
    mode: int
    size: int
    mtime_ns: int

    @property
    def blocks(self) -> int:
        """Of 512 bytes."""
        return (self.size + 511) >> 9


@dataclass(frozen=True, slots=True)
class StatFs:
    """total_bytes: decoded, of all versions that the view knows of; none of it is ever free."""

    total_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """Keeps its version loaded. node: what was opened, whatever its path means later."""

    node: File
    file: ModelFile


@dataclass(frozen=True, slots=True)
class Everything:
    """A mount of the whole repository: org/name/vN/files."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A mount of one version, its files at the root."""

    version: VersionId


@dataclass(frozen=True, slots=True)
class Followed:
    """A mount of whatever version a tag names. version: the one that it names now."""

    model: ModelName
    tag: str
    version: VersionId


Shown = Everything | Pinned | Followed


class _Now:
    """What a view shows: shared by its two faces, replaced by `update` only."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.generation = 0


class View:
    """All methods may be called from several threads at once. All raise ModelfsError; NotFound for what is not there.

    Blocking is only the first access to a model (its history), to a version (its manifest), and `reader`'s reads.
    """

    def __init__(self, library: Library, versions: Loader, reader: Reader, metrics: Metrics, shown: Shown,
                 yanked: Yanked = "warn") -> None:
        """yanked: what to do with who opens a file of a version that was withdrawn."""
        self._library, self._versions, self._metrics, self._yanked = library, versions, metrics, yanked
        self.reader = reader
        self._now = _Now(shown)

    @property
    def generation(self) -> int:
        """Steps when `update` changed what paths mean: whoever remembers what a path was forgets it then."""
        return self._now.generation

    def from_memory(self) -> View:
        """This view, always up to date with it, but where it would block it raises NotLoaded."""
        other = View(ShelvesInMemory(self._library), VersionsInMemory(self._versions), self.reader, self._metrics,
                     self._now.shown, self._yanked)
        other._now = self._now
        return other

    @property
    def fixed(self) -> bool:
        """Whether no path of this view ever changes its meaning."""
        return isinstance(self._now.shown, Pinned)

    def root(self) -> Node:
        shown = self._now.shown
        if isinstance(shown, Pinned):
            return VersionRoot(shown.version)
        return FollowedRoot(shown.version) if isinstance(shown, Followed) else Root()

    def update(self, catalog: Catalog) -> bool:
        """Show a newer catalog. Returns whether something of it could not be loaded yet: call again then.

        A followed tag moves only after the manifest it moves to is loaded, so that nobody waits for it.
        """
        pending = self._library.update(catalog)
        if isinstance(self._now.shown, Followed):
            pending = self._follow(self._now.shown) or pending
        self._now.generation += 1
        return pending

    def lookup(self, parent: Node, name: str) -> Node:
        """The node of one name in a directory."""
        match parent:
            case Root():
                if name in self._library.now.organisations:
                    return Organisation(name)
            case Organisation(org):
                if name in self._library.now.organisations.get(org, ()):
                    return ModelDirectory(ModelName(org, name))
            case ModelDirectory(model):
                return self._in_model(model, name)
            case FollowedRoot(version):
                return self._in_followed(version, name)
            case Directory() | VersionRoot():
                if (found := self._find(parent, name)) is not None:
                    return found
            case _:
                raise NotADirectory(f"no directory {name[:NAME_MAX]!r}")
        raise NotFound(f"nothing here by the name {name[:NAME_MAX]!r}")

    def resolve(self, path: str) -> Node:
        """The node at a path from the root, its parts joined by single slashes; a leading slash may stand.

        Links are not followed. Parts above a version are looked up one by one, what lies below at once.
        """
        node, rest = self.root(), path.strip("/")
        while rest:
            if isinstance(node, Directory | VersionRoot):
                return self.lookup(node, rest)
            name, _, rest = rest.partition("/")
            node = self.lookup(node, name)
        return node

    def getattr(self, node: Node) -> Attr:
        """From memory, always."""
        match node:
            case File(version, _, entry):
                return Attr(tree.inode(version.manifest, entry.path), stat.S_IFREG | entry.mode, entry.size,
                            entry.mtime_ns)
            case Directory(version, path):
                return Attr(tree.inode(version.manifest, path), stat.S_IFDIR | 0o555, 0, version.created_ns)
            case VersionRoot(version):
                return Attr(tree.inode(version.manifest, ""), stat.S_IFDIR | 0o555, 0, version.created_ns)
            case FollowedRoot(version):
                return Attr(tree.upper_inode(""), stat.S_IFDIR | 0o555, 0, version.created_ns)
            case Link(target, place, mtime_ns):
                return Attr(tree.upper_inode(place), stat.S_IFLNK | 0o777, len(target.encode()), mtime_ns)
            case _:
                return Attr(tree.upper_inode(_place(node)), stat.S_IFDIR | 0o555, 0, self._library.now.created_ns)

    def readdir(self, node: Node) -> Iterator[Entry]:
        """Without . and .. (engines add them)."""
        match node:
            case Root():
                for org in self._library.now.organisations:
                    yield Entry(org, tree.upper_inode(org), stat.S_IFDIR)
            case Organisation(org):
                for name in self._library.now.organisations.get(org, ()):
                    yield Entry(name, tree.upper_inode(f"{org}/{name}"), stat.S_IFDIR)
            case ModelDirectory(model):
                shelf = self._library.shelf(model)
                for version in shelf.versions.values():
                    yield Entry(version.name, tree.inode(version.manifest, ""), stat.S_IFDIR)
                for tag in shelf.tags:
                    yield Entry(tag, tree.upper_inode(f"{model}/{tag}"), stat.S_IFLNK)
            case FollowedRoot(version):
                for entry in self.readdir(VersionRoot(version)):
                    yield Entry(entry.name, tree.upper_inode(entry.name), stat.S_IFLNK)
            case VersionRoot(version):
                manifest = self._load(version).manifest
                yield from tree.children(tree.whole(version, manifest), manifest)
            case Directory(version):
                yield from tree.children(node, self._load(version).manifest)
            case _:
                raise NotADirectory("not a directory")

    def readlink(self, node: Node) -> str:
        if isinstance(node, Link):
            return node.target
        raise BadInput("not a symbolic link")

    def statfs(self) -> StatFs:
        shown = self._now.shown
        if not isinstance(shown, Everything):
            manifest = self._load(shown.version).manifest
            return StatFs(manifest.decoded_bytes, len(manifest))
        now = self._library.now
        return StatFs(sum(shelf.decoded_bytes for shelf in now.shelves.values()), len(now.catalog.models))

    def listxattr(self, node: Node) -> tuple[str, ...]:
        return XATTRS if isinstance(node, File) else ()

    def getxattr(self, node: Node, name: str) -> bytes:
        """Raises NoData."""
        if not isinstance(node, File) or name not in XATTRS:
            raise NoData(f"no attribute {name[:NAME_MAX]}")
        match name.rpartition(".")[2]:
            case "digest":
                value = node.entry.digest.hex()
            case "sha256":
                value = node.entry.sha256.hex()
            case "version":
                value = node.version.name
            case "manifest":
                value = node.version.manifest.hex()
            case "cached":
                value = str(self._load(node.version).file(node.number).cached_bytes())
            case _:
                value = str(self._load(node.version).file(node.number).stored_bytes())
        return value.encode()

    def open(self, node: Node) -> OpenFile:
        """Raises BadInput for what is no file, Forbidden of a version that was withdrawn where that is the policy."""
        if not isinstance(node, File):
            raise BadInput("not a file")
        reason = self._library.yanked(node.version)
        if reason is not None:
            self._note_yanked(node.version, reason)
        opened = OpenFile(node, self._load(node.version).file(node.number))
        self._metrics.add("opens")
        self.reader.opened(opened.file)
        return opened

    def read(self, opened: OpenFile, offset: int, out: memoryview) -> int:
        """Fill out from offset; how many bytes, fewer only at the file's end. Blocks; whatever it raises is EIO."""
        return self.reader.read_into(opened.file, offset, out)

    def where(self, node: Node) -> str | VersionId:
        """Of what is no file or directory of a version: the path at which `resolve` finds it, or the version."""
        match node:
            case VersionRoot(version):
                return version
            case Link(_, place, _):
                return place
            case _:
                return _place(node)

    def file_at(self, version: VersionId, number: int) -> File:
        """By its number in the manifest. Raises NotFound."""
        manifest = self._load(version).manifest
        if number >= len(manifest):
            raise NotFound(f"no file {number} in {version.model}:{version.name}")
        return File(version, number, manifest.file(number))

    def directory_at(self, version: VersionId, number: int, depth: int) -> Directory | VersionRoot:
        """The directory of so many parts in which the file of that number lies. Raises NotFound."""
        if not depth:
            return VersionRoot(version)
        parts = self.file_at(version, number).entry.path.split("/")
        found = self._find(VersionRoot(version), "/".join(parts[:depth]))
        if not isinstance(found, Directory):
            raise NotFound(f"no directory {depth} levels above file {number} in {version.model}:{version.name}")
        return found

    def model_file(self, file: File) -> ModelFile:
        """The file as reads know it."""
        return self._load(file.version).file(file.number)

    def note_passthrough(self) -> None:
        """An engine gave the kernel a file's descriptor: its reads do not come here."""
        self._metrics.add("passthrough_opens")

    def whole(self, file: File) -> bool:
        """Whether all of it is in the cache and was checked, as of now."""
        return self._load(file.version).whole(file.number)

    def _note_yanked(self, version: VersionId, reason: str) -> None:
        """Raises Forbidden."""
        name = f"{version.model}:{version.name}"
        log_event(_LOG, "warning", "version.yanked", model=version.model, version=version.name, reason=reason,
                  policy=self._yanked)
        if self._yanked == "deny":
            raise Forbidden(f"{name} was withdrawn", why=reason)

    def _load(self, version: VersionId) -> LoadedVersion:
        return self._versions.load(version.manifest)

    def _find(self, within: Directory | VersionRoot, path: str) -> Directory | File | None:
        manifest = self._load(within.version).manifest
        directory = within if isinstance(within, Directory) else tree.whole(within.version, manifest)
        return tree.find(directory, manifest, path)

    def _in_model(self, model: ModelName, name: str) -> Node:
        shelf = self._library.shelf(model)
        number = parse_version(name)
        if number is not None and number in shelf.versions:
            return VersionRoot(shelf.versions[number])
        if name in shelf.tags:
            return Link(f"v{shelf.tags[name]}", f"{model}/{name}", self._library.now.created_ns)
        raise NotFound(f"no version and no tag {name[:NAME_MAX]!r} of {model}")

    def _in_followed(self, version: VersionId, name: str) -> Node:
        if self._find(VersionRoot(version), name) is not None:
            return Link(f"{_hidden_name(version)}/{name}", name, version.created_ns)
        if hidden := _HIDDEN.fullmatch(name):
            found = VersionRoot(version) if name == _hidden_name(version) else self._in_model(version.model, hidden[1])
            if isinstance(found, VersionRoot) and name == _hidden_name(found.version):
                return found
        raise NotFound(f"nothing here by the name {name[:NAME_MAX]!r}")

    def _follow(self, shown: Followed) -> bool:
        """Whether the tag names a version that could not be loaded."""
        try:
            shelf = self._library.shelf(shown.model)
            number = shelf.tags.get(shown.tag)
            # A tag that was taken away, or names what may not be read, leaves the mount where it is.
            if number is not None and (self._yanked == "warn" or number not in shelf.yanked):
                self._load(shelf.versions[number])
                self._now.shown = Followed(shown.model, shown.tag, shelf.versions[number])
        except NotFound:
            return False
        except ModelfsError:
            return True
        return False


def _hidden_name(version: VersionId) -> str:
    """Of the directory that a followed root's links lead into. No file of the version has it as its name: the digest
    is that of the manifest, which holds the files' names."""
    return f".{version.name}-{version.manifest.hex()[:16]}"


def _place(node: Node) -> str:
    match node:
        case Organisation(name):
            return name
        case ModelDirectory(model):
            return str(model)
        case _:
            return ""
