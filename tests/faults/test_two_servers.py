"""Two servers over one directory, and pushes through both at once, and to the directory itself."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from servers import own_server
from transfer.pushed import CHUNK, make_repository, noise, reading, soon, write

from modelfs.ids import ModelName
from modelfs.maintenance.verify import verify

PUSHES = 9


def test_pushes_through_two_servers_and_to_the_directory_all_succeed(tmp_path: Path, environ: dict[str, str]) -> None:
    root, shared = tmp_path / "repository", noise(60, 5 * CHUNK)
    repository = make_repository(root)
    contents = [{"shared.bin": shared, "own.bin": noise(61 + n, 3 * CHUNK)} for n in range(PUSHES)]
    sources = [write(tmp_path / f"source{n}", files) for n, files in enumerate(contents)]
    with own_server(root, writable=True) as one, own_server(root, writable=True) as two, ExitStack() as undo:
        running = [subprocess.Popen([sys.executable, "-m", "modelfs", "push", str(source), str((one, two, root)[n % 3]),
                                     "lab/model", "--json", "--jobs", "1"], text=True,
                                    env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                   for n, source in enumerate(sources)]
        for process in running:
            undo.callback(process.kill)
        ended = [process.communicate(timeout=90) for process in running]
    assert [process.returncode for process in running] == [0] * PUSHES, [err for _, err in ended]
    versions = [json.loads(out)["version"] for out, _ in ended]
    assert sorted(versions) == sorted(f"v{n + 1}" for n in range(PUSHES))
    rows = repository.history(repository.catalog(soon()).catalog, ModelName.parse("lab/model"), soon())
    assert [row.parent for row in rows.versions] == [None, *range(1, PUSHES)]
    with reading(root) as r:
        for files, version in zip(contents, versions, strict=True):
            for path, data in files.items():
                assert r.read(r.file(path, f"lab/model:{version}")) == data
    assert verify(repository, read_data=True).faults == ()
