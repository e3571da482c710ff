"""The simulation of a fleet, in a short form, and what its verdict stands on: the plan, the guard, the readers, the
network's faults, and that nothing is left of a run, whichever way it ended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounting import until

from benchmarks.fleet import plan as plans
from benchmarks.fleet.figures import Spread, figures
from benchmarks.fleet.journal import Event, Journal, read_events
from benchmarks.fleet.network import PREFIX, SCRATCH, Host, Network, network, remove_leftovers
from benchmarks.fleet.plan import ALL, BLACKOUT, plan
from benchmarks.fleet.publisher import fine_tuned, first_version
from benchmarks.fleet.readers import Read, reads_of
from benchmarks.fleet.storm import Guard, flip_bits
from benchmarks.simulation import short_settings, simulate

ROOT = Path(__file__).parents[1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")
KINDS = {*plans.SERVER_KINDS, *plans.MIRROR_KINDS, *plans.DISK_KINDS, *plans.SITE_KINDS, *plans.DAEMON_KINDS,
         *plans.MOUNT_KINDS}


# the whole


@needs_root
def test_no_byte_is_wrong_and_no_read_fails_while_a_server_lives_through_one_fault_of_each_kind() -> None:
    found = simulate(short_settings(seed=348))  # which spreads them over all servers
    assert found.unexpected == [] and found.details == []
    assert found.wrong == found.errors == 0 and found.good
    assert found.reads > 200 and found.bytes_compared > 1 << 20 and found.versions > 1
    assert set(found.fail_over) == {*KINDS, BLACKOUT} and found.left_out == 0
    assert all(found.sent_bytes.values()) and found.counters["failovers"] > 0
    assert left_by(os.getpid()) == []


# what is left


_RUN = """
import os, sys, time
from benchmarks.fleet.network import network, scratch_directory
from benchmarks.peers import MODELFS
from benchmarks.processes import interruptible, run
with interruptible(), scratch_directory() as scratch, network() as net:
    host = net.add("mount")
    (scratch / "config.json").write_text("{}")
    (scratch / "mnt").mkdir()
    environ = os.environ | {"XDG_STATE_HOME": str(scratch), "XDG_CONFIG_HOME": str(scratch)}
    run([*MODELFS, "init", str(scratch / "repository")], environ)
    run([*MODELFS, "push", str(scratch / "config.json"), str(scratch / "repository"), "acme/base"], environ)
    run(host.within(*MODELFS, "mount", scratch / "repository", scratch / "mnt", "--cache-dir", scratch / "cache",
                    "--daemon"), environ)
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def a_run() -> Iterator[subprocess.Popen[str]]:
    """Of one host with a daemon that has a keeper."""
    process = subprocess.Popen([sys.executable, "-c", _RUN], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        remove_leftovers()


def left_by(pid: int) -> list[str]:
    """Namespaces, with the processes in them, mounts and directories."""
    spaces = [line.split()[0] for line in output("ip", "netns", "list").splitlines()
              if line.startswith(f"{PREFIX}{pid}-")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{SCRATCH}{pid}-" in line]
    return [*spaces, *mounts, *map(str, Path(os.environ.get("TMPDIR", "/tmp")).glob(f"{SCRATCH}{pid}-*"))]


def with_words(word: str) -> list[str]:
    """Processes whose command line has it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] if word in line else []
    return found


@needs_root
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_was_interrupted_nor_at_the_next_start_of_one_that_was_killed(
        how: signal.Signals) -> None:
    with a_run() as process:
        assert len(left_by(process.pid)) == 4, "two namespaces, a mount and a directory"
        assert len(with_words(f"/{SCRATCH}{process.pid}-")) == 2, "a keeper and a worker"
        process.send_signal(how)
        process.wait(60)
        if how is signal.SIGKILL:
            assert left_by(process.pid)
            remove_leftovers()
        assert left_by(process.pid) == []
        assert with_words(f"/{SCRATCH}{process.pid}-") == []


@needs_root
def test_what_another_run_has_is_left_to_it() -> None:
    with network() as mine:
        mine.add("one")
        remove_leftovers()
        assert f"{PREFIX}{os.getpid()}-one" in output("ip", "netns", "list")


# the network


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def pair() -> Iterator[tuple[Network, Host, Host]]:
    with network() as made:
        yield made, made.add("one"), made.add("two")


_LISTEN = "import socket, sys; s = socket.create_server((sys.argv[1], 7000)); print('ready', flush=True)\n" \
          "while True: c = s.accept()[0]; c.sendall(b'x' * int(sys.argv[2])); c.close()"
_FETCH = "import socket, sys; c = socket.create_connection((sys.argv[1], 7000), 1); c.settimeout(1)\n" \
         "while c.recv(65536): pass"


@contextmanager
def listening(host: Host, size: int) -> Iterator[None]:
    """A server there that sends so many bytes."""
    process = subprocess.Popen(host.within(sys.executable, "-c", _LISTEN, host.address, str(size)),
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


def reaches(host: Host, other: Host) -> bool:
    return subprocess.run(host.within(sys.executable, "-c", _FETCH, other.address), stderr=subprocess.DEVNULL,
                          check=False).returncode == 0


@needs_root
def test_a_host_is_cut_off_and_joined_again(pair: tuple[Network, Host, Host]) -> None:
    net, one, two = pair
    with listening(two, 100_000):
        assert reaches(one, two)
        assert net.sent_bytes(two) > 100_000
        net.cut(two)
        assert not reaches(one, two)
        net.join(two)
        until(lambda: reaches(one, two))


@needs_root
def test_two_hosts_are_parted_while_a_third_reaches_both(pair: tuple[Network, Host, Host]) -> None:
    net, one, two = pair
    three = net.add("three")
    with listening(two, 1000):
        net.part(one, two)
        assert not reaches(one, two) and reaches(three, two)
        net.meet(one, two)
        until(lambda: reaches(one, two))


@needs_root
def test_a_narrow_link_and_a_lossy_one_still_carry_everything(pair: tuple[Network, Host, Host]) -> None:
    net, one, two = pair
    with listening(two, 3_000_000):
        net.narrow(two)
        assert reaches(one, two)
        assert int(output("tc", "-n", two.space, "-s", "qdisc", "show", "dev", "eth0").split("overlimits ")[1]
                   .split()[0]) > 0
        net.widen(two)
        net.lose(two)
        before = sent_again(two)
        until(lambda: reaches(one, two) and sent_again(two) > before)
        net.keep(two)
        assert "clsact" not in output("tc", "-n", f"{PREFIX}{os.getpid()}-bridge", "qdisc", "show")


def sent_again(host: Host) -> int:
    """Segments, over all connections of that host."""
    names, values = [line.split() for line in output(*host.within("cat", "/proc/net/snmp")).splitlines()
                     if line.startswith("Tcp:")]
    return int(dict(zip(names, values, strict=True))["RetransSegs"])


# the plan, and the guard


def a_plan(seed: int) -> list[plans.Fault]:
    return plan(seed, 200, servers=["a", "b", "c"], mirrors=["b", "c"], small="c", site="s", mounts=["m", "n"],
                daemons=["n"], every_s=3, blackouts=((50, 5),))


def test_a_seed_makes_one_plan_and_each_kind_comes_before_any_comes_again() -> None:
    assert a_plan(1) == a_plan(1) != a_plan(2)
    kinds = [fault.kind for fault in a_plan(1) if fault.kind != BLACKOUT]
    assert set(kinds[:len(KINDS)]) == set(kinds[len(KINDS):2 * len(KINDS)]) == KINDS
    assert [fault.target for fault in a_plan(1) if fault.kind == BLACKOUT] == [ALL]


def test_the_last_server_that_has_everything_is_not_taken() -> None:
    behind = {"b"}
    guard = Guard({"a", "b", "c"}, lambda name: name not in behind)
    with guard.trouble("c", True, 0) as first:
        assert first and not allowed(guard, "a") and not allowed(guard, "c")
        with guard.trouble("b", True, 0) as lagging, guard.trouble("site", False, 0) as harmless:
            assert lagging and harmless
    behind.clear()
    with guard.trouble("c", True, 0) as first, guard.trouble("a", True, 0) as second:
        assert first and second


def test_a_blackout_waits_for_other_troubles_and_lets_none_begin() -> None:
    guard, dark, release = Guard({"a", "b"}, lambda name: True), threading.Event(), threading.Event()

    def blackout() -> None:
        with guard.darkness():
            dark.set()
            release.wait(30)

    with guard.trouble("a", True, 0) as granted:
        assert granted
        thread = threading.Thread(target=blackout, daemon=True)
        thread.start()
        until(lambda: not allowed(guard, "b"))
        assert not dark.is_set()
    assert dark.wait(30) and not allowed(guard, "a")
    release.set()
    thread.join(30)
    assert allowed(guard, "a")


def allowed(guard: Guard, target: str) -> bool:
    with guard.trouble(target, True, 0) as granted:
        return granted


# the verdict


def read(began: float, ended: float, *, version: str = "v1", wrong: int = 0, error: int | None = None,
         mount: str = "m") -> Read:
    return Read(mount, began, ended, "pread", version, 100, wrong, error, ended - began)


def fault(number: int, begin: float, end: float, *unwell: str, away: tuple[str, ...] = (), kind: str = "cut",
          fed: tuple[str, ...] = ()) -> list[Event]:
    return [{"t": begin, "event": "fault", "id": number, "kind": kind, "target": unwell[0] if unwell else away[0],
             "unwell": list(unwell), "away": list(away), "fed": list(fed)},
            {"t": end, "event": "over", "id": number, "kind": kind}]


HELD: list[Event] = [{"t": 0, "event": "holds", "server": server, "version": 1} for server in ("a", "b")]


@pytest.mark.parametrize(("events", "error_at", "version", "excused"), [
    (fault(1, 10, 20, "a"), (12, 32), "v1", False),                             # b was well
    ([*fault(1, 10, 20, "a"), *fault(2, 15, 25, "b")], (12, 32), "v1", True),   # from 15 to 20 none was
    ([*fault(1, 10, 20, "a"), *fault(2, 20, 25, "b")], (12, 32), "v1", False),  # one after the other
    ([*fault(1, 10, 20, "a"), *fault(2, 15, 25, "b")], (21, 22), "v1", True),   # remembered
    ([*fault(1, 10, 20, "a"), *fault(2, 15, 25, "b")], (23, 24), "v1", False),
    ([{"t": 5, "event": "holds", "server": "a", "version": 2}, *fault(1, 10, 20, "a")], (12, 32), "v2", True),
    ([{"t": 5, "event": "holds", "server": "a", "version": 2}, *fault(1, 10, 20, "a"),
      {"t": 25, "event": "holds", "server": "b", "version": 2}], (12, 32), "v2", True),  # b had it too late
    (fault(1, 10, 20, away=("m",)), (12, 32), "v1", True),
    (fault(1, 10, 20, away=("n",)), (12, 32), "v1", False),
])
def test_an_error_is_excused_only_where_no_server_was_well_that_had_the_version(
        events: list[Event], error_at: tuple[float, float], version: str, excused: bool) -> None:
    found = figures([*HELD, *events], [read(*error_at, version=version, error=5)], {}, {})
    assert (found.errors, found.dark_errors) == ((0, 1) if excused else (1, 0))
    assert found.good is excused
    assert len(found.details) == (not excused)


def test_a_wrong_byte_is_never_excused() -> None:
    found = figures([*HELD, *fault(1, 0, 50, "a", "b")], [read(1, 2, wrong=3)], {}, {})
    assert found.wrong == 3 and not found.good and len(found.details) == 1


def test_failing_over_is_timed_at_the_mounts_that_the_server_fed() -> None:
    reads = [read(9, 10.5), read(9, 14), read(10.9, 12), read(12, 20), read(9, 19, mount="n")]
    found = figures([*HELD, *fault(1, 10, 15, "a", fed=("m",))], reads, {}, {})
    over = found.fail_over["cut"]
    assert (over.faults, over.next_read.median, over.all_met.median) == (1, 0.5, 4)
    assert Spread.of([*range(1, 201)]) == Spread(200, 100.5, 198, 200)


# the readers


@contextmanager
def reading(model: Path, originals: Path, log: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.fleet.reader", model, originals, log, kind, "1", "1"],
                               cwd=ROOT, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """Two versions as a mount would show them, in files; `originals` beside it."""
    originals = tmp_path / "originals"
    originals.mkdir()
    first_version(originals / "v1")
    fine_tuned(originals / "v1", originals / "v2", 2)
    model = Path(shutil.copytree(originals, tmp_path / "model"))
    (model / "latest").symlink_to("v2")
    (model / "prod").symlink_to("v1")
    return model


@pytest.mark.parametrize("kind", ["calls", "mapped"])
def test_readers_find_each_bit_that_is_not_as_it_was_pushed(shown: Path, tmp_path: Path, kind: str) -> None:
    with reading(shown, tmp_path / "originals", tmp_path / f"m-{kind}", kind) as process:
        until(lambda: len(reads_of(tmp_path)) > 200)
        assert not [each for each in reads_of(tmp_path) if each.wrong or each.error is not None]
        for path in shown.glob("v*/*"):
            data = bytearray(path.read_bytes())
            data[::4096] = bytes(255 - each for each in data[::4096])
            with path.open("r+b") as file:  # in place: a reader that maps it meanwhile must not find it empty
                file.write(data)
        until(lambda: any(each.wrong for each in reads_of(tmp_path)))
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0, "it ends with whoever started it"


def test_a_reader_tells_a_tag_that_goes_back_and_a_file_that_is_missing(shown: Path, tmp_path: Path) -> None:
    with reading(shown, tmp_path / "originals", tmp_path / "m-calls", "calls"):
        until(lambda: sum(each.what == "tag" for each in reads_of(tmp_path)) > 5)
        (tmp_path / "fresh").symlink_to("v1")
        (tmp_path / "fresh").rename(shown / "latest")
        until(lambda: any(each.what == "tag" and each.wrong for each in reads_of(tmp_path)))
        (shown / "v1" / "config.json").unlink()
        until(lambda: any(each.error == 2 for each in reads_of(tmp_path)))


def test_flipped_bits_are_in_as_many_packs_as_there_are(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(1000))
    flip_bits(random.Random(1), tmp_path)
    assert all(sum(each.bit_count() for each in (tmp_path / name).read_bytes()) == 1 for name in "abc")


def test_a_journal_is_read_up_to_the_line_that_was_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events")
    journal.note("one", x=1)
    journal.close()
    with (tmp_path / "events").open("a") as file:
        file.write('{"t": 1, "ev')
    assert [event["event"] for event in read_events(tmp_path / "events")] == ["one"]
