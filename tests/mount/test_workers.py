"""The keeper and the workers of `mount --daemon`: a worker's death or replacement does not reach readers, and the end
of a mount is the end of both."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import LINUX_6_9, Mounter, end_process, gone, reader, until
from mount.readers import storm

from modelfs import paths
from modelfs.engines.native import protocol

pytestmark = LINUX_6_9
_SET_CHILD_SUBREAPER = 36
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


@pytest.fixture
def parent() -> Iterator[None]:
    """Daemons become our children, so that their exit codes can be had."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def code_of(pid: int) -> int:
    """Exit code of a daemon that is our child."""
    until(lambda: gone(pid))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("options", [("--cache-size", "1 MiB"), ("--verify", "always"), ()],
                         ids=["cold", "warm", "passthrough"])
def test_three_workers_killed_one_after_another_reach_none_of_64_readers(mount: Mounter, repository: Path,
                                                                        source: Path, options: tuple[str, ...]) -> None:
    with FaultProxy(repository) as server:
        mounted = mount.daemon(server.url, "--model", "acme/base", *options)
        with storm(mounted.place, source) as readers:
            for _ in range(3):
                readers.go_on(200)
                mounted.upgraded(mounted.kill_worker())
            readers.all_go_on()
            assert readers.finish() == "[]"
        assert mounted.log.read_text().count("worker.died") == 3
        mounted.umount()
        assert gone(mounted.keeper)


