"""What befalls programs that read a native mount, and the mount itself: signals, maps, limits, and what a kernel does
not permit."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import LINUX_6_9, Mounter, end_process, until
from mount.readers import script
from repository.builder import Builder

from modelfs.engines.native import mounting
from modelfs.engines.options import MountOptions
from modelfs.units import KiB, MiB

MAP = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ)
want = open(sys.argv[2], "rb").read()
print("ready", flush=True)
for line in sys.stdin:
    at = int(line)
    print(mapped[at:at + 100] == want[at:at + 100], flush=True)
"""


def ask(process: subprocess.Popen[str], line: object) -> str:
    assert process.stdin and process.stdout
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_map_of_a_store_that_is_gone_is_sigbus_at_the_deadline_and_the_daemon_goes_on(
        mount: Mounter, repository: Path, source: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "2s")
        with script(MAP, mounted / "big.bin", source / "big.bin") as mapper:
            assert ask(mapper, 0) == "True"
            rule = server.add("hang", "packs/")
            assert mapper.stdin
            mapper.stdin.write(f"{6 << 20}\n")
            mapper.stdin.flush()
            until(lambda: rule.hits)
            began = time.monotonic()
            assert mapper.poll() is None, "it waits"
            assert mapper.wait(30) == -signal.SIGBUS
            assert time.monotonic() - began > 1, "for the deadline"
        server.clear()
        until(lambda: _whole(mounted / "big.bin") == (source / "big.bin").read_bytes())


def _whole(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("how", ["read", "map", "direct"])
def test_a_signal_ends_a_reader_that_waits_for_a_store(mount: Mounter, repository: Path, source: Path, how: str,
                                                       number: signal.Signals) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "10m")
        instead = {"map": "mapped[at:at + 100]", "read": "os.pread(file, 100, at)",
                   "direct": "os.preadv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)], at)"}
        code = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        code += MAP.replace(instead["map"], instead[how])
        with script(code, mounted / "big.bin", source / "big.bin") as program:
            rule = server.add("hang", "packs/")
            assert program.stdin
            program.stdin.write(f"{6 << 20}\n")
            program.stdin.flush()
            until(lambda: rule.hits)
            program.send_signal(number)
            assert program.wait(30) == -number
        server.clear()
        assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()
        mounted.umount()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_who_waits_for_a_manifest_and_nobody_else_waits_for_it(mount: Mounter, tmp_path: Path,
                                                                           number: signal.Signals) -> None:
    built = Builder(tmp_path / "repo")
    slow = built.push("acme/slow", {"a.bin": b"slow"})
    built.push("acme/quick", {"a.bin": b"quick"})
    with FaultProxy(tmp_path / "repo") as server:
        mounted = mount(server.url, "--deadline", "10m")
        rule = server.add("hang", f"manifests/../{slow.manifest.hex()}")
        path = mounted / "acme/slow/v1/a.bin"
        waiting = [subprocess.Popen(["stat", path], stdout=subprocess.DEVNULL) for _ in range(3)]
        try:
            until(lambda: rule.hits)
            assert (mounted / "acme/quick/v1/a.bin").read_bytes() == b"quick"
            assert sorted(os.listdir(mounted / "acme")) == ["quick", "slow"]
            assert sorted(os.listdir(mounted / "acme/slow")) == ["latest", "v1"]
            assert [process.poll() for process in waiting] == [None] * 3
            for process in waiting:
                process.send_signal(number)
            assert [process.wait(30) for process in waiting] == [-number] * 3
            assert rule.hits == 1, "all of them waited for one request"
        finally:
            server.clear()
            for process in waiting:
                process.kill()
                process.wait(30)
        assert path.read_bytes() == b"slow"
        mounted.umount()


@pytest.mark.parametrize("whole", [False, True], ids=["through the daemon", "passthrough"])
def test_a_mount_with_maps_is_busy_and_lazily_unmounted_they_live_and_by_force_they_end(
        mount: Mounter, repository: Path, source: Path, whole: bool) -> None:
    for how in ("--lazy", "--force"):
        mounted = mount(repository, "--model", "acme/base", *(() if whole else ("--verify", "always")))
        if whole:
            (mounted / "big.bin").read_bytes()
            until(lambda m=mounted: _opened_by_the_kernel(m.place / "big.bin", m))
        with script(MAP, mounted / "big.bin", source / "big.bin") as mapper:
            assert ask(mapper, 0) == "True"
            mounted.umount(code=7)
            mounted.umount(how)
            assert not mounted.here
            if whole or how == "--lazy":
                assert ask(mapper, 7 << 20) == "True"
            else:
                assert mapper.stdin
                mapper.stdin.write(f"{7 << 20}\n")
                mapper.stdin.flush()
                assert mapper.wait(30) == -signal.SIGBUS
        assert mounted.ended() == 0


def _opened_by_the_kernel(path: Path, mounted: object) -> bool:
    before = mounted.status()["counters"]["passthrough_opens"]  # type: ignore[attr-defined]
    os.close(os.open(path, os.O_RDONLY))
    return bool(mounted.status()["counters"]["passthrough_opens"] > before)  # type: ignore[attr-defined]


USE = """
import os, subprocess, sys
file = os.open(sys.argv[1], os.O_RDONLY)
os.pread(file, 4096, 0)
os.set_inheritable(file, True)
print("ready", flush=True)
sys.stdin.readline()
subprocess.run(["sh", "-c", "true & wait; exec true"], check=True, close_fds=False)
child = os.fork()
if not child:
    os.close(file)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os.close(file)
print("done", flush=True)
"""


