"""The filesystem without FUSE, over a real repository."""

from __future__ import annotations

import errno
import hashlib
import logging
import stat
import threading
from collections.abc import Callable

import pytest
from repository.builder import WHEN, Builder, deadline

from modelfs.errors import IntegrityError, ModelfsError, NotFound
from modelfs.ids import Digest, ModelName, ModelRef
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.history import Version
from modelfs.repository.repository import Repository
from modelfs.stores.store import Fetched, ObjectStore
from modelfs.units import Deadline
from modelfs.view.shelves import version_id
from modelfs.view.tree import File, Link
from modelfs.view.view import Followed, Pinned, View

Show = Callable[..., View]
MODEL = ModelName("acme", "base")
FILES = {"a.bin": b"a" * 200_000, "d/b.bin": b"b" * 10, "d/e/c.txt": b""}


def names(view: View, path: str) -> list[str]:
    return [entry.name for entry in view.readdir(view.resolve(path))]


def content(view: View, path: str) -> bytes:
    opened = view.open(view.resolve(path))
    out = bytearray(opened.node.entry.size + 10)
    return bytes(out[:view.read(opened, 0, memoryview(out))])


def catalog_of(built: Builder) -> Catalog:
    return built.repository.catalog(deadline()).catalog


def without(built: Builder, model: ModelName) -> None:
    state = built.repository.catalog(deadline())
    models = {name: digest for name, digest in state.catalog.models.items() if name != model}
    built.store.swap(keys.CATALOG, state.etag, state.catalog.next(WHEN, models=models).serialise(), deadline())


def test_models_versions_and_tags_stand_where_the_interface_says(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    built.push("acme/base", {"a.bin": b"2"}, tag="next")
    built.push("zoo/x", {"f": b"x"})
    view = show()
    assert names(view, "") == ["acme", "zoo"]
    assert names(view, "/acme") == ["base"]
    assert names(view, "acme/base") == ["v1", "v2", "latest", "next"]
    assert view.readlink(view.resolve("acme/base/latest")) == "v1"
    assert view.readlink(view.resolve("acme/base/next")) == "v2"
    assert names(view, "acme/base/v1") == ["a.bin", "d"]
    assert names(view, "acme/base/v1/d") == ["b.bin", "e"]
    assert content(view, "acme/base/v1/a.bin") == FILES["a.bin"]
    assert content(view, "acme/base/v2/a.bin") == b"2"


@pytest.mark.parametrize("path", ["nope", "acme/nope", "acme/base/v2", "acme/base/v01", "acme/base/vx",
                                  "acme/base/v1/nope", "acme/base/v1/d/nope", "acme/base/v1/a.bin/x",
                                  "acme/base/latest/a.bin", "acme/base/v1/d/e/c.txt/" + "x" * 300])
def test_what_is_not_there_is_not_found(built: Builder, show: Show, path: str) -> None:
    built.push("acme/base", FILES)
    with pytest.raises(NotFound) as caught:
        show().resolve(path)
    assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR)