def test_upgrades_reach_no_reader_and_the_new_worker_stays(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount.daemon(repository, "--model", "acme/base", "--verify", "always")
    with storm(mounted.place, source) as readers:
        for ask in (lambda: mount.run("upgrade", mounted.place), lambda: os.kill(mounted.keeper, signal.SIGUSR2),
                    lambda: os.kill(mounted.worker, signal.SIGUSR2)):
            was = mounted.worker
            readers.go_on(100)
            asked = ask()
            assert asked is None or asked.returncode == 0, asked.stderr
            now = mounted.upgraded(was)
            until(lambda pid=was: gone(pid))
        last, end = now, time.monotonic() + 11  # longer than a worker that is to leave has time for
        until(lambda: time.monotonic() > end or gone(last))
        assert mounted.worker == last
        readers.all_go_on()
        assert readers.finish() == "[]"
    assert "worker.died" not in mounted.log.read_text()
    mounted.umount()


def test_an_upgrade_and_a_death_do_not_touch_a_read_that_waits(mount: Mounter, repository: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount.daemon(server.url, "--model", "acme/base", "--deadline", "2m")
        server.add("hang", "packs/")
        waiting = [reader(mounted / "big.bin", number << 20, 4096) for number in range(4)]
        try:
            until(lambda: server.requests("packs/"))
            done = mount.run("upgrade", mounted.place)
            assert done.returncode == 0, done.stderr
            mounted.upgraded(mounted.kill_worker())
            assert all(process.poll() is None for process in waiting)
            server.clear()
            assert [process.communicate(timeout=60)[0] for process in waiting] == ["read\n"] * 4
        finally:
            for process in waiting:
                process.kill()
                process.communicate()


def test_handles_maps_and_listings_from_before_a_death_go_on(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount.daemon(repository, "--model", "acme/base", "--verify", "always")
    want = (source / "big.bin").read_bytes()
    with (mounted / "big.bin").open("rb", buffering=0) as file, os.scandir(mounted / "deep") as listing:
        first = next(listing).name
        ino = os.fstat(file.fileno()).st_ino
        mounted.upgraded(mounted.kill_worker())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), len(want), 0) == want
        assert (mounted / "big.bin").stat().st_ino == ino == os.fstat(file.fileno()).st_ino
        assert {first, *(entry.name for entry in listing)} == set(os.listdir(source / "deep"))
    assert sorted(os.listdir(mounted.place)) == sorted(os.listdir(source))
    mounted.umount()


def test_a_worker_killed_with_nobody_reading_is_replaced(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount.daemon(repository)
    was = mounted.kill_worker()
    assert (mounted / "acme/base/latest/big.bin").read_bytes() == (source / "big.bin").read_bytes()
    assert mounted.worker != was


def test_five_deaths_end_the_mount_and_the_log_says_why(mount: Mounter, repository: Path, parent: None,
                                                        environ: dict[str, str]) -> None:
    mounted = mount.daemon(repository, "--model", "acme/base")
    file = os.open(mounted / "big.bin", os.O_RDONLY)
    try:
        for number in range(5):
            was = mounted.kill_worker()
            if number < 4:
                mounted.upgraded(was)
        assert code_of(mounted.keeper) == 1
        assert not mounted.here and not paths.socket_path(mounted.place, environ).exists()
        log = mounted.log.read_text()
        assert log.count("worker.died") == 4 and log.count("worker.given_up") == 1
        with pytest.raises(OSError) as caught:
            os.pread(file, 4096, 1 << 20)
        assert caught.value.errno in DEAD
    finally:
        _closed(file)


def _closed(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError as error:  # the kernel tells it at close, too
        assert error.errno in DEAD


def test_keeper_and_worker_killed_are_enotconn_at_once_and_a_remount_is_clean(mount: Mounter, repository: Path,
                                                                            source: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount.daemon(server.url, "--model", "acme/base", "--deadline", "2m")
        server.add("hang", "packs/")
        waiting = reader(mounted / "big.bin", 5 << 20, 4096)
        try:
            until(lambda: server.requests("packs/"))
            worker = mounted.worker
            os.kill(mounted.keeper, signal.SIGKILL)
            os.kill(worker, signal.SIGKILL)
            assert int(waiting.communicate(timeout=30)[0]) in DEAD
        finally:
            waiting.kill()
            waiting.communicate()
        with pytest.raises(OSError) as caught:
            os.listdir(mounted.place)
        assert caught.value.errno == errno.ENOTCONN
        server.clear()
        mounted.umount()
        again = mount.daemon(server.url, "--model", "acme/base")
        assert (again / "big.bin").read_bytes() == (source / "big.bin").read_bytes()
        again.umount()


def test_a_worker_without_its_keeper_serves_on_and_umount_waits_for_it(mount: Mounter, repository: Path,
                                                                     source: Path) -> None:
    mounted = mount.daemon(repository, "--model", "acme/base")
    worker = mounted.worker
    end_process(mounted.keeper)
    assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()
    until(lambda: "keeper.gone" in mounted.log.read_text())
    assert mounted.worker == worker
    refused = mount.run("upgrade", mounted.place)
    assert refused.returncode != 0 and refused.stderr.count("\n") == 1
    mounted.umount()
    assert gone(worker) and not mounted.here


@pytest.mark.parametrize("whom", ["keeper", "worker"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_either_ends_both_busy_or_not(mount: Mounter, repository: Path, environ: dict[str, str],
                                                  parent: None, whom: str, number: signal.Signals) -> None:
    with FaultProxy(repository) as server:
        mounted = mount.daemon(server.url, "--model", "acme/base", "--deadline", "2m")
        server.add("hang", "packs/")
        waiting = reader(mounted / "big.bin", 5 << 20, 4096)
        try:
            until(lambda: server.requests("packs/"))
            worker = mounted.worker
            os.kill(mounted.keeper if whom == "keeper" else worker, number)
            assert code_of(mounted.keeper) == 0
            assert gone(worker) and not mounted.here and not paths.socket_path(mounted.place, environ).exists()
            assert int(waiting.communicate(timeout=30)[0]) in (*DEAD, errno.EIO)
        finally:
            waiting.kill()
            waiting.communicate()


@pytest.mark.parametrize("whom", ["keeper", "worker"])
def test_hup_to_either_reloads(mount: Mounter, repository: Path, whom: str) -> None:
    config = mount.tmp_path / "live.toml"
    config.write_text('[cache]\nsize = "200 MiB"\n')
    mounted = mount.daemon(repository, "--config", config)
    config.write_text('[cache]\nsize = "100 MiB"\n')
    os.kill(mounted.keeper if whom == "keeper" else mounted.worker, signal.SIGHUP)
    until(lambda: mounted.status()["cache"]["limit_bytes"] == 100 << 20)
    mounted.kill_worker()
    assert mounted.status()["cache"]["limit_bytes"] == 100 << 20


def test_what_stops_a_new_worker_is_told_and_the_old_one_serves_on(mount: Mounter, repository: Path,
                                                                 source: Path) -> None:
    config = mount.tmp_path / "live.toml"
    config.write_text('[cache]\nsize = "200 MiB"\n')
    mounted = mount.daemon(repository, "--model", "acme/base", "--config", config)
    worker = mounted.worker
    config.write_text('[cache]\nsize = "silly"\n')
    done = mount.run("upgrade", mounted.place)
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "silly" in done.stderr, done.stderr
    assert mounted.worker == worker
    assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()
    config.write_text('[cache]\nsize = "200 MiB"\n')
    assert mount.run("upgrade", mounted.place).returncode == 0
    assert mounted.worker != worker


def test_a_keeper_that_can_start_no_worker_is_ended_by_a_signal_all_the_same(mount: Mounter, repository: Path,
                                                                           parent: None) -> None:
    config = mount.tmp_path / "live.toml"
    config.write_text('[cache]\nsize = "200 MiB"\n')
    mounted = mount.daemon(repository, "--model", "acme/base", "--config", config)
    file = os.open(mounted / "big.bin", os.O_RDONLY)
    try:
        config.write_text('[cache]\nsize = "silly"\n')
        mounted.kill_worker()
        until(lambda: mounted.log.read_text().count("worker.died") >= 2)
        os.kill(mounted.keeper, signal.SIGTERM)
        assert code_of(mounted.keeper) in (0, 1)
        assert not mounted.here
        with pytest.raises(OSError) as caught:
            os.pread(file, 4096, 1 << 20)
        assert caught.value.errno in DEAD
    finally:
        _closed(file)


def test_umount_of_a_daemon_is_plain_lazy_or_by_force(mount: Mounter, repository: Path, source: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount.daemon(server.url, "--model", "acme/base", "--deadline", "2m")
        want = (source / "big.bin").read_bytes()
        with (mounted / "big.bin").open("rb", buffering=0) as file:
            assert "busy" in mounted.umount(code=7)
            worker = mounted.worker
            mounted.umount("--lazy")
            assert not mounted.here and not gone(worker)
            os.kill(worker, signal.SIGKILL)
            assert os.pread(file.fileno(), len(want), 0) == want, "by a new worker, out of sight"
        until(lambda: gone(mounted.keeper))
        again = mount.daemon(server.url, "--model", "acme/base", "--deadline", "2m", "--verify", "always",
                             "--cache-dir", mount.tmp_path / "other")
        rule = server.add("hang", "packs/")
        waiting = reader(again / "big.bin", 5 << 20, 4096)
        try:
            until(lambda: rule.hits)
            worker = again.worker
            again.umount("--force")
            assert not again.here and gone(worker) and gone(again.keeper)
            assert int(waiting.communicate(timeout=30)[0]) in (*DEAD, errno.EIO)
        finally:
            waiting.kill()
            waiting.communicate()


def test_force_ends_a_keeper_and_a_worker_that_do_not_answer(mount: Mounter, repository: Path) -> None:
    mounted = mount.daemon(repository)
    worker = mounted.worker
    for pid in (mounted.keeper, worker):
        os.kill(pid, signal.SIGSTOP)
    mounted.umount("--force")
    assert not mounted.here and gone(worker) and gone(mounted.keeper)


def test_the_end_of_a_mount_that_is_out_of_sight_leaves_the_next_one_alone(mount: Mounter, repository: Path,
                                                                         source: Path) -> None:
    first = mount.daemon(repository, "--model", "acme/base")
    worker = first.worker
    with (first / "big.bin").open("rb", buffering=0):
        first.umount("--lazy")
        second = mount.daemon(repository, "--model", "acme/base")
        os.kill(worker, signal.SIGTERM)
        until(lambda: gone(first.keeper))
        assert second.here and second.worker != worker
        assert (second / "run.sh").read_bytes() == (source / "run.sh").read_bytes()
    second.umount()


def test_a_kernel_that_cannot_send_requests_again_refuses_upgrades_and_a_death_is_the_end(
        mount: Mounter, repository: Path, parent: None) -> None:
    """Its answer is changed in the keeper's memory."""
    with FaultProxy(repository) as server:
        mounted = mount.daemon(server.url, "--model", "acme/base", "--deadline", "2m")
        _agreed_without(mounted.keeper, protocol.HAS_RESEND)
        worker = mounted.worker
        refused = mount.run("upgrade", mounted.place)
        assert refused.returncode == 7 and "6.9" in refused.stderr and refused.stderr.count("\n") == 1
        assert mounted.worker == worker
        server.add("hang", "packs/")
        waiting = reader(mounted / "big.bin", 5 << 20, 4096)
        try:
            until(lambda: server.requests("packs/"))
            os.kill(worker, signal.SIGKILL)
            assert code_of(mounted.keeper) == 1
            assert int(waiting.communicate(timeout=30)[0]) in DEAD
            assert not mounted.here and "worker.died" in mounted.log.read_text()
        finally:
            waiting.kill()
            waiting.communicate()


def _agreed_without(keeper: int, flag: int) -> None:
    for descriptor in Path(f"/proc/{keeper}/fd").iterdir():
        if "modelfs-agreement" in os.readlink(descriptor):
            with descriptor.open("r+b", buffering=0) as state:
                flags, = struct.unpack("=Q", state.read(8))
                assert flags & flag
                os.pwrite(state.fileno(), struct.pack("=Q", flags & ~flag), 0)
            return
    raise AssertionError("the keeper holds no agreement")
