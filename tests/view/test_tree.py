"""A manifest seen as a tree: what lies where, against a tree built the slow way."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from modelfs.ids import Digest, ModelName, ObjectId
from modelfs.repository import manifest
from modelfs.repository.manifest import FileEntry, Manifest, path_key
from modelfs.view import tree
from modelfs.view.tree import Directory, File, VersionId

# names that sort differently before, at and after a slash, and one of several bytes
NAMES = st.sampled_from(["a", "a!", "a-b", "a.b", "ab", "b", "A", "a\x01", "ü", "~", "long" * 20])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def manifest_of(paths: list[str]) -> Manifest:
    entries = [FileEntry(path, 0, 0, 0o444, Digest(bytes(32)), bytes(32), None, 0, 0)
               for path in sorted(paths, key=path_key)]
    data = manifest.serialise(entries, [], [], [])
    return manifest.parse(ObjectId.of(data), data, 1 << 16)


def without_files_that_are_directories(paths: set[str]) -> list[str]:
    return [path for path in paths if not any(other.startswith(path + "/") for other in paths)]


def slow_tree(paths: list[str]) -> dict[str, dict[str, bool]]:
    """Of every directory its entries, with whether each is a directory."""
    found: dict[str, dict[str, bool]] = {"": {}}
    for path in paths:
        parts = path.split("/")
        for depth in range(len(parts)):
            found.setdefault("/".join(parts[:depth]), {})[parts[depth]] = depth < len(parts) - 1
    return found


@given(st.sets(PATHS, max_size=30).map(without_files_that_are_directories), st.lists(PATHS, max_size=10))
def test_every_directory_lists_what_lies_in_it_and_every_path_is_found(paths: list[str], others: list[str]) -> None:
    shown = manifest_of(paths)
    version = VersionId(ModelName("acme", "base"), 1, shown.id, 0)
    root = tree.whole(version, shown)
    directories = slow_tree(paths)
    for place, entries in directories.items():
        directory = tree.find(root, shown, place) if place else root
        assert isinstance(directory, Directory)
        listed = list(tree.children(directory, shown))
        assert {entry.name: stat.S_ISDIR(entry.mode) for entry in listed} == entries
        assert [entry.name.encode() for entry in listed] == sorted(name.encode() for name in entries)
        for entry in listed:
            full = f"{place}/{entry.name}" if place else entry.name
            assert entry.ino == tree.inode(shown.id, full)
            found = tree.find(directory, shown, entry.name)
            assert found == tree.find(root, shown, full)
            assert isinstance(found, Directory if entries[entry.name] else File)
            if isinstance(found, File):
                assert found.entry.path == full
    for path in others:
        if path not in paths and path not in directories:
            assert tree.find(root, shown, path) is None


def test_a_name_that_is_not_utf_8_is_found_nowhere() -> None:
    shown = manifest_of(["a"])
    root = tree.whole(VersionId(ModelName("acme", "base"), 1, shown.id, 0), shown)
    assert tree.find(root, shown, b"a\xff".decode(errors="surrogateescape")) is None


def test_inode_numbers_differ_by_path_and_by_version_and_are_never_special() -> None:
    first, second = ObjectId(bytes(32)), ObjectId(bytes([1]) * 32)
    numbers = [tree.inode(first, "a"), tree.inode(first, "b"), tree.inode(second, "a"), tree.upper_inode("a")]
    assert len(set(numbers)) == 4
    assert tree.inode(first, "a") == tree.inode(first, "a")
    assert all(1 < number < (1 << 64) - 1 for number in numbers)