def test_attributes_are_those_of_the_manifest_and_without_write_bits(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    view = show()
    attr = view.getattr(view.resolve("acme/base/v1/a.bin"))
    assert (attr.mode, attr.size, attr.blocks) == (stat.S_IFREG | 0o444, 200_000, 391)
    assert attr.mtime_ns == 1_500_000_000_000_000_000
    for path in ("", "acme", "acme/base", "acme/base/v1", "acme/base/v1/d"):
        assert view.getattr(view.resolve(path)).mode == stat.S_IFDIR | 0o555
    link = view.getattr(view.resolve("acme/base/latest"))
    assert (stat.S_IFMT(link.mode), link.size) == (stat.S_IFLNK, 2)


def test_listed_inode_numbers_are_those_of_the_nodes(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    version = version_id(MODEL, built.repository.resolve(catalog_of(built), ModelRef(MODEL), deadline()).version)
    for view in (show(), show(Pinned(version)), show(Followed(MODEL, "latest", version))):
        places = [""]
        while places:
            place = places.pop()
            for entry in view.readdir(view.resolve(place)):
                path = f"{place}/{entry.name}"
                attr = view.getattr(view.resolve(path))
                assert (entry.ino, stat.S_IFMT(entry.mode)) == (attr.ino, stat.S_IFMT(attr.mode)), path
                if stat.S_ISDIR(attr.mode):
                    places.append(path)


def test_extended_attributes_say_what_the_interface_promises(built: Builder, show: Show) -> None:
    row = built.push("acme/base", FILES)
    view = show()
    file = view.resolve("acme/base/v1/a.bin")

    def value(name: str) -> str:
        return view.getxattr(file, f"user.modelfs.{name}").decode()

    assert value("digest") == Digest.of(FILES["a.bin"]).hex()
    assert value("sha256") == hashlib.sha256(FILES["a.bin"]).hexdigest()
    assert (value("version"), value("manifest"), value("cached")) == ("v1", row.manifest.hex(), "0")
    assert 0 < int(value("stored")) < 200_000
    assert len(view.listxattr(file)) == 6
    assert view.listxattr(view.resolve("acme/base/v1/d")) == ()
    for node, name in ((file, "user.nope"), (file, "security.capability"),
                       (view.resolve("acme"), "user.modelfs.digest")):
        with pytest.raises(ModelfsError) as caught:
            view.getxattr(node, name)
        assert caught.value.errno == errno.ENODATA


def test_a_pinned_version_stands_at_the_root_and_its_size_is_the_filesystems(built: Builder, show: Show) -> None:
    row = built.push("acme/base", FILES)
    built.push("acme/base", {"other": b""})
    view = show(Pinned(version_id(MODEL, row)))
    assert names(view, "") == ["a.bin", "d"]
    assert content(view, "/d/b.bin") == FILES["d/b.bin"]
    assert view.statfs().total_bytes == row.decoded_bytes
    view.update(catalog_of(built))
    assert names(view, "") == ["a.bin", "d"]


def test_an_update_moves_tags_and_keeps_versions(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    view = show()
    opened = view.open(view.resolve("acme/base/v1/a.bin"))
    assert view.readlink(view.resolve("acme/base/latest")) == "v1"
    before = view.generation
    built.push("acme/base", {"a.bin": b"2"})
    built.push("new/one", {"f": b""})
    assert view.update(catalog_of(built)) is False
    assert view.generation > before
    assert view.readlink(view.resolve("acme/base/latest")) == "v2"
    assert names(view, "") == ["acme", "new"]
    out = bytearray(10)
    assert view.read(opened, 0, memoryview(out)) == 10
    assert out == b"a" * 10


def test_an_older_catalog_changes_nothing_and_is_logged(built: Builder, show: Show,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    built.push("acme/base", FILES)
    older = catalog_of(built)
    built.push("acme/base", {"a.bin": b"2"})
    view = show()
    with caplog.at_level(logging.WARNING):
        assert view.update(older) is False
    assert "catalog.older" in caplog.text
    assert view.readlink(view.resolve("acme/base/latest")) == "v2"


def test_another_catalog_with_the_same_serial_changes_nothing(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    before = catalog_of(built)
    built.push("acme/base", {"a.bin": b"2"})
    view = show()
    view.resolve("acme/base/latest")
    assert view.update(before.next("2030-01-01T00:00:00Z", models={})) is False
    assert names(view, "") == ["acme"]


def test_a_model_whose_new_history_is_damaged_stays_as_it_was_and_others_move_on(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    built.push("zoo/x", {"f": b"1"})
    view = show()
    assert names(view, "acme/base") == ["v1", "latest"]
    assert names(view, "zoo/x") == ["v1", "latest"]
    built.push("acme/base", {"a.bin": b"2"})
    built.push("zoo/x", {"f": b"2"})
    new = catalog_of(built)
    damaged = built.path(keys.history(new.models[MODEL]))
    whole = damaged.read_bytes()
    damaged.chmod(0o600)
    damaged.write_bytes(whole[:-1])
    assert view.update(new) is True
    assert view.readlink(view.resolve("acme/base/latest")) == "v1"
    assert view.readlink(view.resolve("zoo/x/latest")) == "v2"
    damaged.write_bytes(whole)
    assert view.update(new) is False
    assert view.readlink(view.resolve("acme/base/latest")) == "v2"


def test_a_removed_model_goes_and_what_is_open_stays(built: Builder, show: Show) -> None:
    built.push("acme/base", FILES)
    view = show()
    opened = view.open(view.resolve("acme/base/v1/d/b.bin"))
    without(built, MODEL)
    view.update(catalog_of(built))
    assert names(view, "") == []
    with pytest.raises(NotFound):
        view.resolve("acme/base/v1")
    out = bytearray(10)
    assert view.read(opened, 0, memoryview(out)) == 10
    assert out == FILES["d/b.bin"]


def hidden(row: Version) -> str:
    return f".{row.name}-{row.manifest.hex()[:16]}"


def test_a_followed_tag_shows_links_into_the_version_it_names(built: Builder, show: Show) -> None:
    row = built.push("acme/base", FILES)
    view = show(Followed(MODEL, "latest", version_id(MODEL, row)))
    assert names(view, "") == ["a.bin", "d"]
    assert view.readlink(view.resolve("d")) == f"{hidden(row)}/d"
    old = view.resolve(f"{hidden(row)}/a.bin")
    assert content(view, f"{hidden(row)}/d/b.bin") == FILES["d/b.bin"]
    next_row = built.push("acme/base", {"a.bin": b"2", "n": b""})
    view.update(catalog_of(built))
    assert names(view, "") == ["a.bin", "n"]
    assert view.readlink(view.resolve("a.bin")) == f"{hidden(next_row)}/a.bin"
    new = view.resolve(f"{hidden(next_row)}/a.bin")
    assert isinstance(old, File) and isinstance(new, File)
    assert view.getattr(old).ino != view.getattr(new).ino
    assert content(view, f"{hidden(row)}/a.bin") == FILES["a.bin"]
    for nothing in ("d", ".v1", ".v1-0123456789abcdef", hidden(row).replace("v1", "v2"), f"{hidden(row)}0"):
        with pytest.raises(NotFound):
            view.resolve(nothing)


def test_a_followed_version_may_have_files_with_names_like_versions(built: Builder, show: Show) -> None:
    files = {".v1": b"one", ".v7": b"seven", ".v2/deep": b"two", "v1": b"plain"}
    row = built.push("acme/base", files)
    view = show(Followed(MODEL, "latest", version_id(MODEL, row)))
    assert names(view, "") == sorted({path.partition("/")[0] for path in files})
    for path, data in files.items():
        top, _, below = path.partition("/")
        assert content(view, f"{view.readlink(view.resolve(top))}{below and '/' + below}") == data
    # a later version may even have a file named as the directory of an older one: it wins
    later = built.push("acme/base", {hidden(row): b"mine"})
    view.update(catalog_of(built))
    assert names(view, "") == [hidden(row)]
    assert content(view, view.readlink(view.resolve(hidden(row)))) == b"mine"
    assert view.readlink(view.resolve(hidden(row))).startswith(hidden(later))


def test_a_followed_mount_stays_where_it_is_when_its_model_goes(built: Builder, show: Show) -> None:
    row = built.push("acme/base", FILES)
    view = show(Followed(MODEL, "latest", version_id(MODEL, row)))
    without(built, MODEL)
    assert view.update(catalog_of(built)) is False
    assert isinstance(view.resolve("a.bin"), Link)
    assert content(view, f"{hidden(row)}/a.bin") == FILES["a.bin"]


def test_a_damaged_manifest_is_an_error_for_its_version_alone(built: Builder, show: Show) -> None:
    first = built.push("acme/base", FILES)
    built.push("acme/base", {"a.bin": b"2"})
    path = built.path(keys.manifest(first.manifest))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    view = show()
    assert names(view, "acme/base") == ["v1", "v2", "latest"]
    with pytest.raises(IntegrityError) as caught:
        view.resolve("acme/base/v1/a.bin")
    assert caught.value.errno == errno.EIO
    assert content(view, "acme/base/v2/a.bin") == b"2"


class _Gate:
    """The store, but who asks for one key waits until the gate is opened."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, key
        self.url = store.url
        self.waiting, self.opened = threading.Event(), threading.Event()

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        if key == self._key:
            self.waiting.set()
            assert self.opened.wait(30)
        return self._store.get(key, deadline, limit=limit, etag=etag, fresh=fresh)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def test_nothing_waits_for_a_version_that_somebody_else_is_loading(built: Builder, show: Show) -> None:
    slow = built.push("acme/base", FILES)
    built.push("acme/base", {"a.bin": b"2"})
    built.push("zoo/x", {"f": b"1"})
    gate = _Gate(built.store, keys.manifest(slow.manifest))
    view = show(repository=Repository(gate, built.repository.info, built.repository.cache))  # type: ignore[arg-type]
    found: list[object] = []
    loader = threading.Thread(target=lambda: found.append(view.resolve("acme/base/v1/a.bin")))
    loader.start()
    try:
        assert gate.waiting.wait(30)
        # this thread would hang here, and the test with it, were any of it behind the load
        assert names(view, "acme/base") == ["v1", "v2", "latest"]
        assert content(view, "acme/base/v2/a.bin") == b"2"
        assert content(view, "zoo/x/v1/f") == b"1"
        assert stat.S_ISDIR(view.getattr(view.resolve("acme/base/v1")).mode)
        assert not found
    finally:
        gate.opened.set()
        loader.join(30)
    assert isinstance(found[0], File)
