"""A plan of faults carried out on a fleet.

Rule: one server that has all that was pushed stays well at any time, except in a blackout; a fault that would take the
last one waits, and is left out where it would have to wait for long. Each is taken back, whatever happens.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.fleet.fleet import PRIMARY, SITE, Fleet, Server
from benchmarks.fleet.holdings import Holdings
from benchmarks.fleet.journal import Journal
from benchmarks.fleet.plan import BLACKOUT, MOUNT_KINDS, SERVER_KINDS, SITE_KINDS, Fault
from benchmarks.processes import Failed

_REPAIR_S = 60.0
_FLIPS = 4
_LOOK_S, _FED_BYTES = 0.5, 32 << 10
_WELL_WITHOUT = {*SERVER_KINDS, *SITE_KINDS, "flip"}  # kinds whose target no reader should have to do with


class Guard:
    """Who is in trouble, and whether one more may be."""

    def __init__(self, wholes: set[str], holds_all: Callable[[str], bool]) -> None:
        self._wholes, self._holds_all = wholes, holds_all
        self._changed = threading.Condition()
        self._busy: set[str] = set()  # guarded by _changed, as the next two
        self._unwell: set[str] = set()
        self._dark = False

    @contextmanager
    def trouble(self, target: str, unwell: bool, patience_s: float) -> Iterator[bool]:
        """Whether it may be, in the block."""
        def may() -> bool:
            others = self._wholes - self._unwell - {target}
            return not self._dark and target not in self._busy and (
                not unwell or any(self._holds_all(name) for name in others))

        with self._changed:
            granted = self._changed.wait_for(may, patience_s)
            if granted:
                self._busy.add(target)
                if unwell:
                    self._unwell.add(target)
        try:
            yield granted
        finally:
            if granted:
                with self._changed:
                    self._busy.discard(target)
                    self._unwell.discard(target)
                    self._changed.notify_all()

    @contextmanager
    def darkness(self) -> Iterator[None]:
        """Nothing else is wrong, and nothing else begins."""
        with self._changed:
            self._dark = True
            self._changed.wait_for(lambda: not self._busy)
        try:
            yield
        finally:
            with self._changed:
                self._dark = False
                self._changed.notify_all()


class Storm:
    """stopped: set to have all faults taken back at once."""

    def __init__(self, fleet: Fleet, journal: Journal, holdings: Holdings, seed: int, patience_s: float) -> None:
        """patience_s: how long a fault waits until it may be."""
        self._patience_s = patience_s
        self._fleet, self._net, self._journal = fleet, fleet.network, journal
        self._guard = Guard({server.name for server in fleet.wholes}, holdings.has_newest)
        self._rng = random.Random(seed)
        self.stopped = threading.Event()
        self._numbers = itertools.count(1)
        self._failures: list[BaseException] = []
        self._kinds: Mapping[str, Callable[[Fault], None]] = {
            "cut": self._cut, "narrow": self._narrow, "lossy": self._lossy, "kill": self._kill,
            "freeze": self._freeze, "partition": self._partition, "replication": self._replication,
            "flip": self._flip, "full": self._full, "empty": self._empty, "worker": self._worker, "away": self._away}

    def run(self, faults: list[Fault], seconds: float) -> None:
        """Raises what went wrong in carrying them out."""
        began, threads = time.monotonic(), list[threading.Thread]()
        try:
            for fault in faults:
                if self.stopped.wait(max(0.0, began + fault.at_s - time.monotonic())):
                    break
                threads.append(threading.Thread(target=self._carry_out, args=(fault,), name=fault.kind, daemon=True))
                threads[-1].start()
            self.stopped.wait(max(0.0, began + seconds - time.monotonic()))
            for thread in threads:
                thread.join(2 * _REPAIR_S)
        finally:
            self.stopped.set()
            for thread in threads:
                thread.join(_REPAIR_S)
        if self._failures:
            raise self._failures[0]

    def _carry_out(self, fault: Fault) -> None:
        try:
            if fault.kind == BLACKOUT:
                with self._guard.darkness():
                    self._noted(fault, self._blackout)
                return
            with self._guard.trouble(fault.target, fault.kind in _WELL_WITHOUT, self._patience_s) as granted:
                if granted:
                    self._noted(fault, self._kinds[fault.kind])
                else:
                    self._journal.note("left out", kind=fault.kind, target=fault.target)
        except BaseException as error:  # a thread's: `run` raises it
            self._failures.append(error)
            self.stopped.set()

    def _noted(self, fault: Fault, carry_out: Callable[[Fault], None]) -> None:
        servers, fed = list[str](), list[str]()
        if fault.kind == BLACKOUT:
            servers = list(self._fleet.servers)
        elif fault.kind in _WELL_WITHOUT:
            servers, fed = [fault.target], self._fed_by(self._fleet.servers[fault.target])
        elif fault.target in self._fleet.mounts:
            fed = [fault.target]
        number = next(self._numbers)
        self._journal.note("fault", id=number, kind=fault.kind, target=fault.target, unwell=servers, fed=fed,
                           away=[fault.target] if fault.kind in MOUNT_KINDS else [])
        try:
            carry_out(fault)
        finally:
            self._journal.note("over", id=number, kind=fault.kind, target=fault.target)

    def _fed_by(self, server: Server) -> list[str]:
        """The mounts that it sends more to than answers of "nothing new"."""
        def received() -> dict[str, int]:
            return {name: self._net.received_bytes(mount.host, server.host)
                    for name, mount in self._fleet.mounts.items()}
        before = received()
        self.stopped.wait(_LOOK_S)
        return [name for name, after in received().items() if after - before[name] > _FED_BYTES]

    def _for(self, fault: Fault, undo: Callable[[], object]) -> None:
        try:
            self.stopped.wait(fault.seconds)
        finally:
            undo()

    # each kind

    def _cut(self, fault: Fault) -> None:
        host = self._fleet.servers[fault.target].host
        self._net.cut(host)
        self._for(fault, lambda: self._net.join(host))

    def _narrow(self, fault: Fault) -> None:
        host = self._fleet.servers[fault.target].host
        self._net.narrow(host)
        self._for(fault, lambda: self._net.widen(host))

    def _lossy(self, fault: Fault) -> None:
        host = self._fleet.servers[fault.target].host
        self._net.lose(host)
        self._for(fault, lambda: self._net.keep(host))

    def _kill(self, fault: Fault) -> None:
        serving = self._fleet.servers[fault.target].serving
        serving.kill()
        self._for(fault, serving.start)

    def _freeze(self, fault: Fault) -> None:
        serving = self._fleet.servers[fault.target].serving
        serving.freeze()
        self._for(fault, serving.thaw)

    def _partition(self, fault: Fault) -> None:
        host, primary = self._fleet.servers[fault.target].host, self._fleet.servers[PRIMARY].host
        with ExitStack() as undo:
            for one, other in ((host, primary), (primary, host)):
                self._net.part(one, other)
                undo.callback(self._net.meet, one, other)
            self.stopped.wait(fault.seconds)

    def _replication(self, fault: Fault) -> None:
        keeping = self._fleet.servers[fault.target].keeping
        assert keeping is not None
        keeping.kill()
        self._for(fault, keeping.start)

    def _flip(self, fault: Fault) -> None:
        mirror = self._fleet.servers[fault.target]
        flip_bits(self._rng, mirror.directory / "packs")
        self.stopped.wait(fault.seconds)
        end = time.monotonic() + _REPAIR_S
        while not self._fleet.repaired(mirror):  # the primary may be in trouble itself
            if time.monotonic() > end:
                raise Failed(f"{mirror.name} was not repaired in {_REPAIR_S:.0f} s")
            time.sleep(0.5)

    def _full(self, fault: Fault) -> None:
        mirror: Server = self._fleet.servers[fault.target]
        ballast = mirror.directory.parent / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:  # it is full
                pass
        self._for(fault, ballast.unlink)

    def _empty(self, fault: Fault) -> None:
        serving = self._fleet.servers[SITE].serving
        serving.kill()
        self._fleet.emptied_site()
        self._for(fault, serving.start)

    def _worker(self, fault: Fault) -> None:
        os.kill(self._fleet.mounts[fault.target].status()["pid"], signal.SIGKILL)

    def _away(self, fault: Fault) -> None:
        host = self._fleet.mounts[fault.target].host
        self._net.cut(host)
        self._for(fault, lambda: self._net.join(host))

    def _blackout(self, fault: Fault) -> None:
        with ExitStack() as undo:
            for server in self._fleet.servers.values():
                self._net.cut(server.host)
                undo.callback(self._net.join, server.host)
            self.stopped.wait(fault.seconds)


def flip_bits(rng: random.Random, packs: Path) -> None:
    """Some, each in another pack if there are enough."""
    files = sorted(path for path in packs.rglob("*") if path.is_file())
    for path in rng.sample(files, min(_FLIPS, len(files))):
        fd = os.open(path, os.O_RDWR)
        try:
            at = rng.randrange(os.fstat(fd).st_size)
            os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1 << rng.randrange(8)]), at)
        finally:
            os.close(fd)
