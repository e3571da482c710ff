"""`modelfs bench`: a store, the cache's disk and a mount measured one after another, on this machine and its settings.

Rule: what is measured is what a mount of this configuration would use, and nothing of it is left: a mount, its process
and its directories go before the caller hears of the end, of an error or of Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng  # now: while numpy.random is imported it swallows a Ctrl-C

from modelfs import paths
from modelfs.app.measured_mount import mounted
from modelfs.app.repositories import deadline_of, repository_at, store_at
from modelfs.config import Config
from modelfs.daemon import control, mountpoints
from modelfs.daemon.background import Relayed
from modelfs.errors import BadInput, Forbidden, NoSpace, NotFound, Unavailable
from modelfs.ids import ModelName, ModelRef
from modelfs.maintenance import speed
from modelfs.maintenance.bottleneck import Conditions, Limits, limits_of, limits_of_mount
from modelfs.maintenance.speed import Progress, Stage
from modelfs.repository.catalog import Catalog
from modelfs.repository.history import Version
from modelfs.repository.info import initialise
from modelfs.repository.manifest import FileEntry
from modelfs.repository.repository import Repository
from modelfs.stores.opening import is_network
from modelfs.transfer.push import PushOptions, push
from modelfs.units import Deadline, MiB, show_size

LEAST_BYTES = 16 * MiB
"""A chunk may be that large."""
GENERATED = ModelRef(ModelName("bench", "generated"))
_CHUNK_SIZE = 2 * MiB
_ROUND_TRIPS = 9
_MODELS = 32
_LEVELS, _ENTRIES = 5, 2000


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement is given. size_bytes: that it reads at most. config_file: of --config."""

    config: Config
    environ: Mapping[str, str]
    config_file: Path | None
    size_bytes: int
    progress: Progress

    def renew(self) -> Deadline:
        return deadline_of(self.config).patient()


@dataclass(frozen=True, slots=True)
class Report:
    """mount: engine, passthrough and counters of it, or None where nothing could be mounted; notes say why."""

    repository: str
    model: str | None
    version: str | None
    file: str
    network: bool
    stages: tuple[Stage, ...]
    round_trip_ms: float | None
    mount: Mapping[str, Any] | None
    limits: Limits
    notes: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        return {"repository": self.repository, "model": self.model, "version": self.version, "file": self.file,
                "network": self.network, "stages": [stage.fields() for stage in self.stages],
                "round_trip_ms": self.round_trip_ms, "mount": self.mount,
                "limits": {"cold": self.limits.cold, "warm": self.limits.warm}, "notes": list(self.notes)}


def is_mount(config: Config, place: str) -> bool:
    """Whether what a user wrote for REPO or MOUNTPOINT is a mount of ours."""
    if place in config.remotes or "://" in place:
        return False
    entry = mountpoints.mount_at(paths.canonical(Path(place)))
    return entry is not None and entry.ours


def bench_machine(bench: Bench) -> Report:
    """A generated model in a temporary repository: codec, hash, disk and kernel of this machine. Raises NoSpace."""
    bench.progress.total(9 * bench.size_bytes)
    with _work(bench, 3 * bench.size_bytes, bench.size_bytes) as work:
        source, place = work / "source", work / "repository"
        source.mkdir()
        bench.progress.note("generating")
        _generate(source / "model.safetensors", bench)
        repository_spec = str(place)
        initialise(store_at(bench.config, repository_spec), _CHUNK_SIZE, time.time(), deadline_of(bench.config))
        bench.progress.note("push")
        began = time.perf_counter()
        pushed = push(source, repository_at(bench.config, repository_spec), GENERATED,
                      PushOptions(work / "state", lambda: deadline_of(bench.config)))
        stage = Stage("push", "encoded, hashed and written, all cores", pushed.decoded_bytes,
                      time.perf_counter() - began)
        bench.progress.advance(pushed.decoded_bytes)
        shutil.rmtree(source)
        found = _bench_version(bench, repository_spec, GENERATED, work)
    return replace(found, stages=(stage, *found.stages), notes=(
        "a generated model in a temporary directory: no network was in this", *found.notes))


def bench_repository(bench: Bench, spec: str, model: ModelRef | None) -> Report:
    """model: None stands for the largest of what the first 32 models of the catalog have as their newest version.

    Raises NotFound, NoSpace, and what a store raises.
    """
    bench.progress.total(7 * bench.size_bytes)
    return _bench_version(bench, spec, model, None)


