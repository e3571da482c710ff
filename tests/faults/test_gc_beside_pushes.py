"""gc beside pushes and removals, each in a process of its own: nothing that is named is lost, and every push ends well,
also where gc takes what it counted on."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from maintenance.care import assert_whole, gc
from results import Result
from servers import own_server
from transfer.pushed import (
    CHUNK,
    MODEL,
    Background,
    eventually,
    in_background,
    make_repository,
    noise,
    packs,
    push_files,
    push_tree,
    reading,
    soon,
    write,
)

from modelfs.ids import ModelName, ModelRef
from modelfs.maintenance.gc import GcReport
from modelfs.maintenance.removal import remove
from modelfs.maintenance.retention import Retention, retire
from modelfs.maintenance.tagging import move_tag
from modelfs.maintenance.verify import verify
from modelfs.repository.repository import Repository
from modelfs.transfer.push import PushReport

ROUNDS = 6
STORM_ROUNDS = int(os.environ.get("STORM_ROUNDS", "20"))
GRACE_S = 2.0


def start(environ: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "modelfs", *map(str, arguments)], text=True,
                            env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@pytest.mark.parametrize("grace", ["2s", "0s"])
def test_pushes_removals_and_gc_at_once_lose_nothing_that_is_named(tmp_path: Path, environ: dict[str, str],
                                                                   grace: str) -> None:
    """Three sources that share chunks come and go, so that packs die and come back while gc looks at them."""
    root = tmp_path / "repository"
    repository = make_repository(root)
    shared = noise(99, 6 * CHUNK)
    contents = [{"w": shared + noise(n, 4 * CHUNK), "c": bytes([n])} for n in range(3)]
    sources = [write(tmp_path / f"source{n}", files) for n, files in enumerate(contents)]
    for number in range(ROUNDS):
        running = [start(environ, "push", source, root, f"lab/m{n}", "--json", "--jobs", 1)
                   for n, source in enumerate(sources)]
        running.append(start(environ, "rm", root, f"lab/m{number % 3}", "--yes", "--json"))
        running.append(start(environ, "gc", root, "--grace", grace, "--json"))
        for process in running:
            out, err = process.communicate(timeout=60)
            assert process.returncode in (0, 3), err  # 3: a model that is not there to be removed
            assert process.returncode or json.loads(out)
    report = verify(repository, read_data=True)
    assert report.faults == ()
    catalog = repository.catalog(soon()).catalog
    with reading(root) as r:
        for n, files in enumerate(contents):
            model = ModelName("lab", f"m{n}")
            for row in repository.versions(repository.history(catalog, model, soon()), soon()) \
                    if model in catalog.models else ():
                for path, data in files.items():
                    assert r.read(r.file(path, f"{model}:{row.name}")) == data


def test_races_of_pushes_removals_tags_and_gc_lose_nothing_that_is_named(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, so that they are many: three pushes, that reuse one another's chunks and those of what is being removed,
    a removal or a tag, and a gc with a grace of seconds, which repacks every other time, and for less than it would;
    all at once, again and again.
    """
    monkeypatch.setattr("modelfs.maintenance.scatter.MEAN_RANGE_BYTES", 5 * CHUNK)
    monkeypatch.setattr("modelfs.maintenance.scatter.LEAST_LIVE", 0.9)
    repository, pick = make_repository(tmp_path / "repository"), random.Random(7)
    blocks = [noise(n, CHUNK) for n in range(48)]
    pushed: dict[str, dict[str, bytes]] = {}
    freed = copied = removed = 0
    for number in range(STORM_ROUNDS):
        races: list[Background] = []
        contents = [{"w": b"".join(pick.choices(blocks, k=pick.randrange(5, 12))), "c": b"%d %d" % (number, n)}
                    for n in range(3)]
        sources = [write(tmp_path / "sources" / f"{number}-{n}", files) for n, files in enumerate(contents)]
        begin = threading.Barrier(5)
        for n, source in enumerate(sources):
            races.append(in_background(partial(_after, begin, push_tree, source, repository, f"lab/m{n}")))
        races.append(in_background(partial(_after, begin, _remove_or_tag, repository, pick.random(), number)))
        races.append(in_background(partial(_after, begin, gc, repository, GRACE_S, repack=number % 2 == 1)))
        results = [race.result(60) for race in races]
        assert not [result for result in results if isinstance(result, Exception)], results
        for n, (report, files) in enumerate(zip(results[:3], contents, strict=True)):
            assert isinstance(report, PushReport) and report.changed
            pushed[f"lab/m{n}:{report.version}"] = files
        collected = results[-1]
        assert isinstance(collected, GcReport)
        freed, copied = freed + collected.objects_deleted, copied + collected.bytes_rewritten
        removed += bool(results[3])
        shutil.rmtree(tmp_path / "sources")
    catalog = repository.catalog(soon()).catalog
    left = {f"{model}:{row.name}" for model in catalog.models
            for row in repository.versions(repository.history(catalog, model, soon()), soon())}
    assert left <= pushed.keys()
    assert_whole(repository, {ref: pushed[ref] for ref in left})
    gc(repository, repack=True)
    assert_whole(repository, {ref: pushed[ref] for ref in left})
    figures = f"{len(pushed)} pushes, {len(left)} versions left, {freed} objects deleted, {copied} bytes copied"
    assert STORM_ROUNDS < 20 or (freed and copied and removed and len(left) < len(pushed)), figures


