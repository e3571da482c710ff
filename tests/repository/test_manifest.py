"""Manifests: what was written is read; what is hostile is refused, by name, before anything is made of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository.builder import CHUNK, rows_of

from modelfs.errors import IntegrityError, Malformed, Unsupported
from modelfs.ids import ChunkId, Digest, ObjectId
from modelfs.repository import columns, manifest
from modelfs.repository.columns import texts_column
from modelfs.repository.manifest import FileEntry, check_path, content_digest, path_key

ID = ObjectId(bytes(range(32)))
Spoil = Callable[[dict[str, Any]], None]

part = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda text: text not in (".", ".."))
digest = st.binary(min_size=32, max_size=32)
path = st.lists(part, min_size=1, max_size=4).map("/".join)


def tree_paths(paths: list[str]) -> list[str]:
    """Those that can stand in one tree, in order."""
    out: list[str] = []
    for each in sorted(set(paths), key=path_key):
        if not out or not path_key(each).startswith(path_key(out[-1]) + b"\0"):
            out.append(each)
    return out


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[FileEntry], list[ChunkId], list[int]]:
    files: list[FileEntry] = []
    ids: list[ChunkId] = []
    lengths: list[int] = []
    for each in tree_paths(draw(st.lists(path, max_size=8))):
        own = draw(st.lists(st.integers(1, CHUNK), max_size=4))
        files.append(FileEntry(each, sum(own), draw(st.integers(-2**63, 2**63 - 1)),
                               draw(st.sampled_from([0o444, 0o555, 0o545])), Digest(draw(digest)), draw(digest),
                               draw(st.sampled_from([None, "safetensors", "gguf", "npy"])), len(ids), len(own)))
        lengths += own
        ids += [ChunkId(draw(digest)) for _ in own]
    return files, ids, lengths


@given(trees())
def test_what_was_written_is_read(tree: tuple[list[FileEntry], list[ChunkId], list[int]]) -> None:
    files, ids, lengths = tree
    data = manifest.serialise(files, ids, lengths, [])
    assert data == manifest.serialise(files, ids, lengths, [])
    found = manifest.parse(ID, data, CHUNK)
    assert list(found.files()) == files
    assert [found.chunk_id(row) for row in range(len(ids))] == ids
    assert found.chunk_lengths.tolist() == lengths
    assert found.decoded_bytes == sum(lengths)
    assert [found.find(file.path) for file in files] == list(range(len(files)))
    assert found.find("not/there/at all") is None


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1 << 16])
def test_offsets_are_sums_of_lengths_wherever_a_slab_ends(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(manifest, "_SUM_ROWS", rows)
    files = {"a": bytes(3 * CHUNK + 5), "b": b"", "c": bytes(CHUNK), "d": b"22"}
    found = manifest.parse(ID, manifest.serialise(*rows_of(files), []), CHUNK)
    ends = [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK + 5, 4 * CHUNK + 5, 4 * CHUNK + 7]
    assert found.offsets.tolist() == ends and found.decoded_bytes == ends[-1]


def test_a_path_that_the_system_could_not_decode_is_not_found() -> None:
    found = manifest.parse(ID, manifest.serialise(*rows_of({"a": b"x"}), []), CHUNK)
    assert found.find("\udcff") is None


def test_times_are_not_part_of_a_versions_content_and_execute_bits_are() -> None:
    file = rows_of({"a": b"x"})[0][0]
    later = FileEntry(file.path, file.size, 7, file.mode, *[getattr(file, name) for name in (
        "digest", "sha256", "format", "first_row", "row_count")])
    runs = FileEntry(file.path, file.size, file.mtime_ns, 0o555, *[getattr(file, name) for name in (
        "digest", "sha256", "format", "first_row", "row_count")])
    assert content_digest([later]) == content_digest([file]) != content_digest([runs])


def sound() -> dict[str, Any]:
    """The columns of a manifest of three files: b/x of 2 rows, c empty, d of 1 row."""
    data = manifest.serialise(*rows_of({"b/x": bytes(CHUNK) + b"1", "c": b"", "d": b"22"}), [])
    return {name: array.copy() for name, array in columns.parse(data, "manifest").arrays.items()}


def spoiled(spoil: Spoil) -> bytes:
    table = sound()
    spoil(table)
    return columns.serialise(table, {"modelfs": "manifest"})


def set_paths(*paths: bytes) -> Spoil:
    def spoil(table: dict[str, Any]) -> None:
        table["paths"] = np.frombuffer(b"".join(paths), np.uint8)
        table["path_end"] = np.cumsum([len(each) for each in paths], dtype=np.uint64)
    return spoil


def put(column: str, row: int, value: int) -> Spoil:
    def spoil(table: dict[str, Any]) -> None:
        table[column][row] = value
    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(table: dict[str, Any]) -> None:
        for each in spoils:
            each(table)
    return spoil


MALICIOUS = {
    "leaves the tree": set_paths(b"../x", b"c", b"d"),
    "leaves the tree further down": set_paths(b"b/../../x", b"c", b"d"),
    "absolute": set_paths(b"/etc/passwd", b"c", b"d"),
    "a dot": set_paths(b"./x", b"c", b"d"),
    "an empty part": set_paths(b"b//x", b"c", b"d"),
    "an empty path": set_paths(b"", b"c", b"d"),
    "ends in a slash": set_paths(b"b/", b"c", b"d"),
    "a NUL": set_paths(b"b\0x", b"c", b"d"),
    "not UTF-8": set_paths(b"b\xff", b"c", b"d"),
    "half a surrogate pair": set_paths(b"b\xed\xa0\x80", b"c", b"d"),
    "a part of 256 bytes": set_paths(b"b" * 256, b"c", b"d"),
    "a path of 4096 bytes": set_paths(b"b/" * 2047 + b"bb", b"c", b"d"),
    "twice the same": set_paths(b"c", b"c", b"d"),
    "a file that is also a directory": set_paths(b"c", b"c/x", b"d"),
    "not in order": set_paths(b"d", b"c", b"b"),
    "in the order of bytes, not of parts": set_paths(b"a.x", b"a/x", b"d"),
    "paths that go backwards": put("path_end", 1, 0),
    "paths beyond their column": put("path_end", 2, 1000),
    "paths at the end of all numbers": put("path_end", 0, 2**64 - 1),
    "rows that overlap": put("file_first_row", 2, 1),
    "rows that begin late": put("file_first_row", 0, 1),
    "a row too many": put("file_row_count", 2, 2),
    "a row left over": put("file_row_count", 2, 0),
    "counts that wrap around": both(put("file_row_count", 0, 2**64 - 1), put("file_first_row", 1, 2**64 - 1),
                                    put("file_row_count", 1, 3), put("file_first_row", 2, 2)),
    "counts and sizes that wrap around": both(
        put("file_row_count", 0, 2**64 - 1), put("file_first_row", 1, 2**64 - 1), put("file_row_count", 1, 3),
        put("file_first_row", 2, 2), put("file_size", 0, CHUNK + 3), put("file_size", 1, 2**64 - 2)),
    "a row count beyond all memory": put("file_row_count", 2, 2**62),
    "a size that does not add up": put("file_size", 0, CHUNK + 2),
    "an enormous size": put("file_size", 1, 2**64 - 1),
    "a chunk larger than the chunk size": both(put("chunk_length", 0, CHUNK + 1), put("file_size", 0, CHUNK + 2)),
    "an empty chunk": both(put("chunk_length", 2, 0), put("file_size", 2, 0)),
    "a format that is not there": put("file_format", 0, 1),
    "no column of sizes": lambda table: table.pop("file_size"),
    "sizes of another type": lambda table: table.update(file_size=table["file_size"].astype(np.uint32)),
    "digests of another width": lambda table: table.update(file_digest=table["file_digest"][:, :31]),
    "a column that is too short": lambda table: table.update(file_mode=table["file_mode"][:2]),
    "a feature's name cut short": lambda table: table.update(features=np.frombuffer(b"seal", np.uint8)),
    "features that are not UTF-8": lambda table: table.update(features=np.frombuffer(b"\xff\n", np.uint8)),
    "more names than there can be": lambda table: table.update(formats=np.frombuffer(b"\n" * 65536, np.uint8)),
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_a_malicious_manifest_is_malformed(what: str) -> None:
    manifest.parse(ID, spoiled(lambda table: None), CHUNK)
    with pytest.raises(Malformed):
        manifest.parse(ID, spoiled(MALICIOUS[what]), CHUNK)


def test_the_first_path_that_is_wrong_is_named() -> None:
    for paths, says in (((b"a", b"b//x", b"../y"), r"a path is absolute, or with an empty.*b//x"),
                        ((b"b", b"a/x", b"d/"), r"not in order, double, or a file is a directory too.*a/x")):
        with pytest.raises(Malformed, match=says):
            manifest.parse(ID, spoiled(set_paths(*paths)), CHUNK)


def test_files_without_rows_and_rows_without_files_are_malformed() -> None:
    def no_files(table: dict[str, Any]) -> None:
        for name in [name for name in table if name.startswith("file_")] + ["path_end", "paths"]:
            table[name] = table[name][:0]
    with pytest.raises(Malformed, match="rows"):
        manifest.parse(ID, spoiled(no_files), CHUNK)


def test_an_unknown_feature_is_refused_by_its_name() -> None:
    data = manifest.serialise(*rows_of({"a": b"x"}), ["telepathy"])
    with pytest.raises(Unsupported, match="telepathy"):
        manifest.parse(ID, data, CHUNK)


def test_a_column_that_is_not_known_is_ignored() -> None:
    data = spoiled(lambda table: table.update(colour=texts_column(["red"])))
    assert [file.path for file in manifest.parse(ID, data, CHUNK).files()] == ["b/x", "c", "d"]


@pytest.mark.parametrize(("name", "fits"), [
    ("a" * 255, True), ("a" * 256, False), ("ä" * 127, True), ("ä" * 128, False),
    ("/".join(["a" * 203] * 20 + ["b" * 15]), True), ("/".join(["a" * 203] * 20 + ["b" * 16]), False)])
def test_a_path_has_parts_of_255_bytes_and_at_most_4095_in_all(name: str, fits: bool) -> None:
    assert (check_path(name.encode()) is None) == fits


@given(st.data())
def test_any_flipped_or_missing_bytes_are_malformed_or_mean_something_sound(data: st.DataObject) -> None:
    raw = bytearray(manifest.serialise(*rows_of({"b/x": bytes(CHUNK) + b"1", "c": b"", "d": b"22"}), []))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)):]
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    tracemalloc.start()
    try:
        found = manifest.parse(ID, bytes(raw), CHUNK)
    except IntegrityError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20
    for file in found.files():
        assert check_path(file.path.encode()) is None
        assert sum(found.chunk_lengths[file.first_row:file.first_row + file.row_count].tolist()) == file.size
