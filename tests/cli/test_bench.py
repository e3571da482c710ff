"""`modelfs bench`: every stage is there and its bytes add up, and whatever happens nothing is left of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter, end_process, until
from results import Result

from modelfs import paths
from modelfs.daemon import mountpoints
from modelfs.units import KiB, MiB

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
STORE = ["store_one", "store", "decode", "check", "disk_write", "disk_read"]
OWN_MOUNT = ["mount_cold", "mount_warm"]
CHUNK = 256 * KiB
LARGE = 24 * CHUNK + 777


@pytest.fixture
def repository(tmp_path: Path, modelfs: Run) -> Path:
    """acme/large, its largest file of noise, so that it is stored as it is; acme/small; acme/vast, beyond 16 MiB."""
    noise = random.Random(1).randbytes
    for name, size in (("large", LARGE), ("small", 3 * CHUNK), ("vast", 20 * MiB)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(noise(size))
        (tmp_path / name / "config.json").write_text("{}")
    assert modelfs("init", "repository", "--chunk-size", CHUNK).code == 0
    for name in ("large", "small"):
        assert modelfs("push", name, "repository", f"acme/{name}").code == 0
    return tmp_path / "repository"


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str]) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, environ)
    yield mounter
    mounter.end()


@pytest.fixture(autouse=True)
def ended(tmp_path: Path) -> Iterator[None]:
    """What a bench that failed its test has left."""
    yield
    for pid in mounters_below(tmp_path):
        end_process(pid)
    for place in mounts_below(tmp_path):
        subprocess.run(["umount", "-l", str(place)], check=True)


def mounts_below(directory: Path) -> list[Path]:
    return [entry.mountpoint for entry in mountpoints.all_mounts() if entry.mountpoint.is_relative_to(directory)]


def mounters_below(directory: Path) -> list[int]:
    """Processes that serve a mount below directory, or are about to."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
        except OSError:
            continue
        if b"\0mount\0" in words and os.fsencode(directory) in words:
            found.append(int(entry.name))
    return found


