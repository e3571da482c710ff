"""A pull gives the files that were pushed, goes on where it was, and never puts a wrong byte under a file's name."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result
from transfer.pushed import (
    CHUNK,
    MODEL,
    Reading,
    eventually,
    in_background,
    make_repository,
    noise,
    packs,
    push_tree,
    reading,
    soon,
    write,
)

from modelfs.errors import BadInput, Conflict, IntegrityError, ModelfsError, Unavailable
from modelfs.ids import ModelRef
from modelfs.repository.manifest import FileEntry
from modelfs.repository.repository import Repository
from modelfs.transfer.pull import PullReport, chosen, pull
from modelfs.units import MiB

SAME = noise(7, CHUNK) * 20
FILES = {"a/w.bin": noise(1, 30 * CHUNK + 5), "b.bin": noise(2, 20 * CHUNK), "empty": b"", "same.bin": SAME,
         **{f"config/{n}.json": noise(n, 200) for n in range(30)}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = write(tmp_path / "source", FILES)
    (made / "b.bin").chmod(0o755)
    return made


@pytest.fixture
def root(tmp_path: Path, source: Path) -> Path:
    push_tree(source, make_repository(tmp_path / "repository"))
    return tmp_path / "repository"


@pytest.fixture
def proxy(root: Path) -> Iterator[FaultProxy]:
    with FaultProxy(root) as server:
        yield server


def take(r: Reading, destination: Path, model: str = MODEL) -> PullReport:
    found = r.repository.resolve(r.repository.catalog(soon()).catalog, ModelRef.parse(model), soon())
    version = r.versions.load(found.version.manifest)
    return pull(version, range(len(version.manifest)), destination, r.fetcher, r.metrics, lambda size: None)


def under_their_names(destination: Path) -> dict[str, bytes]:
    return {str(path.relative_to(destination)): path.read_bytes() for path in destination.rglob("*")
            if path.is_file() and not path.name.endswith(".modelfs-part")}


def damage(root: Path) -> None:
    for path in packs(root):
        data = bytearray(path.read_bytes())
        if len(data) > 4 * MiB:
            data[len(data) // 2] ^= 1
            path.write_bytes(data)


def test_files_come_as_they_were_pushed(root: Path, source: Path, tmp_path: Path) -> None:
    with reading(root) as r:
        report = take(r, tmp_path / "out")
    assert under_their_names(tmp_path / "out") == FILES
    assert (report.files, report.bytes, report.resumed_bytes) == (len(FILES), sum(map(len, FILES.values())), 0)
    for path in FILES:
        then, now = (source / path).stat(), (tmp_path / "out" / path).stat()
        assert (now.st_mtime_ns, now.st_mode & 0o111) == (then.st_mtime_ns, then.st_mode & 0o111)
    assert not list((tmp_path / "out").rglob("*.modelfs-part"))


def test_what_is_there_is_not_fetched_again_but_its_mode_is_put_right(root: Path, tmp_path: Path) -> None:
    with reading(root) as r:
        take(r, tmp_path / "out")
        (tmp_path / "out" / "b.bin").chmod(0o644)
        before = r.count("chunks_fetched")
        assert take(r, tmp_path / "out").resumed_bytes == sum(map(len, FILES.values()))
        assert r.count("chunks_fetched") == before
    assert (tmp_path / "out" / "b.bin").stat().st_mode & 0o777 == 0o755


def test_a_changed_file_is_made_right(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", {"b.bin": FILES["b.bin"][:-1] + b"x", "a/w.bin": b"short"})
    with reading(root) as r:
        take(r, tmp_path / "out")
    assert under_their_names(tmp_path / "out") == FILES


def test_a_pull_goes_on_from_the_chunks_that_are_there_and_right(proxy: FaultProxy, root: Path,
                                                                 tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = max(packs(root), key=lambda path: path.stat().st_size)
    with reading(proxy.url, deadline_s=1, patient=True) as r:
        proxy.add("truncate", weights.name, after=12 * CHUNK, times=1)
        proxy.add("hang", "packs/")
        with pytest.raises(Unavailable):
            take(r, out)
    parts = list(out.rglob("*.modelfs-part"))
    assert parts
    largest = max(parts, key=lambda path: path.stat().st_blocks)
    with largest.open("r+b") as part:  # as a crash may leave it
        part.write(b"torn")
    proxy.clear()
    with reading(proxy.url) as r:
        report = take(r, out)
    assert under_their_names(out) == FILES
    assert 5 * CHUNK < report.resumed_bytes < 13 * CHUNK
    assert report.resumed_bytes + report.downloaded_bytes < sum(map(len, FILES.values())) + 10 * CHUNK


def test_no_wrong_byte_stands_under_a_name(tmp_path: Path) -> None:
    push_tree(write(tmp_path / "source", {"w.bin": noise(1, 8 * MiB)}), make_repository(tmp_path / "repository"))
    damage(tmp_path / "repository")
    for _ in range(5):  # which thread is told last differs
        with reading(tmp_path / "repository", connections=8) as r, pytest.raises(IntegrityError):
            take(r, tmp_path / "out")
        assert under_their_names(tmp_path / "out") == {}


def test_a_pull_that_met_a_bad_chunk_is_finished_once_that_is_mended(root: Path, tmp_path: Path) -> None:
    with reading(root) as r:
        file = r.file("b.bin")
        place = file.version.place(file.entry.first_row)
        assert place
    path = root / "packs" / place.pack.hex()[:2] / place.pack.hex()
    good = path.read_bytes()
    path.write_bytes(good[:place.offset] + bytes([good[place.offset] ^ 1]) + good[place.offset + 1:])
    with reading(root) as r, pytest.raises(IntegrityError):
        take(r, tmp_path / "out")
    assert "b.bin" not in under_their_names(tmp_path / "out")
    path.write_bytes(good)
    with reading(root) as r:
        take(r, tmp_path / "out")
    assert under_their_names(tmp_path / "out") == FILES


def test_a_file_that_another_pull_is_at_is_a_conflict(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", {".b.bin.modelfs-part": b""})
    with (tmp_path / "out" / ".b.bin.modelfs-part").open("r+b") as part, reading(root) as r:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another pull"):
            take(r, tmp_path / "out")
        fcntl.flock(part, fcntl.LOCK_UN)
        take(r, tmp_path / "out")
    assert under_their_names(tmp_path / "out") == FILES


def test_pulls_of_two_versions_into_one_directory_never_mix_them(root: Path, source: Path, tmp_path: Path) -> None:
    new = {**FILES, "a/w.bin": noise(8, 30 * CHUNK + 5), "b.bin": noise(9, 20 * CHUNK)}
    push_tree(write(source, new), Repository.open(make_store(root), soon()))
    for round_ in range(4):
        def one(version: str, out: Path = tmp_path / f"out{round_}") -> object:
            with reading(root) as r:
                return take(r, out, f"{MODEL}:{version}")

        for pulled in [in_background(lambda v=v: one(v)) for v in ("v1", "v2", "v1", "v2")]:
            assert isinstance(pulled.result(), PullReport | Conflict)
        for path, data in under_their_names(tmp_path / f"out{round_}").items():
            assert data in (FILES[path], new[path])


def make_store(root: Path) -> object:
    from modelfs.stores.file_store import FileStore
    return FileStore(root)


def test_long_names_that_begin_alike_have_parts_of_their_own(tmp_path: Path) -> None:
    files = {"n" * 249 + "-1.bin": noise(1, 10 * CHUNK), "n" * 249 + "-2.bin": noise(2, 10 * CHUNK),
             "é" * 127: noise(3, 100), "x": b"1", ".x.modelfs-part": b"2"}
    push_tree(write(tmp_path / "source", files), make_repository(tmp_path / "repository"))
    with reading(tmp_path / "repository") as r:
        take(r, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_more_small_files_than_descriptors_are_pulled(tmp_path: Path) -> None:
    files = {f"{n}": b"%d" % n for n in range(2000)}
    push_tree(write(tmp_path / "source", files), make_repository(tmp_path / "repository"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with FaultProxy(tmp_path / "repository") as proxy, reading(proxy.url) as r:
        proxy.add("drip_head", "packs/", piece=10, interval_s=0.05)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 320, hard))
        try:
            take(r, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert under_their_names(tmp_path / "out") == files


def test_a_full_disk_keeps_what_is_there_for_the_next_pull(root: Path, tmp_path: Path,
                                                           environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "modelfs", "pull", str(root), MODEL, str(tmp_path / "out")]
    env = {**environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    full = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, MiB)))
    assert full.returncode == 8, full.stderr
    assert "a/w.bin" not in under_their_names(tmp_path / "out")
    assert subprocess.run(command, env=env, capture_output=True, timeout=60, check=False).returncode == 0
    assert under_their_names(tmp_path / "out") == FILES


def test_a_destination_that_is_a_file_is_bad_input(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with reading(root) as r, pytest.raises(BadInput):
        take(r, tmp_path / "out")


def test_a_pull_that_is_slow_and_goes_on_passes_the_deadline(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.add("drip", "packs/", piece=2 * CHUNK, interval_s=0.05)
    with reading(proxy.url, deadline_s=0.8, connections=1, patient=True) as r:
        assert take(r, tmp_path / "out").files == len(FILES)
    assert under_their_names(tmp_path / "out") == FILES


def test_an_error_ends_a_pull_that_waits_for_room(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.add("hang", "packs/")
    with reading(proxy.url, deadline_s=3600) as r:
        pulling = in_background(lambda: take(r, tmp_path / "out"))
        eventually(lambda: proxy.requests("packs/") > 0)
        r.fetcher.fail_all(Unavailable("interrupted"))
        assert isinstance(pulling.result(), ModelfsError)


def entry(path: str) -> FileEntry:
    return FileEntry(path, 0, 0, 0o444, None, b"", None, 0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("include", "exclude", "paths"), [
    ([], [], ["a/w.bin", "b.bin", "c.json"]), (["*.bin"], [], ["a/w.bin", "b.bin"]), (["a/*"], [], ["a/w.bin"]),
    ([], ["*.bin"], ["c.json"]), (["*.bin", "c*"], ["b*"], ["a/w.bin", "c.json"]), (["*.BIN"], [], [])])
def test_globs_choose_by_path_or_last_part(include: list[str], exclude: list[str], paths: list[str]) -> None:
    files = [entry(path) for path in ("a/w.bin", "b.bin", "c.json")]
    assert [file.path for file in chosen(files, include, exclude)] == paths


def test_the_command_says_what_it_did(root: Path, modelfs: Callable[..., Result], tmp_path: Path) -> None:
    done = modelfs("pull", root, MODEL, tmp_path / "out", "--include", "*.json", "--json")
    assert done.code == 0 and '"files": 30' in done.out
    assert set(under_their_names(tmp_path / "out")) == {path for path in FILES if path.endswith(".json")}