@LINUX_6_9
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_readers_fork_exec_and_close_while_nobody_serves(mount: Mounter, repository: Path, killed: bool) -> None:
    mounted = mount.daemon(repository, "--model", "acme/base")
    worker = mounted.worker
    with script(USE, mounted / "big.bin") as program:
        assert program.stdin and program.stdout
        os.kill(mounted.keeper, signal.SIGSTOP)  # it starts no other meanwhile
        try:
            if killed:
                end_process(worker)
            else:
                os.kill(worker, signal.SIGSTOP)
            program.stdin.write("go\n")
            program.stdin.flush()
            assert select.select([program.stdout], [], [], 30)[0], "it hangs"
            assert program.stdout.readline() == "done\n"
        finally:
            for pid in (worker, mounted.keeper):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
    if killed:
        mounted.upgraded(worker)
    mounted.umount()


def test_more_files_are_open_than_the_daemon_may_have_descriptors(mount: Mounter, tmp_path: Path) -> None:
    small, large = os.urandom(1200 * 8), os.urandom(200 * KiB)
    files = {f"{number:04}": small[number * 8:number * 8 + 8] * 20 for number in range(1100)}
    files |= {f"large-{number:03}": large[:-8] + small[number * 8:number * 8 + 8] for number in range(100)}
    Builder(tmp_path / "repo").push("acme/base", files)
    mounted = mount(tmp_path / "repo", "--model", "acme/base")
    resource.prlimit(mounted.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held: list[int] = []
    try:
        for _ in range(2):
            for name, want in files.items():
                held.append(os.open(mounted / name, os.O_RDONLY))
                assert os.pread(held[-1], 300 * KiB, 0) == want
        assert len(held) == 2400
        for fd, want in zip(held, [*files.values()] * 2, strict=True):
            assert os.pread(fd, 10, len(want) - 5) == want[-5:]
        assert mounted.status()["counters"]["errors"] == 0
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    mounted.umount()


def test_a_mounted_descriptor_is_served_and_its_mount_is_left_to_whom_it_belongs(mount: Mounter, repository: Path,
                                                                               source: Path) -> None:
    place = mount.tmp_path / "given"
    place.mkdir()
    descriptor = mounting.mount(MountOptions(place, "somewhere"))
    log = mount.tmp_path / "given.log"
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen([sys.executable, "-m", "modelfs", "mount", str(repository),
                                        f"/dev/fd/{descriptor}", "--model", "acme/base"], env=mount.environ,
                                       stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, pass_fds=(descriptor,))
        os.close(descriptor)
        try:
            until(lambda: "mounted " in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            got = subprocess.run(["cmp", source / "big.bin", place / "big.bin"], check=False, timeout=60)
            assert got.returncode == 0
            process.terminate()
            assert process.wait(30) == 0
        finally:
            end_process(process.pid)
        with pytest.raises(OSError) as caught:
            os.listdir(place)
        assert caught.value.errno == errno.ENOTCONN
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    for given in ("/dev/fd/0", "/dev/fd/99"):
        refused = mount.run("mount", repository, given)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and given in refused.stderr


LOOKUPS = int(os.environ.get("STORM_LOOKUPS", "30000"))
"""A leak of 70 bytes a lookup is seen by as many; make test-storm: a million."""


def test_names_that_are_not_there_are_looked_up_without_end_and_the_daemon_does_not_grow(mount: Mounter,
                                                                                      repository: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")

    def look(first: int, count: int) -> None:
        place = f"{mounted.place}/deep/"
        for number in range(first, first + count):
            assert not os.access(f"{place}{number}", os.F_OK)

    def resident() -> int:
        return int(Path(f"/proc/{mounted.process.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE

    look(0, 5000)
    before = resident()
    look(5000, LOOKUPS)
    assert resident() - before < 2 * MiB
    assert (mounted / "deep").is_dir()


def test_names_that_are_there_are_looked_up_without_end_and_the_daemon_does_not_grow(mount: Mounter, repository: Path,
                                                                                   source: Path) -> None:
    """The kernel asks for a file that is not whole each time, and forgets it as often."""
    mounted = mount(repository, "--model", "acme/base")

    def look(count: int) -> None:
        for number in range(count):
            assert os.stat(mounted / ("big.bin", "run.sh", "deep/er/small.bin")[number % 3]).st_size

    def resident() -> int:
        return int(Path(f"/proc/{mounted.process.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE

    look(5000)
    before = resident()
    look(LOOKUPS)
    assert resident() - before < 2 * MiB
    assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()


def test_auto_takes_the_native_engine_where_it_works(mount: Mounter, repository: Path) -> None:
    mount.environ["MODELFS_MOUNT_ENGINE"] = "auto"
    assert mount(repository).status()["engine"] == "native"


def test_in_a_user_namespace_it_works_without_passthrough(mount: Mounter, repository: Path, source: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this kernel permits no user namespaces")
    place = mount.tmp_path / "mnt"
    place.mkdir()
    session = """
    set -e
    "$1" -m modelfs mount "$2" "$3" --model acme/base --daemon
    for pass in 1 2 3; do cmp "$4/big.bin" "$3/big.bin"; cat "$3/run.sh" > /dev/null; done
    "$1" -m modelfs status "$3" --json
    "$1" -m modelfs upgrade "$3" > /dev/null
    cmp "$4/big.bin" "$3/big.bin"
    "$1" -m modelfs umount "$3"
    """
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", session, "sh", sys.executable, str(repository), str(place),
                           str(source)], cwd=mount.tmp_path, env=mount.environ, capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert '"engine": "native"' in done.stdout and '"passthrough": false' in done.stdout
