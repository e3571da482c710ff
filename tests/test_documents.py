"""The documents say what is so: README's session is what the demo prints, its commands run, and the sentences of
docs/semantics.md name tests that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounting import Mounter
from servers import own_server

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str]) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, environ)
    yield mounter
    mounter.end()


def blocks(text: str) -> list[str]:
    return re.findall(r"```console\n(.*?)```", text, re.S)


def commands_and_titles(output: str) -> list[str]:
    """What does not differ from run to run: the commands without ports and digests, and the headings."""
    kept = [line for line in output.splitlines() if line.startswith(("$ ", "== "))]
    return [re.sub(r"127\.0\.0\.1:\d+|[0-9a-f]{2}/[0-9a-f]{64}", "#", line) for line in kept]


def test_readmes_session_is_what_the_demo_prints(environ: dict[str, str], tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, line in (("modelfs", f'exec {sys.executable} -m modelfs "$@"'),
                       ("python3", f'exec {sys.executable} "$@"')):
        (binaries / name).write_text(f"#!/bin/sh\n{line}\n")
        (binaries / name).chmod(0o755)
    done = subprocess.run(["bash", ROOT / "examples" / "demo.sh"], capture_output=True, text=True, timeout=300,
                          env={**environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                               "TMPDIR": str(tmp_path)}, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    session = next(block for block in blocks((ROOT / "README.md").read_text()) if "$ modelfs init" in block)
    assert commands_and_titles(session) == commands_and_titles(done.stdout)
    assert "104 tensors, 90.9 MB, all equal" in done.stdout and "Input/output error" in done.stdout
    assert not list(tmp_path.glob("modelfs-demo*")), "it leaves nothing behind"


def test_readmes_everyday_commands_run(mount: Mounter, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    block = next(block for block in blocks((ROOT / "README.md").read_text()) if "modelfs push ./llama" in block)
    (tmp_path / "mnt").mkdir()
    commands = [line.split()[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["init", "push", "serve", "mount", "status", "umount", "verify"]

    def here(command: list[str], url: str) -> list[str]:
        names = {"/srv/models": str(tmp_path / "models"), "/mnt/models": str(tmp_path / "mnt"),
                 "http://models.example.org:8750": url}
        return [names.get(word, word) for word in command]

    for command in commands[:2]:
        done = mount.run(*here(command, ""))
        assert done.returncode == 0, done.stderr
    with own_server(tmp_path / "models") as url:
        for command in commands[3:]:
            done = mount.run(*here(command, url))
            assert done.returncode == 0, done.stderr


def test_every_sentence_of_the_semantics_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (TESTS.parent / "docs" / "semantics.md").read_text(), re.M)
    named = [(file, sentence) for _, cell in rows for file, sentence in
             re.findall(r"(\w+/test_\w+\.py)(?:: ([^;|]+))?", cell)]
    assert len(named) >= 25
    for file, sentence in named:
        names = re.findall(r"^def test_(\w+)\(", (TESTS / file).read_text(), re.M)
        wanted = re.sub(r"\W+", "_", sentence.strip().lower())
        assert not wanted or wanted in names, f"{file} has no test {wanted}"
