"""A version of more files and chunks than anybody wants to push: real objects, by the library's own writers.

Rule: what stands in the repository is what a push would have written, to the last index, and every byte can be read
and is right; a chunk is only much shorter than a push would have cut it.
"""

from __future__ import annotations

import hashlib
import struct
import time
from dataclasses import dataclass, replace

from blake3 import blake3

from modelfs.ids import ChunkId, Digest, ModelName, ObjectId
from modelfs.repository import index, keys, layout, manifest
from modelfs.repository.changing import swap_catalog
from modelfs.repository.history import History, Version
from modelfs.repository.index import Located
from modelfs.repository.manifest import FileEntry, content_digest
from modelfs.repository.pack import PackWriter
from modelfs.repository.repository import Repository
from modelfs.stores.store import Buffer
from modelfs.units import Deadline, KiB, rfc3339

PACK_BYTES = 8 * KiB  # 256 chunks: as many as of 64 KiB, the smallest that a repository may have, are in 16 MiB
_CHUNK = struct.Struct("<QQ16x")
_IN_DIRECTORY = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """A version that no catalog names yet, and the index of its chunks."""

    version: Version
    index: ObjectId


@dataclass(frozen=True, slots=True)
class Tree:
    """seed: another one gives other bytes in every chunk."""

    files: int
    chunks: int
    seed: int = 0

    def path(self, number: int) -> str:
        """In the order of a manifest."""
        return f"part-{number // _IN_DIRECTORY:05}/tensor-{number:07}.bin"

    def rows(self, number: int) -> range:
        """The chunks of a file."""
        return range(self.chunks * number // self.files, self.chunks * (number + 1) // self.files)

    def chunk(self, row: int) -> bytes:
        return _CHUNK.pack(self.seed, row)

    def content(self, number: int) -> bytes:
        return b"".join(map(self.chunk, self.rows(number)))


def renew() -> Deadline:
    return Deadline(600)


def write_objects(repository: Repository, tree: Tree) -> Written:
    """Packs, index, layout and manifest. A million chunks take half a minute."""
    def put(key: str, data: Buffer) -> None:
        repository.store.put(key, data, renew())

    chunks: list[Located] = []
    packs = PackWriter(PACK_BYTES)
    for row in range(tree.chunks):
        data = tree.chunk(row)
        packs.add(ChunkId.of(data), len(data), "raw", data)
        if packs.full or row == tree.chunks - 1:
            sealed, packs = packs.seal(), PackWriter(PACK_BYTES)
            put(keys.pack(sealed.id), sealed.data)
            chunks += sealed.chunks
    files = [_entry(tree, number) for number in range(tree.files)]
    body = manifest.serialise(files, [chunk.id for chunk in chunks], [chunk.length for chunk in chunks], [])
    id = ObjectId.of(body)
    put(keys.layout(id), layout.serialise(id, [chunk.place for chunk in chunks], set()))
    put(keys.manifest(id), body)
    rows = index.serialise(chunks)
    put(keys.index(ObjectId.of(rows)), rows)
    stored = tree.chunks * _CHUNK.size
    return Written(Version(1, id, content_digest(files), rfc3339(time.time()), None, None, {}, tree.files, tree.chunks,
                           stored, stored), ObjectId.of(rows))


def publish(repository: Repository, model: ModelName, written: Written) -> str:
    """It becomes the model's next version, and `latest`; its name."""
    state = repository.catalog(renew())
    before = state.catalog.models.get(model)
    rows = repository.history_at(before, model, renew()) if before else History(model)
    when = rfc3339(time.time())
    version = replace(written.version, number=rows.next, parent=rows.live_tags.get("latest"))
    text = rows.with_version(version).with_tag("latest", version.number, when).serialise()
    repository.store.put(keys.history(ObjectId.of(text)), text, renew())
    indexes = tuple(dict.fromkeys((*state.catalog.indexes, written.index)))
    swap_catalog(repository, state, state.catalog.next(when, models={**state.catalog.models, model: ObjectId.of(text)},
                                                       indexes=indexes), renew)
    return version.name


def _entry(tree: Tree, number: int) -> FileEntry:
    data, rows = tree.content(number), tree.rows(number)
    return FileEntry(tree.path(number), len(data), 1_500_000_000_000_000_000, 0o444, Digest(blake3(data).digest()),
                     hashlib.sha256(data).digest(), None, rows.start, len(rows))
