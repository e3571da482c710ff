"""Where things lie: by the environment that is given, never by that of the process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs import paths
from modelfs.errors import BadInput, Forbidden

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
XDG = {"HOME": "/home/a", "XDG_CONFIG_HOME": "/c", "XDG_CACHE_HOME": "/k", "XDG_STATE_HOME": "/s",
       "XDG_RUNTIME_DIR": "/r"}


def as_user(environ: dict[str, str]) -> list[str]:
    """cache, state and runtime directory as a user who is not root finds them."""
    code = ("import os; from modelfs import paths; os.geteuid() or os.setuid(65534); "
            f"print(*(find({environ!r}) for find in (paths.cache_dir, paths.state_dir, paths.runtime_dir)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
                          cwd=Path(__file__).parents[1])
    return done.stdout.split()


def test_the_users_configuration_follows_xdg_and_home() -> None:
    assert paths.config_file(XDG) == Path("/c/modelfs/config.toml")
    assert paths.config_file({"HOME": "/home/a"}) == Path("/home/a/.config/modelfs/config.toml")
    assert paths.config_file({"HOME": "/home/a", "XDG_CONFIG_HOME": "relative"}).is_relative_to("/home/a/.config")


def test_without_home_the_systems_account_counts() -> None:
    import pwd

    assert paths.home_dir({"HOME": ""}) == Path(pwd.getpwuid(os.getuid()).pw_dir)


@needs_root
def test_root_has_the_systems_directories() -> None:
    assert paths.cache_dir(XDG) == Path("/var/cache/modelfs")
    assert paths.runtime_dir(XDG) == Path("/run/modelfs")
    assert paths.state_dir({}) == Path("/var/lib/modelfs")
    assert paths.state_dir(XDG) == Path("/s/modelfs")


@needs_root
def test_a_user_has_directories_by_xdg_or_below_home_and_tmp() -> None:
    assert as_user(XDG) == ["/k/modelfs", "/s/modelfs", "/r/modelfs"]
    assert as_user({"HOME": "/home/a", "TMPDIR": "/t"}) == [
        "/home/a/.cache/modelfs", "/home/a/.local/state/modelfs", "/t/modelfs-65534"]


def test_a_socket_has_one_path_whichever_way_its_mountpoint_is_written(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to(tmp_path / "link" / "mnt")
    monkeypatch.chdir(tmp_path)
    ways = ["real/mnt", "real/mnt/", "link/mnt", "direct", "real/../real/./mnt", str(tmp_path / "real/mnt")]
    assert len({paths.socket_path(Path(way), XDG) for way in ways}) == 1
    assert paths.socket_path(Path("real"), XDG) != paths.socket_path(Path("real/mnt"), XDG)
    assert paths.canonical(Path("/")) == Path("/")


def test_links_that_go_round_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BadInput, match="too many symbolic links"):
        paths.canonical(tmp_path / "a")


def test_a_private_directory_is_made_0700_and_kept(tmp_path: Path) -> None:
    made = paths.make_private(tmp_path / "x" / "run")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert paths.make_private(made) == made


def test_a_directory_that_others_may_enter_or_a_link_or_a_file_is_no_private_one(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "good").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("good")
    (tmp_path / "file").touch(mode=0o600)
    for name in ("open", "link", "file"):
        with pytest.raises(Forbidden, match=f"/{name}"):
            paths.make_private(tmp_path / name)


@needs_root
def test_a_directory_of_another_user_is_no_private_one(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(Forbidden, match="owner uid 65534"):
        paths.make_private(tmp_path / "theirs")
