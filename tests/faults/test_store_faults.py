"""Every way in which a store on the wire can misbehave, while a file is read and while a version is pulled.

Rule: what passes within the deadline is never seen; what does not is an error of the right kind, never a wrong byte
and never a hang; and once the store is well again, so are the reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from transfer.pushed import (
    CHUNK,
    MODEL,
    Reading,
    eventually,
    in_background,
    make_repository,
    noise,
    push_files,
    reading,
    soon,
)

from modelfs.cache.cache import Cache
from modelfs.errors import Forbidden, IntegrityError, ModelfsError, Unavailable
from modelfs.ids import ModelRef
from modelfs.metrics import Metrics
from modelfs.reading import failures
from modelfs.transfer.pull import pull
from modelfs.units import DiskShare, MiB

DATA = noise(1, 30 * CHUNK + 77)
FILES = {"w.bin": DATA, "config.json": b'{"a": 1}'}


@dataclass(frozen=True)
class Fault:
    kind: str
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.kind, *(str(value) for value in self.options.values())])


PASSING = [Fault("reset", {"after": 3 * CHUNK}), Fault("reset"), Fault("truncate", {"after": 100}),
           Fault("stall", {"after": 2 * CHUNK}), Fault("hang"), Fault("wrong_range"), Fault("short_range"),
           Fault("status", {"code": 500}), Fault("status", {"code": 503, "retry_after": "1"}),
           Fault("status", {"code": 429}), Fault("flip", {"offset": 1000}), Fault("encoding"), Fault("huge_head"),
           Fault("drip_head", {"piece": 1, "interval_s": 0.2})]
HARMLESS = [Fault("ignore_range"), Fault("unsized"), Fault("drip", {"piece": CHUNK, "interval_s": 0.01})]
LASTING = [(Fault("reset", {"after": 10}), Unavailable), (Fault("truncate", {"after": 10}), Unavailable),
           (Fault("stall", {"after": 10}), Unavailable), (Fault("hang"), Unavailable),
           (Fault("wrong_range"), Unavailable), (Fault("short_range"), Unavailable),
           (Fault("status", {"code": 500}), Unavailable),
           (Fault("status", {"code": 503, "retry_after": "3600"}), Unavailable),
           (Fault("status", {"code": 403}), Forbidden), (Fault("status", {"code": 404}), IntegrityError),
           (Fault("status", {"code": 416}), IntegrityError), (Fault("flip", {"offset": 100}), IntegrityError),
           (Fault("encoding"), Unavailable), (Fault("drip", {"piece": 1, "interval_s": 0.1}), Unavailable),
           (Fault("drip_head", {"piece": 1, "interval_s": 0.1}), Unavailable)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("faults")
    push_files(make_repository(directory / "repository"), FILES)
    return directory / "repository"


@pytest.fixture
def proxy(root: Path) -> Iterator[FaultProxy]:
    with FaultProxy(root) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache", DiskShare(size_bytes=64 * MiB), DiskShare(size_bytes=0), Metrics())
    yield made
    made.close()


def pulled(r: Reading, destination: Path) -> object:
    found = r.repository.resolve(r.repository.catalog(soon()).catalog, ModelRef.parse(MODEL), soon())
    version = r.versions.load(found.version.manifest)
    return pull(version, range(len(version.manifest)), destination, r.fetcher, r.metrics, lambda size: None)


def names(destination: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in destination.glob("*") if not path.name.startswith(".")}


@pytest.mark.parametrize("fault", [*PASSING, *HARMLESS], ids=str)
def test_a_fault_that_passes_is_not_seen_by_a_reader(proxy: FaultProxy, fault: Fault) -> None:
    rule = proxy.add(fault.kind, "packs/", times=None if fault in HARMLESS else 1, **fault.options)
    with reading(proxy.url, deadline_s=3) as r:
        file = r.file("w.bin")
        waiting = in_background(lambda: r.read(file))
        eventually(lambda: rule.hits > 0)
        if fault.kind in ("stall", "hang", "drip_head"):  # a connection that dies, as the network would have it
            eventually(lambda: proxy.clear() or bool(waiting.results))
        assert waiting.result() == DATA


@pytest.mark.parametrize("fault", [PASSING[0], PASSING[2], PASSING[7], PASSING[8], PASSING[10], HARMLESS[0]], ids=str)
def test_a_fault_that_passes_is_not_seen_by_a_pull(proxy: FaultProxy, tmp_path: Path, fault: Fault) -> None:
    proxy.add(fault.kind, "packs/", times=None if fault in HARMLESS else 2, **fault.options)
    with reading(proxy.url, deadline_s=3, patient=True) as r:
        assert in_background(lambda: pulled(r, tmp_path / "out")).result()
    assert names(tmp_path / "out") == FILES


@pytest.mark.parametrize(("fault", "error"), LASTING, ids=str)
def test_a_fault_that_lasts_is_an_error_in_time_and_is_over_when_it_is(proxy: FaultProxy, cache: Cache, fault: Fault,
                                                                      error: type[ModelfsError],
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "REMEMBER_FAILURE_S", 0.2)  # test_fetcher.py has the memory itself
    with reading(proxy.url, cache, deadline_s=1, connections=2) as r:
        file, small = r.file("w.bin"), r.file("config.json")
        assert r.read(small) == FILES["config.json"]
        eventually(lambda: small.cached_bytes() == len(FILES["config.json"]))
        rule = proxy.add(fault.kind, "packs/", **fault.options)
        readers = [in_background(lambda n=n: r.read(file, n * CHUNK, 10)) for n in range(0, 30, 3)]
        first = in_background(lambda: r.read(file, 0, 10))
        assert in_background(lambda: r.read(small)).result() == FILES["config.json"]
        assert isinstance(first.result(20), error)
        hits = rule.hits
        again = in_background(lambda: r.read(file, 0, 10))  # the kernel, after a failed read-ahead
        assert isinstance(again.result(20), error)
        # a fault at a fixed offset of the answer spoils the first chunk of each
        allowed = (error, bytes) if fault.kind == "flip" else (error,)
        assert all(isinstance(one.result(20), allowed) for one in readers)
        assert r.count("errors") >= 2 and hits
        proxy.clear()
        eventually(lambda: in_background(lambda: r.read(file)).result() == DATA)


@pytest.mark.parametrize(("fault", "error"), LASTING, ids=str)
def test_a_pull_ends_with_the_error_and_nothing_half_and_the_next_goes_on(proxy: FaultProxy, tmp_path: Path,
                                                                         fault: Fault,
                                                                         error: type[ModelfsError]) -> None:
    with reading(proxy.url, deadline_s=1, patient=True) as r:
        proxy.add(fault.kind, "packs/", **fault.options)
        assert isinstance(in_background(lambda: pulled(r, tmp_path / "out")).result(20), error)
        assert names(tmp_path / "out").items() <= FILES.items()
        assert "w.bin" not in names(tmp_path / "out")
    proxy.clear()
    with reading(proxy.url, deadline_s=5, patient=True) as r:
        pulled(r, tmp_path / "out")
    assert names(tmp_path / "out") == FILES


def test_a_store_that_comes_back_within_the_deadline_was_never_away(proxy: FaultProxy) -> None:
    with reading(proxy.url, deadline_s=15) as r:
        file = r.file("w.bin")
        proxy.down()
        waiting = [in_background(lambda n=n: r.read(file, n * CHUNK, 10)) for n in range(6)]
        eventually(lambda: r.count("fetch_retries") > 0)
        proxy.up()
        assert [one.result() for one in waiting] == [DATA[n * CHUNK:n * CHUNK + 10] for n in range(6)]


def test_an_uncached_read_from_a_dead_store_names_the_file_and_a_cached_one_is_served(proxy: FaultProxy,
                                                                                     cache: Cache) -> None:
    with reading(proxy.url, cache, deadline_s=1) as r:
        file = r.file("w.bin")
        assert r.read(file, 0, CHUNK) == DATA[:CHUNK]
        proxy.down()
        with pytest.raises(Unavailable):
            r.read(file, 10 * CHUNK, 10)
        assert r.read(file, 0, CHUNK) == DATA[:CHUNK]


def test_manifests_and_layouts_that_fail_once_are_asked_again(proxy: FaultProxy) -> None:
    for match in ("manifests/", "layouts/", "histories/", "catalog"):
        proxy.add("reset", match, times=1)
        proxy.add("truncate", match, times=1, after=5)
    with reading(proxy.url, deadline_s=5) as r:
        assert r.read(r.file("w.bin")) == DATA


def test_a_manifest_with_a_flipped_bit_on_the_wire_is_asked_for_again(proxy: FaultProxy) -> None:
    proxy.add("flip", "manifests/", times=1, offset=50)
    with reading(proxy.url, deadline_s=5) as r:
        assert r.read(r.file("w.bin")) == DATA
