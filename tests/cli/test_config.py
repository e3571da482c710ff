"""`modelfs config`, by the real command: what holds, where it comes from, what is refused, what a mount answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs import paths
from modelfs.daemon.control import ControlServer, Listening
from modelfs.errors import BadInput
from tests.conftest import Result

Run = Callable[..., Result]


def show(modelfs: Run, *arguments: object, env: dict[str, str] | None = None) -> dict[str, dict[str, object]]:
    result = modelfs("config", "show", "--json", *arguments, env=env)
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert isinstance(found, dict)
    return found


def test_show_tells_value_and_source_of_file_own_file_and_environment(modelfs: Run, environ: dict[str, str],
                                                                      tmp_path: Path) -> None:
    user = Path(environ["XDG_CONFIG_HOME"]) / "modelfs" / "config.toml"
    user.parent.mkdir()
    user.write_text('[cache]\nsize = "111 MiB"\n[remotes.lab]\nurls = ["/srv/models"]\n')
    assert show(modelfs)["cache.size"] == {"value": "111 MiB", "source": str(user)}
    assert show(modelfs)["remotes.lab.urls"] == {"value": ["/srv/models"], "source": str(user)}
    (tmp_path / "own.toml").write_text('[cache]\nsize = "222 MiB"\n')
    assert show(modelfs, "--config", "own.toml")["cache.size"] == {"value": "222 MiB", "source": "own.toml"}
    assert show(modelfs, "--config", "own.toml", env={"MODELFS_CACHE_SIZE": "333MiB"})["cache.size"] == {
        "value": "333MiB", "source": "env MODELFS_CACHE_SIZE"}


def test_the_table_has_a_line_a_setting_and_no_escapes(modelfs: Run) -> None:
    result = modelfs("config", "show")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0].split() == ["key", "value", "source"]
    assert "mount.allow_other" in result.out and " false " in result.out and "\x1b" not in result.out


@pytest.mark.parametrize(("text", "words"), [
    ('[cache]\nsize = "lots"\n', ["bad.toml", "cache.size", "lots"]),
    ('[fetch]\nconection = 3\n', ["bad.toml", "fetch.conection", "Did you mean fetch.connections?"]),
    ('[cache\n', ["bad.toml", "line 1"]),
])
def test_a_broken_file_is_one_line_and_exit_2(modelfs: Run, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "bad.toml").write_text(text)
    result = modelfs("config", "show", "--config", tmp_path / "bad.toml")
    assert result.code == 2 and result.out == "" and len(result.err.splitlines()) == 1
    assert result.err.startswith("modelfs: ") and [word for word in words if word not in result.err] == []


def test_a_missing_file_and_a_bad_variable_are_exit_2_and_named(modelfs: Run) -> None:
    missing = modelfs("config", "show", "--config", "none.toml")
    assert missing.code == 2 and "none.toml" in missing.err
    bad = modelfs("config", "show", env={"MODELFS_CACHE_SIZE": "plenty"})
    assert bad.code == 2 and "MODELFS_CACHE_SIZE" in bad.err and "plenty" in bad.err


def test_reload_says_what_the_mount_applied_and_what_needs_a_remount(modelfs: Run, environ: dict[str, str],
                                                                     tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    answer = {"applied": ["cache.size"], "needs_remount": ["mount.engine"]}
    listening = Listening.begin(paths.socket_path(tmp_path / "mnt", environ))
    server = ControlServer(listening, {"reload": lambda request: answer})
    try:
        said = modelfs("config", "reload", "mnt")
        document = modelfs("config", "reload", "mnt", "--json")
    finally:
        server.close()
    assert said == Result(0, "applied: cache.size\nneeds a remount: mount.engine\n", "")
    assert json.loads(document.out) == {"mountpoint": str(tmp_path / "mnt"), **answer}


def test_a_refusal_of_the_mount_is_the_commands_own(modelfs: Run, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()

    def refuse(request: object) -> dict[str, object]:
        raise BadInput("cache.size cannot be 'silly'", where="live.toml")

    server = ControlServer(Listening.begin(paths.socket_path(tmp_path / "mnt", environ)), {"reload": refuse})
    try:
        assert modelfs("config", "reload", "mnt") == Result(2, "", "modelfs: cache.size cannot be 'silly', live.toml\n")
    finally:
        server.close()


def test_reload_of_what_is_no_mount_is_exit_3(modelfs: Run, tmp_path: Path) -> None:
    result = modelfs("config", "reload", "mnt")
    assert result.code == 3 and result.out == "" and f"modelfs: no mount of ours, {tmp_path / 'mnt'}." in result.err