def bench_mount(bench: Bench, mountpoint: Path, path: str | None) -> Report:
    """A file of a mount that is there, read twice; path: None stands for the largest within a few levels.

    Raises NotFound, BadInput, Unavailable.
    """
    place = paths.canonical(mountpoint)
    bench.progress.total(2 * bench.size_bytes)
    before = _status(place, bench)
    file, whole = speed.apart(lambda: _file_in(place, path))
    if not whole:
        raise NotFound("nothing to read", where=str(file), why="the file is empty")
    cache = Path(before["cache"]["directory"])
    reads, states = [], [before]
    for number in ("first", "second"):
        bench.progress.note(f"{number} read")
        speed.drop_cached_pages(cache, whole)
        size, seconds = speed.apart(lambda: speed.read_cold_s(file, bench.size_bytes, bench.progress.advance))
        reads.append(Stage(f"mount_{number}", f"{number} read through the mount", size, seconds))
        states.append(_status(place, bench))
    deltas = {name: _difference(one, other) for name, one, other in zip(
        ("first", "second"), states, states[1:], strict=False)}
    config = bench.config
    at = Conditions(config.fetch.connections, os.cpu_count() or 1, is_network(before["repository"]), 1.0,
                    config.mount.engine, config.cache.verify, before["engine"],
                    deltas["second"]["passthrough_opens"] > 0, _missed(deltas["second"]))
    limits = limits_of_mount(reads[0], reads[1], deltas["first"]["bytes_fetched"], _missed(deltas["first"]), at)
    notes = () if limits.cold else ("the first read found the file in the cache: no cold read was measured",)
    return Report(before["repository"], None, None, str(file.relative_to(place)), at.network, tuple(reads), None,
                  _mount_fields(before, deltas), limits, notes)


def _bench_version(bench: Bench, spec: str, model: ModelRef | None, work: Path | None) -> Report:
    """work: a directory with room, or None where one is to be made for the mount alone."""
    config, progress = bench.config, bench.progress
    found = speed.apart(lambda: _found(bench, spec, model))
    repository, version, entry, wanted = found.repository, found.version, found.entry, found.wanted
    decoded = sum(each.ref.length for each in wanted)
    stored = sum(each.place.length for each in wanted)
    notes: list[str] = []
    with _private(config.cache.directory):
        _check_room(bench, config.cache.directory, decoded, decoded)
        progress.note("store")
        trip_s = speed.apart(lambda: speed.round_trip_s(repository.store, bench.renew, _ROUND_TRIPS))
        kept, ranges = speed.Kept(), speed.ranges_of(wanted, config.fetch.connections)
        alone = max(ranges, key=lambda each: each.length)
        others = [each for each in ranges if each is not alone] or ranges
        connections = min(config.fetch.connections, len(others))
        one_s = speed.fetch_s(repository.store, [alone], 1, bench.renew, kept, progress.advance)
        all_s = speed.fetch_s(repository.store, others, connections, bench.renew, kept, progress.advance)
        progress.note("decode, check")
        opened, decode_s, check_s = speed.decode_and_check_s(kept, progress.advance)
        kept.chunks.clear()
        progress.note("cache disk")
        write_s, read_s = speed.apart(lambda: speed.disk_s(config.cache.directory, decoded, progress.advance))
        stages = [
            Stage("store_one", f"stored bytes, 1 connection, ranges up to {show_size(speed.RANGE_BYTES)}",
                  alone.length, one_s),
            Stage("store", f"stored bytes, {connections} connection{'s' * (connections != 1)}",
                  sum(each.length for each in others), all_s),
            Stage("decode", "decoded bytes, one core", opened, decode_s),
            Stage("check", "BLAKE3 of decoded bytes, one core", opened, check_s),
            Stage("disk_write", f"a file in {config.cache.directory}, until the disk has it", decoded, write_s),
            Stage("disk_read", "the same file, not from memory", decoded, read_s)]
        at = Conditions(connections, os.cpu_count() or 1, is_network(repository.store.url), stored / decoded,
                        config.mount.engine, config.cache.verify)
        mount = None
        taken = min(entry.size, bench.size_bytes + config.fetch.readahead_bytes)
        try:
            with _work(bench, taken, taken) if work is None else nullcontext(work) as place:
                reads, mount, at = _bench_own_mount(bench, spec, f"{found.model}:{version.name}", entry, place, at)
            stages += reads
        except Relayed as error:  # the store was just measured, so it is this machine: the other figures stand
            notes.append(f"nothing was mounted: {error}")
    return Report(repository.store.url, str(found.model), version.name, entry.path, at.network, tuple(stages),
                  round(trip_s * 1000, 3), mount, limits_of({stage.name: stage for stage in stages}, at), tuple(notes))


