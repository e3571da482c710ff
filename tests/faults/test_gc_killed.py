"""gc that is killed before any of its writes, with removals and repacking: nothing that is named is lost, and whoever
runs it again brings it to its end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from maintenance.care import assert_whole, gc
from transfer.pushed import CHUNK, make_repository, noise, packs, push_files, soon

from modelfs.ids import ModelRef, ObjectId
from modelfs.maintenance.removal import remove
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore

OLD = {"w": noise(2, 6 * CHUNK)}
# For each root of the directory a process of its own that runs gc, and kills itself before the write of that number.
_RUN = """
import json, os, signal, sys
from pathlib import Path
from modelfs.maintenance.gc import GcOptions, collect
from modelfs.maintenance.retention import Retention
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline
grace_s = float(sys.argv[1])
wrote = []
def count(name):
    real = getattr(FileStore, name)
    def call(self, key, *args, **kwargs):
        if len(wrote) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        wrote.append(f"{name} {key.partition('/')[0]}")
        return real(self, key, *args, **kwargs)
    setattr(FileStore, name, call)
for name in ("put", "swap", "delete"):
    count(name)
ended = []
for root in sys.argv[2:]:
    last = int(Path(root).name) if Path(root).name.isdecimal() else -1
    child = os.fork()
    if not child:
        options = GcOptions(grace_s, False, lambda: Deadline(60), 2, repack=True, retention=Retention(last=1))
        collect(Repository.open(FileStore(Path(root)), Deadline(60)), options)
        Path(root + ".wrote").write_text(json.dumps(wrote))
        os._exit(0)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""


def run(environ: dict[str, str], grace_s: float, roots: list[Path]) -> list[int]:
    """How each gc ended: of root N it is killed before its write number N."""
    done = subprocess.run([sys.executable, "-c", _RUN, str(grace_s), *map(str, roots)], capture_output=True,
                          timeout=300, check=True, env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    ended: list[int] = json.loads(done.stdout)
    return ended


def worn(root: Path) -> dict[str, dict[str, bytes]]:
    """A pack of which a third lives, in two versions; old versions without a tag; a model that was removed."""
    repository = make_repository(root)
    whole = noise(1, 24 * CHUNK)
    push_files(repository, {"w": whole}, "lab/gone")
    kept: dict[str, dict[str, bytes]] = {
        "lab/a:v2": {"w": whole[4 * CHUNK:9 * CHUNK], "config.json": b"{}"},
        "lab/b:v1": {"w": whole[6 * CHUNK:12 * CHUNK]}}
    push_files(repository, OLD, "lab/a")
    for ref, contents in kept.items():
        push_files(repository, contents, ref.partition(":")[0])
    remove(repository, ModelRef.parse("lab/gone"), soon)
    return kept


@pytest.mark.parametrize("grace_s", [0.0, 60.0])
def test_gc_killed_before_any_of_its_writes_loses_nothing_and_ends_the_next_time(
        tmp_path: Path, environ: dict[str, str], grace_s: float) -> None:
    kept = worn(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    assert run(environ, grace_s, [tmp_path / "whole"]) == [0]
    wrote = json.loads((tmp_path / "whole.wrote").read_text())
    assert {"put histories", "put packs", "swap layouts", "put indexes", "swap catalog.json"} <= set(wrote)
    assert ("delete packs" in wrote) == (not grace_s)
    # of many deletions of one kind in a row, the first two
    stages = [last for last, what in enumerate(wrote) if wrote[max(last - 2, 0):last] != [what, what]]
    roots = [tmp_path / f"{last}" for last in stages]
    for root in roots:
        shutil.copytree(tmp_path / "first", root)
    assert run(environ, grace_s, roots) == [-signal.SIGKILL] * len(roots)
    for root in roots:
        repository = Repository.open(FileStore(root), soon())
        assert_whole(repository, kept if retired(repository) else {**kept, "lab/a:v1": OLD})
    again = [root.rename(root.with_name(f"again-{root.name}")) for root in roots]
    assert run(environ, grace_s, again) == [0] * len(roots)
    for root in again:
        repository = Repository.open(FileStore(root), soon())
        assert gc(repository, repack=True).bytes_rewritten == 0
        assert_whole(repository, kept)
        assert {path.name for path in packs(root)} == {id.hex() for id in named(repository)}


def retired(repository: Repository) -> bool:
    """Whether the old version has been removed."""
    catalog = repository.catalog(soon()).catalog
    found = repository.history(catalog, ModelRef.parse("lab/a").model, soon())
    return found.removed_numbers == {1}


def named(repository: Repository) -> set[ObjectId]:
    """The packs that layouts name."""
    found: set[ObjectId] = set()
    catalog = repository.catalog(soon()).catalog
    for model in catalog.models:
        for version in repository.versions(repository.history(catalog, model, soon()), soon()):
            places = repository.layout(repository.manifest(version.manifest, soon()), soon()).places
            found |= {ObjectId(pack.tobytes()) for pack in places.packs}
    return found
