"""The keeper of a mount: it mounts, holds the FUSE descriptor, the control socket and what must outlive a worker, and
sees to it that a worker serves. So a worker's death, or its replacement, does not reach readers.

Rule: it stays small, imports nothing heavy, and touches no repository: what could crash is the worker's.
It is forked from the command that mounts, and the first worker from it, which is half of a mount's start: with three
interpreters it took 0.8 s. What workers tell it is in kept.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelfs.daemon import control, mountpoints
from modelfs.daemon.background import ReadyPipe, Relayed
from modelfs.daemon.forking import Forked
from modelfs.engines.native import mounting
from modelfs.engines.native.state import State
from modelfs.engines.options import MountOptions
from modelfs.errors import ModelfsError
from modelfs.logs import log_event, logger_for

_LOG = logger_for("modelfs.daemon.keeper")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_DEATHS, _DEATHS_WITHIN_S = 5, 60.0
_LEAVE_S = 10.0
_MAX_MESSAGE = 1 << 16
_FORWARDED = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


class _Worker:
    """One worker process."""

    def __init__(self, arguments: list[str], state: State, run: Callable[[list[str]], int] | None) -> None:
        """arguments: of `modelfs mount`. run: takes those of `modelfs` here; None for the modelfs that is installed
        now."""
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            kept = (theirs.fileno(), *state.descriptors)
            command = ["mount", f"--kept={','.join(map(str, kept))}", *arguments]
            self.process: Forked | subprocess.Popen[bytes] = Forked(lambda: run(command), kept) if run else \
                subprocess.Popen([sys.executable, "-P", "-m", "modelfs", *command], stdin=subprocess.DEVNULL,
                                 pass_fds=kept)
        self.pidfd = os.pidfd_open(self.process.pid)
        self.waits: MountOptions | None = None  # has asked for the descriptor, and has not got it yet

    def tell(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        with suppress(OSError):  # it may be dead; its pidfd says so
            socket.send_fds(self.link, [json.dumps(message).encode()], list(descriptors))

    def close(self) -> int:
        """Its exit code."""
        code = self.process.wait()
        os.close(self.pidfd)
        self.link.close()
        return code


class Keeper:
    def __init__(self, ready: ReadyPipe, socket_path: Path, repo: str, mountpoint: Path, arguments: list[str]) -> None:
        """arguments: options of `modelfs mount`, for every worker."""
        self._ready, self._socket_path, self._repo, self._mountpoint = ready, socket_path, repo, mountpoint
        self._arguments = arguments
        self._state = State.create()
        self._device: int | None = None
        self._minor = -1  # of the mount, in the kernel's table
        self._listening: control.Listening | None = None
        self._serving = False  # a worker has said that the mount answers
        self._ending = False  # the mount is being taken away: nobody is started any more
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._pause_s = _FIRST_PAUSE_S
        self._start_at_s: float | None = None
        self._kill_at_s: float | None = None
        self._worker: _Worker | None = None
        self._next: _Worker | None = None
        self._asker: _Worker | None = None  # who asked for an upgrade, and is to be told what became of it

    def run(self, command: Callable[[list[str]], int]) -> int:
        """Until the mount is gone. The exit code. command: what `modelfs` does with its arguments; in the first worker.
        """
        signals, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_FORWARDED, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)
        self._worker = self._start(command)
        while True:
            code = self._step(signals)
            if code is not None:
                return code

    def _step(self, signals: int) -> int | None:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        if self._device is not None and self._worker is None:  # a worker tells of its end by its own
            poll.register(self._device, 0)  # POLLERR alone: the connection is gone
        workers = [worker for worker in (self._worker, self._next) if worker is not None]
        for worker in workers:
            poll.register(worker.pidfd, select.POLLIN)
            poll.register(worker.link, select.POLLIN)
        events = dict(poll.poll(self._timeout_ms()))
        if signals in events:
            for number in os.read(signals, 64):
                self._signalled(signal.Signals(number))
        for worker in workers:
            if worker.link.fileno() in events:
                self._hear(worker)
            if worker.pidfd in events and (code := self._died(worker)) is not None:
                return code
        if self._worker is None and (self._ending or self._device in events):
            return self._over(0)
        now = time.monotonic()
        if self._kill_at_s is not None and now >= self._kill_at_s and self._worker is not None:
            self._kill_at_s = None
            self._worker.process.kill()
        if self._start_at_s is not None and now >= self._start_at_s:
            self._start_at_s = None
            self._worker = self._start()
        return None

    def _timeout_ms(self) -> float | None:
        times = [at for at in (self._start_at_s, self._kill_at_s) if at is not None]
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    def _start(self, command: Callable[[list[str]], int] | None = None) -> _Worker:
        return _Worker([*self._arguments, "--", self._repo, str(self._mountpoint)], self._state, command)

    # what workers say

    def _hear(self, worker: _Worker) -> None:
        """All that it has said: of a worker that has ended nothing is heard afterwards."""
        with suppress(BlockingIOError, ConnectionResetError):
            while data := worker.link.recv(_MAX_MESSAGE, socket.MSG_DONTWAIT):  # its end is told by its pidfd
                self._told(worker, json.loads(data))

    def _told(self, worker: _Worker, message: dict[str, Any]) -> None:
        match message["op"]:
            case "take":
                worker.waits = MountOptions(self._mountpoint, message["source"], message["allow_other"])
                if worker is self._worker:
                    self._give(worker)
                else:
                    self._replace()
            case "ready":
                if not self._serving:
                    self._ready.ready()
                self._serving, self._pause_s = True, _FIRST_PAUSE_S
            case "say":
                self._ready.say(message["line"])
            case "failed":
                self._refused(worker, Relayed(message["error"], message["exit_code"]))
            case "ending":
                self._ending = True
            case "upgrade":
                self._upgrade(worker)

    def _give(self, worker: _Worker) -> None:
        """The descriptor and the control socket's listener; mounted and made for the first."""
        assert worker.waits is not None
        try:
            if self._device is None:
                self._device = mounting.mount(worker.waits)
                entry = mountpoints.mount_at(self._mountpoint)
                self._minor = entry.device if entry is not None else -1
                if worker.waits.source.startswith("file://"):
                    self._repo = worker.waits.source  # a relative path means nothing to later workers
            if self._listening is None:
                self._listening = control.Listening.begin(self._socket_path)
        except ModelfsError as error:
            worker.tell({"op": "refused", "error": str(error), "exit_code": error.exit_code})
            return
        worker.waits = None
        worker.tell({"op": "taken", "device": self._minor, "inode": self._listening.inode},
                    (self._device, self._listening.socket.fileno()))

    def _refused(self, worker: _Worker, error: Relayed) -> None:
        """A worker could not begin. The first: so the mount fails. Another: it counts as a death, or as a failed
        upgrade."""
        if not self._serving:
            self._ready.failed(error)
        if worker is self._next and self._asker is not None:
            self._asker.tell({"op": "upgraded", "error": str(error), "exit_code": error.exit_code})
            self._asker = None

    # deaths

    def _died(self, worker: _Worker) -> int | None:
        """The keeper's exit code where this was the end of the mount."""
        self._hear(worker)
        code = worker.close()
        if worker is self._next:
            self._next = None
            log_event(_LOG, "error", "worker.upgrade_failed", exit_code=code)
            if self._asker is not None:
                self._asker.tell({"op": "upgraded", "exit_code": 1, "error": "the new worker ended too early"})
                self._asker = None
            return None
        self._worker, self._kill_at_s = None, None
        if self._next is not None and not self._ending:  # it left for its successor, or died while that came up
            self._worker, self._next = self._next, None
            if self._worker.waits is not None:
                self._give(self._worker)
            return None
        if not self._serving or self._ending or self._device is None or self._gone():
            return self._over(code if not self._serving else max(0, code))
        if not self._can_resend():
            log_event(_LOG, "error", "worker.died", exit_code=code, mountpoint=self._mountpoint,
                      why="this kernel does not send again what it had taken: who waits for that would wait for ever")
            return self._over(1)
        self._deaths.append(time.monotonic())
        if len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _DEATHS_WITHIN_S:
            log_event(_LOG, "error", "worker.given_up", deaths=_DEATHS, within_s=_DEATHS_WITHIN_S, exit_code=code,
                      mountpoint=self._mountpoint)
            return self._over(1)
        log_event(_LOG, "error", "worker.died", exit_code=code, mountpoint=self._mountpoint, again_in_s=self._pause_s,
                  key=str(len(self._deaths)))
        self._start_at_s = time.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return None

    def _can_resend(self) -> bool:
        agreed = self._state.agreed()
        return agreed is not None and agreed.resend

    def _gone(self) -> bool:
        """Whether the kernel has closed the connection: unmounted, or aborted."""
        assert self._device is not None
        poll = select.poll()
        poll.register(self._device, 0)
        return bool(poll.poll(0))

    def _over(self, code: int) -> int:
        """Nothing of the mount is left when this returns."""
        self._ending = True
        for worker in (self._worker, self._next):
            if worker is not None:
                worker.process.kill()
                worker.close()
        if self._listening is not None:
            self._listening.hide()
        if self._device is not None:
            entry = mountpoints.mount_at(self._mountpoint)
            if not self._gone() and entry is not None and entry.device == self._minor:
                with suppress(ModelfsError):  # after a lazy umount another mount may stand there, which is not ours
                    mountpoints.detach(self._mountpoint, lazy=True)
            os.close(self._device)
        return code if code >= 0 else 1

    # signals and upgrades

    def _signalled(self, number: signal.Signals) -> None:
        if number == signal.SIGUSR2:
            if self._worker is not None:
                self._upgrade(None)
        elif self._worker is not None:
            self._worker.process.send_signal(number)
            if number != signal.SIGHUP:
                self._ending = True
                self._kill_at_s = time.monotonic() + _LEAVE_S
        elif number != signal.SIGHUP:
            self._ending = True  # nobody is there to answer whoever waits: the mount is over

    def _upgrade(self, asker: _Worker | None) -> None:
        """asker: who is told should it fail; when it succeeds, its end tells."""
        if self._next is not None or not self._serving or self._ending or not self._can_resend():
            if asker is not None:
                why = "another is under way" if self._next is not None else \
                    "this kernel cannot send requests again (Linux 6.9 and later can)"
                asker.tell({"op": "upgraded", "error": f"cannot upgrade: {why}", "exit_code": 7})
            return
        self._asker = asker
        self._next = self._start()

    def _replace(self) -> None:
        """The new worker has all it needs but the descriptor: the old one may leave, and its end is the new one's
        beginning."""
        if self._worker is not None:
            log_event(_LOG, "info", "worker.replaced", pid=self._worker.process.pid)
            self._worker.tell({"op": "leave"})
            self._kill_at_s = time.monotonic() + _LEAVE_S