def _bench_own_mount(bench: Bench, spec: str, model: str, entry: FileEntry, work: Path,
                     at: Conditions) -> tuple[list[Stage], Mapping[str, Any], Conditions]:
    progress = bench.progress
    place, cache = work / "mnt", work / "cache"
    place.mkdir()
    room = 2 * bench.size_bytes + bench.config.fetch.readahead_bytes + 64 * MiB
    arguments = [*([f"--config={bench.config_file}"] if bench.config_file else []), f"--model={model}",
                 f"--cache-dir={cache}", f"--cache-size={room}", "--", spec, str(place)]
    progress.note("mounting")
    environ = {**bench.environ, "XDG_STATE_HOME": str(work / "state")}  # what it has seen is nobody's business
    stages, states = [], []
    with mounted(arguments, place, environ, work / "mount.log"):
        states.append(_status(place, bench))
        for name, what in (("cold", "nothing cached"), ("warm", "from the cache's disk")):
            progress.note(f"{name} read")
            size, seconds = speed.apart(lambda: speed.read_cold_s(place / entry.path, bench.size_bytes,
                                                                  progress.advance))
            stages.append(Stage(f"mount_{name}", f"{name} read through a mount, {what}", size, seconds))
            states.append(_status(place, bench))
            speed.drop_cached_pages(cache, entry.size)
    deltas = {name: _difference(one, other) for name, one, other in zip(
        ("cold", "warm"), states, states[1:], strict=False)}
    return stages, _mount_fields(states[0], deltas), replace(
        at, mounted_by=states[0]["engine"], passthrough=deltas["warm"]["passthrough_opens"] > 0,
        missed=_missed(deltas["warm"]))


@dataclass(slots=True)
class _Largest:
    """The largest file met so far, and how many entries may still be looked at."""

    path: Path | None = None
    size: int = 0
    left: int = field(default=_ENTRIES)

    def look(self, directory: Path, levels: int) -> None:
        inside = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if not self.left:
                    return
                self.left -= 1
                if entry.is_dir(follow_symlinks=False):
                    inside.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size > self.size:
                    self.path, self.size = Path(entry.path), entry.stat(follow_symlinks=False).st_size
        for each in inside if levels else ():
            self.look(each, levels - 1)


def _file_in(mountpoint: Path, path: str | None) -> tuple[Path, int]:
    """A file of the mount and its size. Only for a thread that may hang with the mount."""
    try:
        if path is None:
            largest = _Largest()
            largest.look(mountpoint, _LEVELS)
            if largest.path is None:
                raise NotFound("no file to read", where=str(mountpoint))
            return largest.path, largest.size
        file = (mountpoint / path).resolve(strict=True)
        if not file.is_relative_to(mountpoint) or not file.is_file():
            raise BadInput("no file of the mount", where=str(file))
        return file, file.stat().st_size
    except FileNotFoundError as error:
        raise NotFound("no such file in the mount", where=str(mountpoint / (path or ""))) from error
    except OSError as error:
        raise Unavailable("the mount does not answer", where=str(mountpoint),
                          why=error.strerror or str(error)) from error


@dataclass(frozen=True, slots=True)
class _Found:
    """entry: the version's largest file; wanted: its chunks, as far as they are measured."""

    repository: Repository
    model: ModelName
    version: Version
    entry: FileEntry
    wanted: Sequence[speed.Wanted]


