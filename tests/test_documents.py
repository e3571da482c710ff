"""The documents say what is so: README's session is what the demo prints, its commands run, the sentences of
docs/semantics.md name tests that exist, and the tables of docs/operations.md agree with the source."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounting import Mounter
from servers import own_server

from modelfs import errors
from modelfs.app.mounting import _LIVE
from modelfs.cli.main import INTERRUPTED
from modelfs.config import load_config
from modelfs.settings import REMOTE_KEYS

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
    for text in (session, done.stdout):
        assert re.search(r"until the deadline passed\. Starting from the cache, as of \S+Z\.", text), "two sentences"
    assert "104 tensors, 90.9 MB, all equal" in done.stdout and "Input/output error" in done.stdout
    assert not list(tmp_path.glob("modelfs-demo*")), "it leaves nothing behind"


def test_readmes_everyday_commands_run(mount: Mounter, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    block = next(block for block in blocks((ROOT / "README.md").read_text()) if "modelfs push ./llama" in block)
    (tmp_path / "mnt").mkdir()
    commands = [line.split()[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["init", "push", "serve", "mount", "status", "umount", "verify",
                                                         "replicate"]

    def here(command: list[str], url: str) -> list[str]:
        names = {"/srv/models": str(tmp_path / "models"), "/srv/mirror": str(tmp_path / "mirror"),
                 "/mnt/models": str(tmp_path / "mnt"), "http://models.example.org:8750": url}
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


def table(heading: str) -> list[list[str]]:
    """The cells of the first table of docs/operations.md whose header begins with heading."""
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def modules() -> Iterator[ast.Module]:
    for path in sorted((ROOT / "modelfs").rglob("*.py")):
        yield ast.parse(path.read_text(), str(path))


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
            yield node


def events() -> set[str]:
    """What `log_event` is called with, and where that is an argument of the function around it, what that is given."""
    found: set[str] = set()
    for tree in modules():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name == "log_event":
                continue
            for call in calls(function, "log_event"):
                event = call.args[2]
                within = [tree] if function.name.startswith("_") else modules()
                places = [call] if isinstance(event, ast.Constant) else [
                    place for one in within for place in calls(one, function.name)]
                given = [arg.value for place in places for arg in place.args if isinstance(arg, ast.Constant)
                         and re.fullmatch(r"[a-z_]+\.[a-z_]+", str(arg.value))]
                assert given, ast.unparse(call)
                found.update(map(str, given))
    return found


def test_the_table_of_log_events_is_complete() -> None:
    told = [event for cells in table("event") for event in names(cells[0])]
    assert len(told) == len(set(told))
    assert sorted(told) == sorted(events())


def test_the_table_of_keys_has_every_key_with_its_default_and_whether_it_is_live(tmp_path: Path) -> None:
    settings = load_config(file=None, flags={}, environ={"HOME": str(tmp_path)}, etc=tmp_path / "none").settings
    rows = {names(cells[0])[0]: cells for cells in table("key")}
    assert list(rows) == [*settings, *(f"remotes.NAME.{key}" for key in REMOTE_KEYS)]
    for key, cells in rows.items():
        assert cells[3] == ("live" if key in _LIVE else "remount"), key
        if key in settings and key != "cache.directory":
            assert cells[1].strip("`").lower() == str(settings[key].value).lower(), key


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.ModelfsError)]
    codes = {0, INTERRUPTED, *(one.exit_code for one in classes)}
    assert [int(cells[0]) for cells in table("exit code")] == sorted(codes)


def test_every_message_in_the_table_is_one_that_modelfs_prints() -> None:
    printed = [node.value for tree in modules() for node in ast.walk(tree)
               if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    messages = [message for cells in table("message") for message in names(cells[0])]
    assert len(messages) >= 30
    for message in messages:
        beginning = message.removesuffix("…")
        assert any(text.startswith(beginning) for text in printed), message
