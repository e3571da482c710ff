"""How a mount begins, is told about, and ends; nothing is left in any case."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import BOTH_ENGINES, Mounter, end_process, gone, reader, until

from modelfs import paths
from modelfs.metrics import COUNTERS


@BOTH_ENGINES
def test_status_answers_as_soon_as_mounted_was_said_and_says_all(mount: Mounter, repository: Path,
                                                                 engine: str) -> None:
    mounted = mount(repository)
    found = mounted.status()
    assert (found["mountpoint"], found["engine"]) == (str(mounted.place), engine)
    assert not found["passthrough"] or engine == "native"
    assert (found["pid"], found["repository"]) == (mounted.process.pid, repository.as_uri())
    assert set(found["counters"]) == set(COUNTERS)
    assert set(found["cache"]) == {"directory", "bytes", "limit_bytes", "free_bytes", "files", "pinned_bytes"}
    assert found["stores"][0]["state"] == "ok"
    listed = json.loads(mount.run("status", "--json").stdout)["mounts"]
    assert [at["pid"] for at in listed if at["mountpoint"] == str(mounted.place)] == [mounted.process.pid]
    said = [line for line in mounted.log.read_text().splitlines() if line.startswith("mounted")]
    assert said == [f"mounted {repository.as_uri()} on {mounted.place}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_leaves_nothing(mount: Mounter, repository: Path, number: signal.Signals,
                                              environ: dict[str, str]) -> None:
    mounted = mount(repository)
    socket = paths.socket_path(mounted.place, environ)
    assert socket.exists()
    mounted.process.send_signal(number)
    assert mounted.ended() == 0
    assert not mounted.here and not socket.exists()


@BOTH_ENGINES
def test_a_signal_ends_a_busy_mount_too(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository)
    descriptor = os.open(mounted / "acme/base/v1/run.sh", os.O_RDONLY)
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.ended() == 0
    assert not mounted.here
    with pytest.raises(OSError) as caught:
        os.pread(descriptor, 10, 0)
    assert caught.value.errno == errno.ENOTCONN
    with suppress(OSError):  # the kernel tells it at close, too
        os.close(descriptor)


@BOTH_ENGINES
def test_an_unmount_from_elsewhere_ends_the_daemon(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository)
    subprocess.run(["umount", str(mounted.place)], check=True)
    assert mounted.ended() == 0


def test_umount_waits_for_the_daemon_and_a_relative_path_will_do(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository)
    assert mount.run("umount", "mnt").returncode == 0
    assert gone(mounted.process.pid) and not mounted.here
    assert mounted.ended() == 0
    mounted.umount(code=3)
    assert mount.run("status", mounted.place).returncode == 3


@BOTH_ENGINES
def test_a_busy_mount_stays_and_lazy_lets_open_files_live(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    with (mounted / "big.bin").open("rb") as file:
        assert "busy" in mounted.umount(code=7)
        assert mounted.here and mounted.status()["pid"] == mounted.process.pid
        mounted.umount("--lazy")
        assert not mounted.here
        assert file.read() == (source / "big.bin").read_bytes()
        assert mounted.process.poll() is None
        again = mount(repository)
        assert again.status()["pid"] == again.process.pid
    assert mounted.ended() == 0
    assert again.status()["pid"] == again.process.pid


@BOTH_ENGINES
def test_force_fails_waiting_reads_and_ends_everything(mount: Mounter, repository: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "5m")
        server.add("hang", "packs/")
        readers = [reader(mounted / "big.bin", number << 20, 4096) for number in range(3)]
        until(lambda: server.requests("packs/"))
        mounted.umount(code=7)
        assert all(process.poll() is None for process in readers)
        mounted.umount("--force")
        assert not mounted.here and gone(mounted.process.pid)
        for process in readers:
            assert int(process.communicate(timeout=30)[0]) in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)


@BOTH_ENGINES
def test_force_ends_a_daemon_that_does_not_answer(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository)
    mounted.process.send_signal(signal.SIGSTOP)
    mounted.umount("--force")
    assert not mounted.here and gone(mounted.process.pid)


@pytest.mark.parametrize("options", [(), ("--lazy",), ("--force",)])
def test_a_dead_mount_is_told_taken_away_and_mounted_again(mount: Mounter, repository: Path, source: Path,
                                                           options: tuple[str, ...]) -> None:
    mounted = mount(repository, "--model", "acme/base")
    mounted.process.kill()
    mounted.ended()
    with pytest.raises(OSError) as caught:
        os.listdir(mounted.place)
    assert caught.value.errno == errno.ENOTCONN
    told = mount.run("status", mounted.place)
    assert told.returncode == 3 and "umount" in told.stderr
    taken = mount.run("mount", repository, mounted.place)
    assert taken.returncode == 7 and "dead" in taken.stderr and str(mounted.place) in taken.stderr
    assert not any(at["mountpoint"] == str(mounted.place)
                   for at in json.loads(mount.run("status", "--json").stdout)["mounts"])
    mounted.umount(*options)
    assert not mounted.here
    again = mount(repository, "--model", "acme/base")
    assert (again / "big.bin").read_bytes() == (source / "big.bin").read_bytes()


def test_a_daemon_returns_when_it_answers_and_tells_its_errors(mount: Mounter, repository: Path,
                                                               source: Path) -> None:
    (mount.tmp_path / "mnt").mkdir()
    done = mount.run("mount", "repository", "mnt", "--model", "acme/base", "--cache-dir", "cache", "--daemon")
    assert done.returncode == 0, done.stderr
    assert (mount.tmp_path / "mnt/big.bin").read_bytes() == (source / "big.bin").read_bytes()
    pid = json.loads(mount.run("status", "mnt", "--json").stdout)["pid"]
    try:
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) != os.getsid(0)
        assert mount.run("umount", "mnt").returncode == 0
        assert gone(pid)
    finally:
        end_process(pid)
    for arguments, code, word in ((("--model", "acme/none"), 3, "acme/none"), (("--engine", "other"), 2, "other"),
                                  (("--cache-size", "lots"), 2, "lots"), (("--nonsense",), 2, "--nonsense")):
        done = mount.run("mount", repository, "mnt", *arguments, "--daemon")
        lines = done.stderr.splitlines()
        assert (done.returncode, len(lines)) == (code, 1), done.stderr
        assert lines[0].startswith("modelfs: ") and word in lines[0]


def test_a_mount_point_that_cannot_be_used_has_its_exit_code(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository)
    (mount.tmp_path / "file").touch()
    for place, code in (("missing", 3), ("file", 2), ("mnt", 7), (source.name, 7)):
        for more in ((), ("--daemon",)):
            done = mount.run("mount", repository, place, *more)
            assert done.returncode == code
            assert place in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir(mounted.place) == ["acme"]


def test_a_mount_point_behind_a_link_is_the_same_mount(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository)
    (mount.tmp_path / "link").symlink_to("mnt")
    found = json.loads(mount.run("status", "link", "--json").stdout)
    assert found["pid"] == mounted.process.pid
    assert mount.run("umount", "link").returncode == 0
    assert not mounted.here


def test_a_mount_starts_from_the_cache_when_the_store_is_gone_and_says_so(mount: Mounter, repository: Path,
                                                                          source: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--model", "acme/base")
        (mounted / "big.bin").read_bytes()
        mounted.umount()
        server.down()
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "1s")
        assert "from the cache" in mounted.log.read_text()
        assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()
        assert mounted.status()["stores"][0]["state"] == "unreachable"
        mounted.umount()
        done = mount.run("mount", server.url, mounted.place, "--cache-dir", mount.tmp_path / "empty",
                         "--deadline", "1s")
        assert done.returncode == 5


@BOTH_ENGINES
def test_a_push_is_seen_and_a_followed_mount_moves_while_open_files_stay(mount: Mounter, repository: Path,
                                                                         source: Path) -> None:
    before = (source / "run.sh").read_bytes()
    whole = mount(repository, "--poll", "100ms", name="whole")
    pinned = mount(repository, "--poll", "100ms", "--model", "acme/base", name="pinned")
    followed = mount(repository, "--poll", "100ms", "--model", "acme/base", "--follow", name="followed")
    with (followed / "run.sh").open("rb") as file:
        assert (followed / "run.sh").read_bytes() == before
        (source / "run.sh").write_bytes(b"other")
        (source / "new").touch()
        assert mount.run("push", source, repository, "acme/base").returncode == 0
        until(lambda: (followed / "new").exists())
        assert (followed / "run.sh").read_bytes() == b"other"
        assert file.read() == before
    until(lambda: os.readlink(whole / "acme/base/latest") == "v2")
    assert sorted(os.listdir(whole / "acme/base")) == ["latest", "v1", "v2"]
    assert (whole / "acme/base/v1/run.sh").read_bytes() == before
    assert (whole / "acme/base/latest/run.sh").read_bytes() == b"other"
    assert (pinned / "run.sh").read_bytes() == before and not (pinned / "new").exists()


def test_a_reload_applies_a_smaller_cache_and_a_broken_file_changes_nothing(mount: Mounter, repository: Path) -> None:
    config = mount.tmp_path / "live.toml"
    config.write_text('[cache]\nsize = "200 MiB"\n')
    mounted = mount(repository, "--config", config)

    def limit() -> int:
        found = mounted.status()["cache"]["limit_bytes"]
        assert isinstance(found, int)
        return found

    assert limit() == 200 << 20
    config.write_text('[cache]\nsize = "100 MiB"\n')
    mounted.process.send_signal(signal.SIGHUP)
    until(lambda: limit() == 100 << 20)
    config.write_text('[cache]\nsize = "silly"\n')
    mounted.process.send_signal(signal.SIGHUP)
    until(lambda: "config.refused" in mounted.log.read_text())
    assert limit() == 100 << 20


def test_an_older_catalog_than_this_host_saw_is_a_warning_though_the_cache_is_another(mount: Mounter,
                                                                                    repository: Path) -> None:
    old = (repository / "catalog.json").read_bytes()
    (mount.tmp_path / "more").write_text("more")
    assert mount.run("push", mount.tmp_path / "more", repository, "acme/more").returncode == 0
    mount(repository, name="first").umount()
    (repository / "catalog.json").write_bytes(old)
    options = ("--cache-dir", mount.tmp_path / "another-cache", "--deadline", "1s")
    with FaultProxy(repository) as server:
        later = mount(server.url, *options, name="second")
        assert "warning: the catalog" in later.log.read_text()
        assert [path.name for path in (later / "acme").iterdir()] == ["base"]
        later.umount()
        server.down()
        offline = mount(server.url, *options, name="third")
        assert [path.name for path in (offline / "acme").iterdir()] == ["base"], "it was remembered all the same"


def test_of_two_mounts_that_begin_at_once_one_is_refused(mount: Mounter, repository: Path,
                                                         environ: dict[str, str]) -> None:
    with FaultProxy(repository) as server:
        rule = server.add("hang", "modelfs.json", times=1)
        first = mount.start(server.url)
        until(lambda: rule.hits)
        done = mount.run("mount", repository, first.place)
        assert done.returncode == 7 and "another mount is starting there" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        server.clear()
        until(lambda: "mounted " in first.log.read_text())
    assert first.status()["pid"] == first.process.pid
    assert not paths.socket_path(first.place, environ).with_suffix(".lock").exists()
    first.umount()
    assert mount(repository).status()["repository"] == repository.as_uri()


def test_a_lock_that_a_killed_mount_left_is_in_nobodys_way(mount: Mounter, repository: Path,
                                                           environ: dict[str, str]) -> None:
    with FaultProxy(repository) as server:
        rule = server.add("hang", "modelfs.json")
        first = mount.start(server.url)
        until(lambda: rule.hits)
        first.process.kill()
        first.ended()
    lock = paths.socket_path(first.place, environ).with_suffix(".lock")
    assert lock.exists()
    mount(repository)
    assert not lock.exists()


def test_a_cache_that_can_hold_next_to_nothing_is_a_warning_with_both_sizes(mount: Mounter, repository: Path) -> None:
    said = mount(repository, "--cache-size", "1 MiB", "--cache-dir", mount.tmp_path / "tiny").log.read_text()
    warning = next(line for line in said.splitlines() if line.startswith("warning"))
    assert "cache.size is 1 MiB" in warning and "cache.min_free" in warning and "free on its disk" in warning
    (mount.tmp_path / "other").mkdir()
    mount.environ["MODELFS_CACHE_MIN_FREE"] = "100%"
    done = mount.run("mount", repository, "other", "--daemon", "--cache-dir", mount.tmp_path / "none")
    try:
        assert done.returncode == 0 and "the cache can hold 0 B" in done.stderr and "100%" in done.stderr
    finally:
        assert mount.run("umount", "other").returncode == 0


def test_reload_names_what_needs_a_remount_each_time_and_refuses_a_bad_file(mount: Mounter, repository: Path) -> None:
    config = mount.tmp_path / "live.toml"
    config.write_text('[cache]\nsize = "200 MiB"\n')
    mounted = mount(repository, "--config", config)
    config.write_text('[cache]\nsize = "100 MiB"\n[mount]\nallow_other = true\npoll = "5s"\n')

    def reload() -> subprocess.CompletedProcess[str]:
        return mount.run("config", "reload", mounted.place, "--json")

    assert json.loads(reload().stdout) == {"mountpoint": str(mounted.place), "applied": ["cache.size", "mount.poll"],
                                           "needs_remount": ["mount.allow_other"]}
    assert json.loads(reload().stdout) == {"mountpoint": str(mounted.place), "applied": [],
                                           "needs_remount": ["mount.allow_other"]}
    config.write_text('[cache]\nsize = "silly"\n')
    refused = reload()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "silly" in refused.stderr and "live.toml" in refused.stderr
    assert mounted.status()["cache"]["limit_bytes"] == 100 << 20


@pytest.mark.parametrize("engine", ["native", "fusepy"])
def test_a_daemon_has_nothing_of_who_started_it(mount: Mounter, repository: Path, source: Path, engine: str) -> None:
    """No descriptor of the caller's, no closed stream, no module that lies beside a model."""
    (mount.tmp_path / "numpy.py").write_text("raise SystemError\n")
    (mount.tmp_path / "mnt").mkdir()
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    command = [sys.executable, "-m", "modelfs", "mount", str(repository), "mnt", "--model", "acme/base", "--daemon",
               "--engine", engine]
    done = subprocess.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command], cwd=mount.tmp_path,
                          env=mount.environ, timeout=60, pass_fds=(theirs,), check=False)
    os.close(theirs)
    assert done.returncode == 0
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b""  # its end: nobody holds the other one
    assert (mount.tmp_path / "mnt/big.bin").read_bytes() == (source / "big.bin").read_bytes()
    done = mount.run("umount", "mnt")
    assert done.returncode == 0, done.stderr
