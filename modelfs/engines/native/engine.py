"""The native engine, as an `Engine`: mount, session, and what of both `status` shows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from modelfs.engines.device import check_fuse
from modelfs.engines.native import mounting
from modelfs.engines.native.session import Session, Settings
from modelfs.engines.native.state import State
from modelfs.engines.options import MountOptions
from modelfs.view.view import View


class Keeping(Protocol):
    """Whoever mounts, and keeps the mount, for a worker that may not be the first."""

    @property
    def state(self) -> State: ...

    def take(self, options: MountOptions) -> int: ...


class NativeEngine:
    """passthrough: whether whole files may be handed to the kernel. store_ahead: None where that depends on whether
    the kernel's own read-ahead can be raised, which takes root. keeping: None where we mount for ourselves. refused:
    flags of INIT not to be agreed on, as by an older kernel."""

    name = "native"

    def __init__(self, cache_directory: Path, *, passthrough: bool, store_ahead: bool | None = None,
                 keeping: Keeping | None = None, refused: int = 0) -> None:
        self._settings = Settings(cache_directory, passthrough,
                                  os.geteuid() != 0 if store_ahead is None else store_ahead, refused)
        self._keeping = keeping
        self._device = -1
        self._session: Session | None = None

    @property
    def passthrough(self) -> bool:
        return self._session is not None and self._session.passthrough

    @property
    def serving(self) -> bool:
        return self._session is not None and self._session.serving

    def check(self, options: MountOptions) -> None:
        if options.descriptor is None:
            check_fuse()

    def take(self, options: MountOptions) -> None:
        self._device = self._keeping.take(options) if self._keeping else mounting.mount(options)

    def serve(self, view: View) -> None:
        """The descriptor is closed by the end of the process: threads that still answer, after the mount has gone or
        for a successor, must not write into what has its number by then."""
        state = self._keeping.state if self._keeping else State.create()
        state.begin_epoch()
        self._session = Session(self._device, view, self._settings, state)
        self._session.serve()

    def leave(self, seconds: float) -> None:
        """Take no more requests, and answer those taken; returns when that is done, or after so long."""
        session = self._session
        if session is not None:
            session.leave()
            end = time.monotonic() + seconds
            while session.waiting and time.monotonic() < end:
                time.sleep(0.005)
