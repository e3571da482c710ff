"""The life of a mount's process: mount, say so once it answers, wait for a signal or the end, leave nothing behind.

Rule: signals are taken by the main thread alone, in sigwait: every other thread blocks them, because a Python
handler runs only when the main thread does, and an engine may keep it in C for as long as the mount lives.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelfs.daemon import mountpoints
from modelfs.daemon.control import ControlServer, Handler, Listening
from modelfs.daemon.kept import KeeperLink
from modelfs.daemon.signals import TAKEN, WAKE, threads_without_signals
from modelfs.engines.engine import Engine, raise_readahead
from modelfs.engines.options import MountFailed, MountOptions
from modelfs.errors import BadInput, Conflict, ModelfsError, NotFound
from modelfs.logs import log_event, logger_for
from modelfs.view.view import View

_LOG = logger_for(__name__)
_MOUNT_TIMEOUT_S = 20.0
_GRACE_S = 4.0  # with the second after an abort, within the five that a leaving mount may take
_FORCED_GRACE_S = 1.0
_HAND_OVER_S = 5.0
SWITCH_INTERVAL_S = 2e-4
"""A busy Python thread cuts cached reads from 2.16 to 0.16 GB/s at the default 5 ms, to 0.93 with this."""


class Waiters(Protocol):
    """reading.reader.Reader, as leaving needs it."""

    def fail_waiting(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Mount:
    """What is mounted, and by what. reload: reads the configuration again; the answer's fields.
    status: the fields of `status`. mounted: called once, when the mount answers. handlers: what else the control
    socket answers. keeper: of a daemon's worker."""

    options: MountOptions
    socket: Path
    view: View
    engine: Engine
    waiters: Waiters
    status: Callable[[], dict[str, Any]]
    reload: Callable[[], dict[str, Any]]
    mounted: Callable[[], None]
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    keeper: KeeperLink | None = None


