"""Fine-tunes stored as differences to what they were made from: smaller, and read like anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from faultproxy import FaultProxy
from numpy.typing import NDArray
from reading.test_mirrors import mirrored
from transfer.pushed import (
    CHUNK,
    eventually,
    make_repository,
    packs,
    push_tree,
    reading,
    repository_root,
    soon,
    write,
)

from modelfs.cache.cache import Cache
from modelfs.errors import CorruptChunk, IntegrityError, Unavailable
from modelfs.ids import ModelRef
from modelfs.metrics import Metrics
from modelfs.repository.layout import Layout
from modelfs.repository.repository import Repository
from modelfs.transfer.push import PushReport
from modelfs.units import DiskShare, MiB

ELEMENTS = 8 * CHUNK // 2
rng = np.random.default_rng(7)


def bf16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype("<u4") << 16).view("<f4")


def moved(bits: NDArray[np.uint16], sigma: float) -> NDArray[np.uint16]:
    return bf16(values(bits) * (1 + rng.normal(0, sigma, len(bits))))


def safetensors(tensors: Mapping[str, NDArray[np.uint16]]) -> bytes:
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [len(data)], "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data.tobytes() for data in tensors.values())


WEIGHTS = bf16(rng.normal(0, 0.02, ELEMENTS))
TUNED = moved(WEIGHTS, 1e-2)
BASE = safetensors({"w": WEIGHTS})


def push(repository: Repository, data: bytes, model: str = "lab/model", **options: object) -> PushReport:
    parent = repository_root(repository).parent
    source = write(parent / f"source-{len(list(parent.iterdir()))}", {"model.safetensors": data})
    return push_tree(source, repository, model, **options)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path / "repository")
    push(made, BASE)
    return made


def read(spec: str | Path, model: str = "lab/model", cache: Cache | None = None) -> bytes:
    with reading(spec, cache) as r:
        return r.read(r.file("model.safetensors", model))


def layout_of(repository: Repository, model: str = "lab/model") -> Layout:
    catalog = repository.catalog(soon()).catalog
    found = repository.manifest(repository.resolve(catalog, ModelRef.parse(model), soon()).version.manifest, soon())
    return repository.layout(found, soon())


@pytest.mark.parametrize(("sigma", "most"), [(1e-2, 0.26), (3e-2, 0.37)])
def test_weights_that_moved_a_little_are_stored_in_a_fraction(repository: Repository, sigma: float,
                                                              most: float) -> None:
    tuned = safetensors({"w": moved(WEIGHTS, sigma)})
    report = push(repository, tuned, differences=True)
    assert report.difference_chunks == 8
    assert report.stored_bytes < most * len(tuned)
    assert read(repository_root(repository)) == tuned


def test_without_being_asked_nothing_is_a_difference(repository: Repository) -> None:
    assert push(repository, safetensors({"w": TUNED})).difference_chunks == 0


def test_what_is_not_alike_is_stored_whole(repository: Repository) -> None:
    noise = bf16(rng.normal(0, 0.02, ELEMENTS))
    assert push(repository, safetensors({"w": noise}), differences=True).difference_chunks == 0
    assert push(repository, safetensors({"other": TUNED}), "lab/new", differences=True,
                base=ModelRef.parse("lab/model:v1")).difference_chunks == 0


def test_a_tensor_is_found_by_its_name_in_another_model_and_at_another_offset(repository: Repository) -> None:
    tuned = safetensors({"before": bf16(rng.normal(0, 1, 4 * CHUNK)), "w": TUNED})
    report = push(repository, tuned, "lab/tuned", differences=True, base=ModelRef.parse("lab/model"))
    assert report.difference_chunks == 8
    assert read(repository_root(repository), "lab/tuned") == tuned


def test_a_difference_to_a_difference_is_one_to_its_base(repository: Repository) -> None:
    push(repository, safetensors({"w": TUNED}), differences=True)
    again = safetensors({"w": moved(TUNED, 1e-2)})
    assert push(repository, again, differences=True).difference_chunks == 8
    layout = layout_of(repository)
    bases = [place.base for row in range(len(layout.row_place)) if (place := layout.place(row)).base]
    assert len(bases) == 8 and all(base.place.base is None for base in bases)
    assert read(repository_root(repository)) == again


def test_a_base_that_the_cache_has_is_not_fetched(repository: Repository, tmp_path: Path) -> None:
    tuned = safetensors({"w": TUNED})
    push(repository, tuned, differences=True)
    cache = Cache(tmp_path / "cache", DiskShare(size_bytes=256 * MiB), DiskShare(size_bytes=0), Metrics())
    try:
        with reading(repository_root(repository), cache) as r:
            file = r.file("model.safetensors", "lab/model:v1")
            assert r.read(file) == BASE
            eventually(lambda: file.cached_bytes() == len(BASE))
            before = r.count("bytes_fetched")
            assert r.read(r.file("model.safetensors", "lab/model:v2")) == tuned
            assert r.count("bytes_fetched") - before < 0.26 * len(tuned)
    finally:
        cache.close()


def test_bases_come_beside_and_once(repository: Repository) -> None:
    tuned = safetensors({"w": TUNED})
    stored = push(repository, tuned, differences=True).stored_bytes
    whole = layout_of(repository, "lab/model:v1").stored_bytes()
    with FaultProxy(repository_root(repository)) as server, reading(server.url) as r:
        file = r.file("model.safetensors")
        assert r.read(file) == tuned
        assert r.count("chunks_fetched") <= 9 + 8
        assert server.bytes_sent("packs/") < 1.1 * (stored + whole)


def spoil(repository: Repository, model: str, row: int) -> None:
    """A byte of the chunk, where it lies."""
    place = layout_of(repository, model).place(row)
    path = next(path for path in packs(repository_root(repository)) if path.name == place.pack.hex())
    with path.open("r+b") as file:
        file.seek(place.offset + place.length - 1)
        last = file.read(1)
        file.seek(place.offset + place.length - 1)
        file.write(bytes([last[0] ^ 1]))


def test_a_base_that_is_damaged_is_an_error_that_names_it_and_the_neighbours_are_read(repository: Repository) -> None:
    tuned = safetensors({"w": TUNED})
    push(repository, tuned, differences=True)
    spoil(repository, "lab/model:v1", 3)
    with reading(repository_root(repository)) as r:
        file = r.file("model.safetensors")
        id = layout_of(repository).place(3).base.id
        offset = int(file.offsets[3])
        with pytest.raises(CorruptChunk, match=id.hex()[:16]):
            r.read(file, offset, 100)
        assert r.read(file, 0, offset) == tuned[:offset]
        assert r.read(file, int(file.offsets[4])) == tuned[int(file.offsets[4]):]


def test_a_difference_that_is_damaged_is_an_error(repository: Repository) -> None:
    push(repository, safetensors({"w": TUNED}), differences=True)
    spoil(repository, "lab/model:v2", 2)
    with reading(repository_root(repository)) as r, pytest.raises(CorruptChunk):
        r.read(r.file("model.safetensors"))


def test_a_base_whose_pack_is_gone_is_an_error_that_says_so(repository: Repository) -> None:
    push(repository, safetensors({"w": TUNED}), differences=True)
    gone = layout_of(repository, "lab/model:v1").place(3).pack
    next(path for path in packs(repository_root(repository)) if path.name == gone.hex()).unlink()
    with reading(repository_root(repository)) as r, pytest.raises(IntegrityError, match=gone.hex()[:16]):
        r.read(r.file("model.safetensors"))


def test_a_push_whose_base_is_damaged_stores_it_whole(repository: Repository) -> None:
    spoil(repository, "lab/model:v1", 3)
    tuned = safetensors({"w": TUNED})
    assert push(repository, tuned, differences=True).difference_chunks == 7
    assert read(repository_root(repository)) == tuned


@pytest.mark.parametrize("connections", [1, 4])
def test_a_base_that_one_mirror_lacks_comes_from_the_next(repository: Repository, tmp_path: Path,
                                                          connections: int) -> None:
    tuned = safetensors({"w": TUNED})
    push(repository, tuned, differences=True)
    root = repository_root(repository)
    other = Path(shutil.copytree(root, tmp_path / "other"))
    gone = layout_of(repository, "lab/model:v1").place(3).pack
    next(path for path in packs(root) if path.name == gone.hex()).unlink()
    with FaultProxy(root) as first, FaultProxy(other) as second, \
            mirrored(first, second, connections=connections) as r:
        assert r.read(r.file("model.safetensors")) == tuned
        assert r.count("failovers") >= 1


def test_one_connection_and_little_memory_are_enough(repository: Repository) -> None:
    tuned = safetensors({"w": TUNED})
    push(repository, tuned, differences=True)
    with reading(repository_root(repository), connections=1, memory_bytes=CHUNK, readahead_bytes=MiB) as r:
        assert r.read(r.file("model.safetensors")) == tuned


def test_a_stalled_base_ends_the_read_at_the_deadline(repository: Repository) -> None:
    push(repository, safetensors({"w": TUNED}), differences=True)
    base = layout_of(repository, "lab/model:v1").place(3).pack
    with FaultProxy(repository_root(repository)) as server, reading(server.url, deadline_s=1) as r:
        file = r.file("model.safetensors")
        server.add("hang", base.hex())
        with pytest.raises(Unavailable):
            r.read(file)
