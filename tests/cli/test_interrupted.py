"""Ctrl-C ends any command with 130 and at most one line, and leaves nothing half done behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import until
from results import Result

from modelfs.daemon import mountpoints
from modelfs.units import MiB

ROOT = Path(__file__).parents[2]


def start(environ: dict[str, str], place: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "modelfs", *map(str, arguments)], cwd=place, text=True,
                            env={**environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupted(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err in ("", "modelfs: interrupted\n")


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def repository(tmp_path: Path, modelfs: Callable[..., Result]) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big.bin").write_bytes(random.Random(1).randbytes(6 * MiB))
    (source / "small.json").write_text("{}")
    assert modelfs("init", "repository", "--chunk-size", "256KiB").code == 0
    assert modelfs("push", "source", "repository", "acme/base").code == 0
    return tmp_path / "repository"


@pytest.mark.parametrize(("at", "arguments"), [
    ("manifests/", ("pull", "URL", "acme/base", "out")), ("packs/", ("pull", "URL", "acme/base", "out")),
    ("packs/", ("verify", "URL", "--read-data")), ("modelfs.json", ("ls", "URL")),
    ("manifests/", ("inspect", "URL", "acme/base")), ("catalog.json", ("mount", "URL", "mnt")),
    ("manifests/", ("mount", "URL", "mnt", "--model", "acme/base", "--daemon"))],
    ids=lambda given: given if isinstance(given, str) else given[0])
def test_a_command_that_waits_for_a_store_ends_soon(repository: Path, tmp_path: Path, environ: dict[str, str],
                                                    arguments: tuple[str, ...], at: str) -> None:
    (tmp_path / "mnt").mkdir()
    with FaultProxy(repository) as server:
        server.add("hang", at)
        process = start(environ, tmp_path, *[server.url if word == "URL" else word for word in arguments])
        until(lambda: server.requests(at))
        interrupted(process)
    assert mountpoints.mount_at(tmp_path / "mnt") is None
    if (tmp_path / "out").exists():  # what `pull` goes on from
        assert all(name.endswith(".modelfs-part") for name in files(tmp_path / "out"))


@pytest.mark.parametrize("packs", [1, 3])
def test_a_push_leaves_whole_packs_that_the_next_push_uses_and_nothing_else(
        repository: Path, tmp_path: Path, environ: dict[str, str], packs: int) -> None:
    (tmp_path / "more").mkdir()
    noise = random.Random(2)
    for number in range(16):
        (tmp_path / "more" / f"{number}.bin").write_bytes(noise.randbytes(6 * MiB))
    before = files(repository)
    process = start(environ, tmp_path, "push", "more", "repository", "acme/more")
    until(lambda: len([name for name in files(repository) - before if name.startswith("packs/")]) >= packs)
    interrupted(process)
    left = files(repository) - before
    assert all(name.startswith("packs/") and len(name.rpartition("/")[2]) == 64 for name in left), left
    done = start(environ, tmp_path, "push", "more", "repository", "acme/more", "--json")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert json.loads(out)["version"] == "v1"
    assert left <= files(repository)


@pytest.mark.parametrize("module", ["threading", "click"])
def test_ctrl_c_while_modules_are_imported_prints_no_traceback(tmp_path: Path, environ: dict[str, str],
                                                               module: str) -> None:
    """The first that is imported and Python had not at its start, and one of the command line's."""
    hold = tmp_path / "hold"
    os.mkfifo(hold)
    (tmp_path / f"{module}.py").write_text(f"open({str(hold)!r}).read()\n")  # stands in for a module that takes long
    process = subprocess.Popen([sys.executable, "-m", "modelfs", "version"], cwd=tmp_path, text=True,
                               env={**environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with hold.open("w"):  # opens once it is read
        interrupted(process)


def test_where_ctrl_c_is_ignored_it_stays_ignored(repository: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    with FaultProxy(repository) as server:
        rule = server.add("hang", "catalog.json")
        ignoring = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, " \
                   "[sys.executable, '-m', 'modelfs', *sys.argv[1:]])"
        process = subprocess.Popen([sys.executable, "-c", ignoring, "ls", server.url], cwd=tmp_path, text=True,
                                   env={**environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
        until(lambda: rule.hits)
        process.send_signal(signal.SIGINT)
        server.clear()
        assert "acme/base" in process.communicate(timeout=60)[0]
        assert process.returncode == 0
