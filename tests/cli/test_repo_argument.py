"""REPO as every command takes it: what does not answer, what is no server of the URL's kind, what is none at all."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result

Run = Callable[..., Result]
DEADLINE = {"MODELFS_FETCH_DEADLINE": "4s"}


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL at which connections are refused, and will be: the port is taken, and not listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def remotes(tmp_path: Path) -> Path:
    path = tmp_path / "remotes.toml"
    path.write_text("".join(f"[remotes.{name}]\nurls = ['http://127.0.0.1:1/{name}']\n" for name in ("lab", "prod")))
    return path


COMMANDS = [("ls",), ("log", "acme/one"), ("inspect", "acme/one"), ("pull", "acme/one", "out"),
            ("tag", "acme/one", "t"), ("rm", "acme/one", "--yes"), ("gc",), ("verify",), ("init",), ("mount", "mnt"),
            ("cache", "warm", "acme/one")]


def words(command: tuple[str, ...], repo: object) -> list[object]:
    at = 2 if command[0] == "cache" else 1
    return [*command[:at], repo, *command[at:]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_that_waits_for_a_store_says_so_once(modelfs: Run, nobody: str, tmp_path: Path,
                                                       command: tuple[str, ...]) -> None:
    (tmp_path / "mnt").mkdir()
    done = modelfs(*words(command, nobody), env=DEADLINE)
    assert done.code == 5, done.err
    note, error = done.err.splitlines()
    assert note.startswith(f"{nobody} does not answer (Connection refused); trying until ")
    assert error.startswith("modelfs: a store does not answer")


def test_push_says_it_too_and_quiet_says_nothing(modelfs: Run, nobody: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"1")
    assert "trying until" in modelfs("push", "w.bin", nobody, "acme/one", env=DEADLINE).err
    done = modelfs("ls", nobody, "--quiet", env=DEADLINE)
    assert done.code == 5 and len(done.err.splitlines()) == 1


def test_https_where_http_is_spoken_fails_at_once(modelfs: Run, tmp_path: Path) -> None:
    """The timeout is less than the deadline."""
    (tmp_path / "root").mkdir()
    with FaultProxy(tmp_path / "root") as server:
        done = modelfs("ls", server.url.replace("http:", "https:"), timeout=30)
    assert done.code == 5 and len(done.err.splitlines()) == 1
    assert "does not answer with TLS" in done.err and "http://" in done.err


@pytest.mark.parametrize("command", [one for one in COMMANDS if one != ("init",)], ids=lambda command: command[0])
def test_a_mistyped_remote_is_told_the_nearest(modelfs: Run, remotes: Path, tmp_path: Path,
                                               command: tuple[str, ...]) -> None:
    (tmp_path / "mnt").mkdir()
    done = modelfs(*words(command, "labb"), "--config", remotes)
    assert done.code == 3, done.err
    assert done.err == ("modelfs: no modelfs repository, labb: it is neither a directory nor the name of a remote. "
                        "Did you mean lab?\n")


def test_a_name_that_is_like_no_remote_is_told_them_all(modelfs: Run, remotes: Path) -> None:
    assert modelfs("ls", "xyz", "--config", remotes).err.endswith("The remotes are lab, prod.\n")


def test_a_directory_that_is_no_repository_is_none_with_remotes_or_without(modelfs: Run, remotes: Path,
                                                                           tmp_path: Path) -> None:
    (tmp_path / "labb").mkdir()
    for more in ([], ["--config", remotes]):
        done = modelfs("ls", "labb", *more)
        assert done.code == 3 and "remote" not in done.err
    assert "remote" not in modelfs("ls", "elsewhere").err


@pytest.mark.parametrize("command", [("ls",), ("init",), ("mount", "mnt")], ids=lambda command: command[0])
def test_a_url_without_its_scheme_is_told_so_and_makes_no_directory(modelfs: Run, tmp_path: Path,
                                                                   command: tuple[str, ...]) -> None:
    (tmp_path / "mnt").mkdir()
    done = modelfs(*words(command, "localhost:8750/repo"))
    assert done.code == 2, done.err
    assert done.err == ("modelfs: not a repository 'localhost:8750/repo': a URL begins with http:// or https://. "
                        "Is it http://localhost:8750/repo? A directory of that name is ./localhost:8750/repo\n")
    assert not (tmp_path / "localhost:8750").exists()


def test_a_directory_named_like_a_host_and_port_is_one_where_it_is_there_or_meant(modelfs: Run) -> None:
    assert modelfs("init", "./localhost:8750").code == 0
    assert modelfs("ls", "localhost:8750").code == 0
