"""The golden repository of format 1, made by the first modelfs that wrote it: every later one reads all of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from repository.builder import deadline

from modelfs.errors import NotFound
from modelfs.ids import Digest, ModelName, ModelRef
from modelfs.maintenance.inspect import inspect
from modelfs.maintenance.repair import repair
from modelfs.maintenance.verify import verify
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore

GOLDEN = Path(__file__).parents[1] / "golden"
CODECS = {"raw", "lz4", "zstd", "planes2-lz4", "planes2-zstd", "planes4-lz4", "planes4-zstd"}
VERSIONS: dict[str, dict[str, tuple[int, str]]] = json.loads((GOLDEN / "v1.json").read_text())


@pytest.fixture
def repository() -> Repository:
    return Repository.open(FileStore(GOLDEN / "v1"), deadline())


@pytest.mark.parametrize("ref", VERSIONS)
def test_every_byte_of_a_version_is_what_was_pushed(repository: Repository, ref: str) -> None:
    catalog = repository.catalog(deadline()).catalog
    version = repository.resolve(catalog, ModelRef.parse(ref), deadline()).version
    found = repository.manifest(version.manifest, deadline())
    at = repository.layout(found, deadline())
    assert {file.path: (file.size, file.sha256.hex()) for file in found.files()} == {
        path: tuple(of) for path, of in VERSIONS[ref].items()}
    for file in found.files():
        data = b"".join(repository.read_chunk(found, at, row, deadline())
                        for row in range(file.first_row, file.first_row + file.row_count))
        assert (hashlib.sha256(data).digest(), Digest.of(data)) == (file.sha256, file.digest)
        assert file.mode == (0o555 if file.path.endswith(".sh") else 0o444)
        assert file.mtime_ns == 1_767_225_600_123_456_789


def test_it_has_every_format_and_every_codec_of_the_first_modelfs(repository: Repository) -> None:
    found = inspect(repository, ModelRef.parse("golden/mixed:v1"), None, deadline_s=60)
    assert {file.entry.format for file in found.files} == {"safetensors", "gguf", "torch", "npy", "npz", None}
    assert all(file.tensors for file in found.files if file.entry.format)
    catalog = repository.catalog(deadline()).catalog
    stored = {row.place.codec for index in repository.indexes(catalog, deadline()) for row in index.all()}
    assert stored == CODECS


def test_tags_tombstones_and_numbers_are_what_was_left(repository: Repository) -> None:
    catalog = repository.catalog(deadline()).catalog
    mixed = repository.history(catalog, ModelName("golden", "mixed"), deadline())
    assert (mixed.live_tags, mixed.next, mixed.removed_numbers) == ({"latest": 3, "prod": 1}, 4, {2})
    assert [version.number for version in repository.versions(mixed, deadline())] == [3, 1]
    gone = ModelName("golden", "gone")
    with pytest.raises(NotFound):
        repository.history(catalog, gone, deadline())
    assert repository.history_at(catalog.removed[gone], gone, deadline()).next == 2


def test_it_is_sound_and_can_be_repaired(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v1", tmp_path / "v1")
    repository = Repository.open(FileStore(tmp_path / "v1"), deadline())
    report = verify(repository, read_data=True)
    assert (report.faults, report.versions) == ((), len(VERSIONS))
    for kind in ("layouts", "indexes"):
        shutil.rmtree(tmp_path / "v1" / kind)
    repair(repository, now=0)
    assert verify(repository, read_data=True).ok