def serve(mount: Mount) -> None:
    """Until it is unmounted, from outside or by a signal. Only from the main thread.

    Every thread that was started before was started within `threads_without_signals`. Raises MountFailed,
    Forbidden.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as undo:
        undo.enter_context(_signals())
        if mount.keeper is None:
            listening = Listening.begin(mount.socket)
            undo.callback(listening.hide)
            mount.engine.take(mount.options)
        else:
            mount.engine.take(mount.options)
            listening = mount.keeper.listening()  # it outlives us: the keeper closes it
        running = _Running(mount, listening)
        if mount.keeper is None:
            undo.callback(running.close_control)
            undo.callback(running.leave)
        running.mount_and_wait()
        mount.mounted()
        running.wait_for_the_end()


@contextmanager
def _signals() -> Iterator[None]:
    """A signal that is ignored (nohup) never reaches sigwait; one with a handler does, and the handler never runs."""
    before = {number: signal.signal(number, lambda *_: None) for number in TAKEN}
    try:
        with threads_without_signals():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Running:
    def __init__(self, mount: Mount, listening: Listening) -> None:
        self._mount = mount
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._forced = self._left = False
        self._handing_over = False  # our engine's end is not the mount's
        self._device: int | None = None  # the mount's minor number, once it is known
        self._reloading = threading.Lock()
        self._control = ControlServer(listening, {**mount.handlers, "status": lambda _: mount.status(),
                                                  "reload": self._reload, "umount": self._umount,
                                                  "upgrade": self._upgrade})
        if mount.keeper is not None:
            mount.keeper.listen(self._hand_over)

    def close_control(self) -> None:
        self._control.close()

    def mount_and_wait(self) -> None:
        """Returns when a path in the mount has been listed. Raises MountFailed."""
        answers = threading.Event()
        changed = threading.Condition()

        def tell(event: threading.Event) -> None:
            with changed:
                event.set()
                changed.notify_all()

        with _stderr_kept() as said:
            threading.Thread(target=self._run_engine, args=(tell,), name="engine", daemon=True).start()
            probe = self._probe if self._mount.options.descriptor is None else self._probe_engine
            if self._mount.keeper is not None and self._mount.keeper.begun:
                # a lazy umount may have taken it out of sight, and another mount may stand there now
                self._device, probe = self._mount.keeper.device, self._probe_engine
            threading.Thread(target=probe, args=(lambda: tell(answers),), name="probe", daemon=True).start()
            with changed:
                changed.wait_for(lambda: answers.is_set() or self._ended.is_set(), _MOUNT_TIMEOUT_S)
            if not answers.is_set():
                raise self._mount_failed(said())

    def wait_for_the_end(self) -> None:
        while self._handing_over or not self._ended.is_set():
            number = signal.sigwait(TAKEN)
            if number == signal.SIGHUP:
                self._reload_logged()
            elif number == signal.SIGUSR2:
                threading.Thread(target=self._upgrade_logged, name="upgrade", daemon=True).start()
            elif number in (signal.SIGTERM, signal.SIGINT) or self._forced:
                self.leave()
                break
        if self._mount.keeper is not None:
            self._mount.keeper.ending()
        where = str(self._mount.options.mountpoint)
        if self._failure is not None:
            log_event(_LOG, "error", "mount.failed", mountpoint=where, error=self._failure)
            raise MountFailed("the mount has failed", where=where,
                              why=f"{type(self._failure).__name__}: {self._failure}") from self._failure
        log_event(_LOG, "info", "mount.ended", mountpoint=where)

    def _run_engine(self, tell: Callable[[threading.Event], None]) -> None:
        try:
            self._mount.engine.serve(self._mount.view)
        except Exception as error:  # raised again, or logged, by the main thread
            self._failure = error
        finally:
            tell(self._ended)
            with suppress(ProcessLookupError):
                signal.pthread_kill(self._main, WAKE)

    def _probe(self, answers: Callable[[], None]) -> None:
        """Asks the mount as a user would. A thread of its own, because whoever asks may have to wait."""
        mountpoint = self._mount.options.mountpoint
        while not self._ended.wait(0.002):
            entry = mountpoints.mount_at(mountpoint)
            if entry is not None and entry.ours:
                try:
                    device = os.stat(mountpoint).st_dev
                    os.listdir(mountpoint)
                except OSError as error:
                    log_event(_LOG, "warning", "mount.probe", mountpoint=mountpoint, error=error)
                    continue
                raise_readahead(device)
                self._device = entry.device
                answers()
                return

    def _probe_engine(self, answers: Callable[[], None]) -> None:
        """Where it is mounted only who mounted it knows."""
        while not self._ended.wait(0.002):
            if self._mount.engine.serving:
                answers()
                return

    def _mount_failed(self, said: str) -> ModelfsError:
        where = str(self._mount.options.mountpoint)
        if self._failure is None:
            self._detach()
            return MountFailed("cannot mount", where=where, why="the mount does not answer")
        if "user_allow_other" in said:
            return BadInput("cannot mount for other users", where=where, why="/etc/fuse.conf does not allow it",
                            advice="Write user_allow_other into it, or leave --allow-other away.")
        if isinstance(self._failure, ModelfsError) and not said:
            return self._failure
        return MountFailed("cannot mount", where=where, why=said or f"{type(self._failure).__name__}: {self._failure}")

    def leave(self) -> None:
        """Unless it has ended: busy or not. What is open gets EIO for what is not cached, and ENOTCONN once we are
        gone. Once."""
        if self._left or self._ended.is_set():
            return
        self._left = True
        if self._mount.keeper is not None:
            self._mount.keeper.ending()
        self._mount.waiters.fail_waiting("the mount is going")
        if self._mount.options.descriptor is not None:
            return  # it is not ours to unmount; our end cuts it off
        self._detach()
        if not self._ended.wait(_FORCED_GRACE_S if self._forced else _GRACE_S) and self._device is not None:
            mountpoints.abort(self._device)
            self._ended.wait(1.0)

    def _detach(self) -> None:
        mountpoint = self._mount.options.mountpoint
        entry = mountpoints.mount_at(mountpoint)
        if entry is not None and self._device not in (None, entry.device):
            return  # ours was detached before, and this is another
        try:
            mountpoints.detach(mountpoint, lazy=False)
        except Conflict:
            with suppress(NotFound):
                mountpoints.detach(mountpoint, lazy=True)
        except NotFound:
            pass  # somebody was faster
        except ModelfsError as error:
            log_event(_LOG, "error", "mount.detach", mountpoint=mountpoint, error=error)

    def _umount(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request.get("how") == "lazy":
            mountpoints.detach(self._mount.options.mountpoint, lazy=True)
            self._control.hide()
        elif request.get("how") == "force":
            self._forced = True
            self._mount.waiters.fail_waiting("the mount was ended by force")
            signal.pthread_kill(self._main, WAKE)
        else:
            raise BadInput("how to unmount", why="lazy or force")
        return {}

    def _upgrade(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer is our end; what keeps us from it is raised."""
        if self._mount.keeper is None:
            raise Conflict("cannot upgrade", where=str(self._mount.options.mountpoint),
                           why="only a mount with --daemon and the native engine can go on under a new worker")
        self._mount.keeper.upgrade()
        raise Conflict("the new worker does not get ready", where=str(self._mount.options.mountpoint))

    def _upgrade_logged(self) -> None:
        try:
            self._upgrade({})
        except ModelfsError as error:
            log_event(_LOG, "error", "upgrade.refused", why=str(error), key=None)

    def _hand_over(self) -> None:
        """A successor is ready. What is taken meanwhile and not answered, the kernel sends to it again."""
        self._handing_over = True
        self._mount.engine.leave(_HAND_OVER_S)
        log_event(_LOG, "info", "worker.left", mountpoint=self._mount.options.mountpoint)
        os._exit(0)  # without taking anything down that the successor needs

    def _reload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._reloading:
            return self._mount.reload()

    def _reload_logged(self) -> None:
        try:
            done = self._reload({})
        except ModelfsError as error:
            log_event(_LOG, "error", "config.refused", why=str(error), key=None)
        else:
            log_event(_LOG, "info", "config.reloaded", **done)


@contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Keep what libfuse and fusermount print, to make one line of it; what else came is passed on at the end.

    Yields a function for what was printed so far, which is then not passed on.
    """
    taken = False
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)

        def said() -> str:
            nonlocal taken
            taken = True
            kept.seek(0)
            return " ".join(kept.read(1 << 16).decode(errors="replace").split())

        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            if not taken:
                kept.seek(0)
                os.write(2, kept.read())