def _after(begin: threading.Barrier, call: Callable[..., object], *arguments: object, **options: object) -> object:
    begin.wait(30)
    return call(*arguments, **options)


def _remove_or_tag(repository: Repository, luck: float, number: int) -> int:
    """How many versions were removed: all but the newest of a model, or all of it; or a tag is moved."""
    model = ModelName("lab", f"m{number % 3}")
    catalog = repository.catalog(soon()).catalog
    if model not in catalog.models:
        return 0
    if luck < 0.15:
        return len(remove(repository, ModelRef(model), soon).versions)
    versions = repository.versions(repository.history(catalog, model, soon()), soon())
    if luck < 0.4:
        move_tag(repository, ModelRef(model, version=versions[len(versions) // 2].number), "prod", soon)
        return 0
    return len(retire(repository, Retention(last=2, models=(model,)), soon, time.time(), dry_run=False))


STOPS = ("packs/", "indexes/", "layouts/", "manifests/", "histories/", "catalog.json")


@pytest.mark.parametrize("stop", STOPS)
def test_a_push_whose_reused_chunks_are_removed_meanwhile_encodes_them_again(
        tmp_path: Path, environ: dict[str, str], modelfs: Callable[..., Result], stop: str) -> None:
    """It is held at the first upload of a kind, until rm and gc have taken what it found in the indexes, and, with
    --grace 0s, the packs that it has just put itself."""
    root, shared = tmp_path / "repository", noise(50, 40 * CHUNK)
    repository = make_repository(root)
    push_files(repository, {"w.bin": shared}, "lab/old")
    before = packs(root)
    files = {"w.bin": shared, "own.bin": noise(51, 40 * CHUNK), "c.json": b"{}"}
    source = write(tmp_path / "source", files)
    with own_server(root, writable=True) as upstream, FaultProxy(upstream=upstream) as proxy, ExitStack() as undo:
        held = proxy.add("hang", stop, methods=("PUT",), times=1)
        push = start(environ, "push", source, proxy.url, MODEL, "--json")
        undo.callback(push.kill)
        eventually(lambda: held.hits > 0 or push.poll() is not None)
        assert modelfs("rm", root, "lab/old", "--yes").code == 0
        assert modelfs("gc", root, "--grace", "0s").code == 0
        assert not set(before) & set(packs(root))
        proxy.clear()
        out, err = push.communicate(timeout=60)
    assert push.returncode == 0, err
    assert json.loads(out)["changed"]
    assert verify(repository, read_data=True).faults == ()
    with reading(root) as r:
        assert {path: r.read(r.file(path)) for path in files} == files
    assert modelfs("gc", root, "--grace", "0s").code == 0
    assert verify(repository, read_data=True).faults == ()


def test_a_push_whose_reused_chunks_are_removed_and_whose_source_has_changed_is_exit_7(
        tmp_path: Path, environ: dict[str, str], modelfs: Callable[..., Result]) -> None:
    root, shared = tmp_path / "repository", noise(50, 4 * CHUNK)
    push_files(make_repository(root), {"w.bin": shared}, "lab/old")
    source = write(tmp_path / "source", {"w.bin": shared})
    with own_server(root, writable=True) as upstream, FaultProxy(upstream=upstream) as proxy, ExitStack() as undo:
        held = proxy.add("hang", "layouts/", methods=("PUT",), times=1)
        push = start(environ, "push", source, proxy.url, MODEL, "--json")
        undo.callback(push.kill)
        eventually(lambda: held.hits > 0 or push.poll() is not None)
        assert modelfs("rm", root, "lab/old", "--yes").code == 0
        assert modelfs("gc", root, "--grace", "0s").code == 0
        (source / "w.bin").write_bytes(noise(52, 4 * CHUNK))
        proxy.clear()
        _, err = push.communicate(timeout=60)
    assert push.returncode == 7 and "w.bin" in err, err
    assert json.loads(modelfs("ls", root, "--json").out)["models"] == []