@contextmanager
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Neither files nor mounts nor processes nor sockets more than there were."""
    def there() -> tuple[set[str], list[Path], list[int]]:
        return {str(path) for path in tmp_path.rglob("*")}, mounts_below(tmp_path), mounters_below(tmp_path)

    before = there()
    yield
    assert there() == before


def measured(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert isinstance(found, dict)
    for stage in found["stages"]:
        assert stage["bytes"] > 0 and stage["seconds"] > 0 and stage["bytes_per_s"] > 0
    return found


def sizes(found: dict[str, Any]) -> dict[str, int]:
    return {stage["name"]: stage["bytes"] for stage in found["stages"]}


def test_alone_it_measures_this_machine_without_a_network_and_leaves_nothing(modelfs: Run, tmp_path: Path,
                                                                             environ: dict[str, str]) -> None:
    with nothing_left(tmp_path):
        result = modelfs("bench", "--size", "16MiB", "--json", timeout=120)
    found = measured(result)
    bytes_of = sizes(found)
    assert list(bytes_of) == ["push", *STORE, *OWN_MOUNT]
    assert not found["network"] and "no network" in found["notes"][0]
    decoded = {bytes_of[name] for name in bytes_of if not name.startswith("store")}
    assert decoded == {16 * MiB}
    assert 0 < bytes_of["store_one"] + bytes_of["store"] < 16 * MiB
    assert found["limits"]["cold"].startswith("A cold read takes ")
    assert found["limits"]["warm"].startswith("A warm read takes ")
    assert found["mount"]["counters"]["warm"]["cache_misses"] == 0
    mountpoint = Path(found["mount"]["mountpoint"])
    assert mountpoint.is_relative_to(tmp_path) and not paths.socket_path(mountpoint, environ).exists()


def test_the_stages_of_a_repository_add_up_to_its_largest_file(modelfs: Run, repository: Path, tmp_path: Path) -> None:
    with FaultProxy(repository) as server, nothing_left(tmp_path):
        found = measured(modelfs("bench", server.url, "acme/large", "--json"))
    bytes_of = sizes(found)
    assert (found["model"], found["version"], found["file"]) == ("acme/large", "v1", "model.bin")
    assert found["network"] and found["repository"] == server.url and found["round_trip_ms"] > 0
    assert list(bytes_of) == [*STORE, *OWN_MOUNT]
    assert bytes_of["store_one"] + bytes_of["store"] == LARGE  # noise is stored as it is
    assert {bytes_of[name] for name in [*STORE[2:], *OWN_MOUNT]} == {LARGE}
    cold, warm = (found["mount"]["counters"][name] for name in ("cold", "warm"))
    assert cold["bytes_fetched"] >= LARGE and cold["opens"] == warm["opens"] == 1
    assert warm["bytes_fetched"] == 0


def test_no_stage_reads_more_than_the_size_given(modelfs: Run, repository: Path, tmp_path: Path) -> None:
    assert modelfs("push", "vast", "repository", "acme/vast").code == 0
    found = measured(modelfs("bench", repository, "acme/vast", "--size", "16MiB", "--json"))
    bytes_of = sizes(found)
    assert bytes_of["store_one"] + bytes_of["store"] == 16 * MiB
    assert {bytes_of[name] for name in [*STORE[2:], *OWN_MOUNT]} == {16 * MiB}
    assert not found["network"]


def test_without_a_model_the_largest_is_taken_and_people_get_a_table_and_two_sentences(
        modelfs: Run, repository: Path) -> None:
    result = modelfs("bench", repository)
    assert result.code == 0, result.err
    first, trip, *lines = result.out.splitlines()
    assert first == f"file://{repository} acme/large v1, model.bin" and trip.startswith("round trip ")
    assert lines[1].split() == ["stage", "what", "was", "measured", "size", "GB/s", "s", "per", "GB"]
    assert [line.split()[0] for line in lines[2:10]] == [*STORE, *OWN_MOUNT]
    assert lines[-2].startswith("A cold read takes ") and lines[-1].startswith("A warm read takes ")


def test_a_file_of_a_mount_is_read_twice_and_the_mounts_own_counters_are_shown(
        modelfs: Run, repository: Path, mount: Mounter, tmp_path: Path) -> None:
    with FaultProxy(repository) as server:
        mount(server.url)
        found = measured(modelfs("bench", "mnt", "acme/large/v1/model.bin", "--json"))
        assert sizes(found) == {"mount_first": LARGE, "mount_second": LARGE}
        first, second = (found["mount"]["counters"][name] for name in ("first", "second"))
        assert first["bytes_fetched"] >= LARGE and first["chunks_fetched"] >= 25
        assert second["bytes_fetched"] == second["cache_misses"] == 0
        assert "from there" in found["limits"]["cold"] and "second read" in found["limits"]["warm"]
        again = measured(modelfs("bench", tmp_path / "mnt", "--json"))
        assert again["file"] == "acme/large/v1/model.bin"  # the largest that is in it
        assert again["limits"]["cold"] is None and "no cold read was measured" in again["notes"][0]
        before = server.requests("packs/")
        assert modelfs("bench", "mnt", "acme/large/v1/model.bin").code == 0
        assert server.requests("packs/") == before
    assert mounts_below(tmp_path) == [tmp_path / "mnt"]


@pytest.mark.parametrize(("path", "code"), [("acme/large/v1/none", 3), ("acme/large", 2), ("../large/model.bin", 2)])
def test_what_is_no_file_of_the_mount_is_refused(modelfs: Run, repository: Path, mount: Mounter, path: str,
                                                 code: int) -> None:
    mount(repository)
    result = modelfs("bench", "mnt", path)
    assert (result.code, result.out) == (code, "") and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(("arguments", "settings", "code", "word"), [
    (("nowhere",), {}, 3, "no modelfs repository"), (("nowhere", "acme"), {}, 2, "not a model"),
    (("--size", "1MiB"), {}, 2, "at least 16 MiB"),
    (("http://127.0.0.1:1",), {"MODELFS_FETCH_DEADLINE": "300ms"}, 5, "does not answer"),
    ((), {"MODELFS_CACHE_MIN_FREE": "100%"}, 8, "768 MiB")])
def test_what_cannot_be_measured_is_one_line_with_its_exit_code_and_leaves_nothing(
        modelfs: Run, tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], code: int,
        word: str) -> None:
    with nothing_left(tmp_path):
        result = modelfs("bench", *arguments, env=settings)
    assert (result.code, result.out) == (code, "") and len(result.err.splitlines()) == 1
    assert word in result.err


def test_a_model_that_is_not_there_and_a_cache_that_is_too_small_are_told_before_anything_is_read(
        modelfs: Run, repository: Path, tmp_path: Path) -> None:
    with FaultProxy(repository) as server, nothing_left(tmp_path):
        for arguments, settings, code in ((("acme/none",), {}, 3), ((), {"MODELFS_CACHE_MIN_FREE": "100%"}, 8),
                                          ((), {"MODELFS_CACHE_SIZE": "1 MiB"}, 8)):
            result = modelfs("bench", server.url, *arguments, env=settings)
            assert (result.code, result.out) == (code, "") and len(result.err.splitlines()) == 1
        assert server.requests("packs/") == 0


@pytest.mark.parametrize(("kind", "options", "deadline", "code"),
                         [("flip", {"offset": 5}, "60s", 4), ("reset", {"after": 1000}, "500ms", 5)])
def test_a_store_that_gives_other_bytes_or_breaks_off_is_an_error_and_no_figure(
        modelfs: Run, repository: Path, tmp_path: Path, kind: str, options: dict[str, int], deadline: str,
        code: int) -> None:
    with FaultProxy(repository) as server, nothing_left(tmp_path):
        server.add(kind, "packs/", **options)
        result = modelfs("bench", server.url, env={"MODELFS_FETCH_DEADLINE": deadline})
    assert (result.code, result.out) == (code, "") and len(result.err.splitlines()) == 1


def test_where_nothing_can_be_mounted_it_says_so_and_shows_the_other_stages(repository: Path, tmp_path: Path,
                                                                            environ: dict[str, str]) -> None:
    command = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/fuse && exec "$@"', "sh",
               sys.executable, "-m", "modelfs", "bench", str(repository), "--json"]
    with nothing_left(tmp_path):
        done = subprocess.run(command, cwd=tmp_path, env={**environ, "PYTHONPATH": str(ROOT)}, text=True,
                              capture_output=True, timeout=60, check=False)
    found = measured(Result(done.returncode, done.stdout, done.stderr))
    assert list(sizes(found)) == STORE and found["mount"] is None
    assert found["limits"]["cold"].startswith("A cold read takes at least ") and found["limits"]["warm"] is None
    assert found["notes"][0].startswith("nothing was mounted: ")


def start(tmp_path: Path, environ: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "modelfs", "bench", *map(str, arguments)], cwd=tmp_path, text=True,
                            env={**environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "modelfs: interrupted\n")


def works(environ: dict[str, str]) -> list[Path]:
    return list(Path(environ["XDG_CACHE_HOME"]).glob("modelfs-bench-*"))


@pytest.mark.parametrize("moment", ["generating", "pushing", "mounting", "mounted"])
def test_ctrl_c_leaves_nothing_of_the_machines_own_measurement(tmp_path: Path, environ: dict[str, str],
                                                               moment: str) -> None:
    reached = {"generating": lambda: works(environ),
               "pushing": lambda: any(next(work.glob("repository/packs/*/*"), None) for work in works(environ)),
               "mounting": lambda: mounters_below(tmp_path), "mounted": lambda: mounts_below(tmp_path)}[moment]
    with nothing_left(tmp_path):
        process = start(tmp_path, environ, "--size", "96MiB")
        try:
            until(lambda: reached() or process.poll() is not None)
            interrupt(process)
        finally:
            process.kill()


def packs_before_the_mount(server: FaultProxy) -> int:
    """How many requests for packs come before the mount's own first one."""
    asked = [seen.path for seen in server.seen()]
    second = [number for number, path in enumerate(asked) if "modelfs.json" in path][1]
    return sum("packs/" in path for path in asked[:second])


