"""`modelfs upgrade`: a running mount goes on under the modelfs that is installed now, and its readers notice nothing.

Rule: the old worker leaves only when the new one is ready; whatever stops that leaves everything as it was.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import NotFound, Unavailable

_TIMEOUT_S = 60.0
_TICK_S = 0.05


@click.command(epilog=examples("modelfs upgrade /mnt/models", "modelfs upgrade /mnt/models --json"))
@click.argument("mountpoint")
@command_options()
def command(session: Session, mountpoint: str) -> None:
    """Replace the process that serves MOUNTPOINT by a new one; open files and waiting reads go on.

    It takes a mount with --daemon and the native engine, and Linux 6.9 or later.
    """
    from modelfs import paths
    from modelfs.daemon import control

    place = paths.canonical(Path(mountpoint))
    socket = paths.socket_path(place, session.environ)
    try:
        before = control.ask(socket, {"op": "status"}).fields
        with suppress(Unavailable):  # the old one leaves without a word: that is how it goes
            control.ask(socket, {"op": "upgrade"}, _TIMEOUT_S)
        after = _status(socket, int(before["pid"]))
    except control.NoDaemon as error:
        raise NotFound("no mount of ours", where=str(place), advice="`modelfs status` lists them.") from error
    session.output.document({"mountpoint": str(place), "version": after["version"], "was": before["version"],
                             "pid": after["pid"]})
    session.output.line(f"{place} goes on under modelfs {after['version']} (was {before['version']}), "
                        f"pid {after['pid']}")


def _status(socket: Path, old_pid: int) -> dict[str, object]:
    """Of the new worker. Raises Unavailable where none comes."""
    from modelfs.daemon import control

    end = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < end:
        fields = control.ask(socket, {"op": "status"}).fields
        if fields["pid"] != old_pid:
            return fields
        time.sleep(_TICK_S)
    raise Unavailable("the mount was not upgraded", where=str(socket), why="the old process still serves it")
