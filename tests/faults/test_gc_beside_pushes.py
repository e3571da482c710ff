"""gc with a short grace beside pushes and removals, each in a process of its own: nothing that is named is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from transfer.pushed import CHUNK, make_repository, noise, reading, soon, write

from modelfs.ids import ModelName
from modelfs.maintenance.verify import verify

ROUNDS = 8


def start(environ: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "modelfs", *map(str, arguments)], text=True,
                            env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def test_pushes_removals_and_gc_at_once_lose_nothing_that_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
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
        running.append(start(environ, "gc", root, "--grace", "2s", "--json"))
        for process in running:
            out, err = process.communicate(timeout=60)
            # 3: a model that is not there to be removed; 7: a push whose chunks were removed says so
            assert process.returncode in (0, 3) or "Push again" in err, err
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