@contextmanager
def hanging_bench(server: FaultProxy, modelfs: Run, tmp_path: Path, environ: dict[str, str],
                  where: str) -> Iterator[subprocess.Popen[str]]:
    """Its store hangs: "fetching", at the first pack, or "reading", once the mount is there and is read."""
    if where == "reading":
        measured(modelfs("bench", server.url, "--json"))
        server.add("drip", "packs/", times=packs_before_the_mount(server), piece=MiB, interval_s=0.0)
    hanging = server.add("hang", "packs/")
    process = start(tmp_path, environ, server.url)
    try:
        until(lambda: hanging.hits or process.poll() is not None)
        assert bool(mounts_below(tmp_path)) == (where == "reading")
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("where", ["fetching", "reading"])
def test_ctrl_c_while_the_store_hangs_leaves_nothing(modelfs: Run, repository: Path, tmp_path: Path,
                                                     environ: dict[str, str], where: str) -> None:
    with FaultProxy(repository) as server, nothing_left(tmp_path), \
            hanging_bench(server, modelfs, tmp_path, environ, where) as process:
        interrupt(process)


def test_a_bench_that_is_killed_takes_its_mount_with_it(modelfs: Run, repository: Path, tmp_path: Path,
                                                        environ: dict[str, str]) -> None:
    with FaultProxy(repository) as server, hanging_bench(server, modelfs, tmp_path, environ, "reading") as process:
        process.kill()
        process.communicate(timeout=30)
        until(lambda: not mounts_below(tmp_path) and not mounters_below(tmp_path))