def _found(bench: Bench, spec: str, model: ModelRef | None) -> _Found:
    repository = repository_at(bench.config, spec)
    catalog = repository.catalog(bench.renew()).catalog
    ref = model or _largest_model(repository, catalog, bench)
    version = repository.resolve(catalog, ref, bench.renew()).version
    manifest = repository.manifest(version.manifest, bench.renew())
    entry = max(manifest.files(), key=lambda file: file.size, default=None)
    if entry is None or not entry.size:
        raise NotFound("nothing to read", where=f"{ref.model} {version.name}", why="its files are empty")
    layout = repository.layout(manifest, bench.renew())
    return _Found(repository, ref.model, version, entry, speed.wanted_of(manifest, layout, entry, bench.size_bytes))


def _largest_model(repository: Repository, catalog: Catalog, bench: Bench) -> ModelRef:
    newest = [(name, rows.versions[-1]) for name in list(catalog.models)[:_MODELS]
              if (rows := repository.history(catalog, name, bench.renew())).versions]
    if not newest:
        raise NotFound("no model to measure", where=repository.store.url, advice="Push one first.")
    name, version = max(newest, key=lambda found: found[1].decoded_bytes)
    return ModelRef(name, version=version.number)


def _generate(path: Path, bench: Bench) -> None:
    """A safetensors file of one bf16 tensor, N(0, 0.02), always the same for the same size."""
    random = default_rng(1)
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [bench.size_bytes // 2 - 64],
                                    "data_offsets": [0, 2 * (bench.size_bytes // 2 - 64)]}}).encode().ljust(120)
    left = bench.size_bytes // 2 - 64
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        while left:
            numbers = random.standard_normal(min(left, 2 * MiB), dtype=np.float32) * np.float32(0.02)
            file.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            left -= len(numbers)
            bench.progress.advance(2 * len(numbers))


def _status(place: Path, bench: Bench) -> dict[str, Any]:
    try:
        return control.ask(paths.socket_path(place, bench.environ), {"op": "status"}).fields
    except control.NoDaemon as error:
        raise NotFound("the mount has no daemon", where=str(place), why="it died, or is another user's",
                       advice=f"`modelfs umount {place}` takes it away.") from error


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(count) - int(before["counters"][name]) for name, count in after["counters"].items()}


def _missed(counted: Mapping[str, int]) -> float:
    """The part of a read's requests that the cache could not answer; under passthrough there are none."""
    return counted["cache_misses"] / max(1, counted["cache_hits"] + counted["cache_misses"])


def _mount_fields(status: Mapping[str, Any], deltas: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    return {"mountpoint": status["mountpoint"], "engine": status["engine"], "passthrough": status["passthrough"],
            "counters": deltas}


@contextmanager
def _private(directory: Path) -> Iterator[None]:
    """The cache's directory; one that was not there goes again. Raises Forbidden."""
    new = not directory.exists()
    paths.make_private(directory)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # a mount may have begun to use it
                directory.rmdir()


@contextmanager
def _work(bench: Bench, needed: int, cached: int) -> Iterator[Path]:
    """A directory on the cache's disk, beside it: in it where that is a disk of its own, or we may not write beside.

    needed, cached: as in _check_room. Raises NoSpace, Forbidden.
    """
    directory = bench.config.cache.directory
    with _private(directory):
        beside = directory.parent
        if beside.stat().st_dev != directory.stat().st_dev or not os.access(beside, os.W_OK | os.X_OK):
            beside = directory
        _check_room(bench, beside, needed, cached)
        with tempfile.TemporaryDirectory(prefix="modelfs-bench-", dir=beside) as work:
            yield Path(work)


def _check_room(bench: Bench, directory: Path, needed: int, cached: int) -> None:
    """needed: bytes in directory at once; cached: of them in a cache. Raises NoSpace with both sizes, Forbidden."""
    if not os.access(directory, os.W_OK | os.X_OK):
        raise Forbidden("cannot write", where=str(directory), advice="Name another cache.directory.")
    disk = os.statvfs(directory)
    total = disk.f_blocks * disk.f_frsize
    cache = bench.config.cache
    free = max(0, disk.f_bavail * disk.f_frsize - cache.min_free.of(total))
    for size, room, why in ((needed, free, f"free of it beside cache.min_free ({cache.min_free})"),
                            (cached, cache.size.of(total), f"cache.size ({cache.size})")):
        if size > room:
            raise NoSpace("no room to measure in", where=str(directory),
                          why=f"it takes {show_size(size)}, {show_size(room)} is {why}",
                          advice="Give a smaller --size, or the cache more room.")
