"""Pushes at once, of one model and of several, by processes of their own: all succeed, and no number is given twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from faultproxy import FaultProxy
from transfer.pushed import CHUNK, eventually, make_repository, noise, reading, soon, write

from modelfs.ids import ModelName
from modelfs.repository.pack import TARGET_BYTES
from modelfs.units import Deadline, MiB

PROCESSES = 6


def push_all(repository: Path, environ: dict[str, str], jobs: list[tuple[Path, str]]) -> list[dict[str, object]]:
    env = {**environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [subprocess.Popen([sys.executable, "-m", "modelfs", "push", str(source), str(repository), model,
                                 "--json", "--jobs", "1"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for source, model in jobs]
    reports = []
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        reports.append(json.loads(out))
    return reports


def test_pushes_of_one_model_at_once_all_succeed_with_numbers_of_their_own(tmp_path: Path,
                                                                            environ: dict[str, str]) -> None:
    repository = make_repository(tmp_path / "repository")
    shared = noise(99, 5 * CHUNK)
    contents = [{"shared.bin": shared, "own.bin": noise(n, 3 * CHUNK)} for n in range(PROCESSES)]
    sources = [write(tmp_path / f"source{n}", files) for n, files in enumerate(contents)]
    reports = push_all(tmp_path / "repository", environ, [(source, "lab/model") for source in sources])
    assert sorted(str(report["version"]) for report in reports) == [f"v{n + 1}" for n in range(PROCESSES)]
    catalog = repository.catalog(soon()).catalog
    rows = repository.history(catalog, ModelName.parse("lab/model"), soon())
    assert catalog.serial == 1 + PROCESSES
    assert [row.parent for row in rows.versions] == [None, *range(1, PROCESSES)]
    with reading(tmp_path / "repository") as r:
        for files, report in zip(contents, reports, strict=True):
            for path, data in files.items():
                assert r.read(r.file(path, f"lab/model:{report['version']}")) == data


def test_pushes_of_the_same_at_once_make_one_version(tmp_path: Path, environ: dict[str, str]) -> None:
    make_repository(tmp_path / "repository")
    source = write(tmp_path / "source", {"w.bin": noise(1, 10 * CHUNK)})
    reports = push_all(tmp_path / "repository", environ, [(source, "lab/model")] * 4)
    assert {report["version"] for report in reports} == {"v1"}
    assert sum(bool(report["changed"]) for report in reports) == 1


def test_pushes_of_many_models_at_once_lose_none(tmp_path: Path, environ: dict[str, str]) -> None:
    repository = make_repository(tmp_path / "repository")
    jobs = [(write(tmp_path / f"source{n}", {"w": noise(n, 100)}), f"lab/m{n}") for n in range(PROCESSES)]
    push_all(tmp_path / "repository", environ, jobs)
    catalog = repository.catalog(Deadline(30)).catalog
    assert sorted(str(name) for name in catalog.models) == [f"lab/m{n}" for n in range(PROCESSES)]
    assert len(catalog.indexes) == PROCESSES


def test_packs_of_one_push_go_up_beside_one_another(tmp_path: Path, environ: dict[str, str]) -> None:
    """None is answered until two are under way."""
    make_repository(tmp_path / "repository", MiB)
    data = noise(1, 2 * TARGET_BYTES + MiB)
    source = write(tmp_path / "source", {"w.bin": data})
    with FaultProxy(tmp_path / "repository", writable=True) as proxy:
        held = proxy.add("hang", "packs/", methods=("PUT",))
        push = subprocess.Popen([sys.executable, "-m", "modelfs", "push", str(source), proxy.url, "lab/model"],
                                env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, stderr=subprocess.PIPE)

        def ended() -> bool:
            proxy.clear()  # again and again: what had not been read to its end the first time hangs only then
            return push.poll() is not None

        try:
            eventually(lambda: held.hits >= 2)
            eventually(ended, 60)
            _, err = push.communicate(timeout=60)
        finally:
            push.kill()
    assert push.returncode == 0, err.decode()
    with reading(tmp_path / "repository") as r:
        assert r.read(r.file("w.bin")) == data
