"""gc beside pushes and removals, each in a process of its own: nothing that is named is lost, and every push ends well,
also where gc takes what it counted on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result
from servers import own_server
from transfer.pushed import CHUNK, MODEL, eventually, make_repository, noise, packs, push_files, reading, soon, write

from modelfs.ids import ModelName
from modelfs.maintenance.verify import verify

ROUNDS = 6


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
