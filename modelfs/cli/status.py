"""`modelfs status`: what is mounted, its cache, counters and stores.

Rule: only control sockets are asked, never the mounts: a mount that hangs does not hang its status.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.errors import ModelfsError, NotFound
from modelfs.units import show_size


@click.command(epilog=examples("modelfs status", "modelfs status /mnt/models --json"))
@click.argument("mountpoint", required=False)
@command_options()
def command(session: Session, mountpoint: str | None) -> None:
    """Show all mounts, or one in detail."""
    if mountpoint is None:
        mounts = _all(session)
        session.output.document({"mounts": mounts})
        session.output.table(("mountpoint", "repository", "engine", "pid", "cached", "state"),
                             [(at["mountpoint"], at["repository"], at["engine"], at["pid"],
                               show_size(at["cache"]["bytes"]), _state(at)) for at in mounts],
                             right=("pid", "cached"))
        if not mounts:
            session.output.note("nothing is mounted: `modelfs mount REPO MOUNTPOINT` does it")
    else:
        found = _one(session, Path(mountpoint))
        session.output.document(found)
        _show(session, found)


def _one(session: Session, mountpoint: Path) -> dict[str, Any]:
    from modelfs import paths
    from modelfs.daemon import control, mountpoints

    place = paths.canonical(mountpoint)
    entry = mountpoints.mount_at(place)
    if entry is None or not entry.ours:
        raise mountpoints.not_mounted(place)
    try:
        return control.ask(paths.socket_path(place, session.environ), {"op": "status"}).fields
    except control.NoDaemon as error:
        raise NotFound("the mount has no daemon", where=str(place), why="it died, or is another user's",
                       advice=f"`modelfs umount {place}` takes it away.") from error


def _all(session: Session) -> list[dict[str, Any]]:
    """Of every daemon that answers; one that cannot is a warning, and the sockets of dead ones are removed."""
    from modelfs.daemon import control

    mounts = []
    for socket in control.sockets(session.environ):
        try:
            mounts.append(control.ask(socket, {"op": "status"}).fields)
        except control.NoDaemon:
            with suppress(OSError):
                socket.unlink()
        except ModelfsError as error:
            session.output.warning(f"a mount does not say how it is, {socket}: {error}")
    return sorted(mounts, key=lambda at: str(at["mountpoint"]))


def _state(found: dict[str, Any]) -> str:
    return ", ".join(str(store["state"]) for store in found["stores"])


def _show(session: Session, found: dict[str, Any]) -> None:
    cache = found["cache"]
    rows = [(key, found[key]) for key in ("mountpoint", "repository", "engine", "pid", "version")]
    rows += [("up for", f"{found['uptime_s']:.0f} s"), ("cache", cache["directory"]),
             ("cached", f"{show_size(cache['bytes'])} of {show_size(cache['limit_bytes'])}, "
         f"in {counted(cache['files'], 'file')}"),
             ("pinned", show_size(cache["pinned_bytes"])), ("free on disk", show_size(cache["free_bytes"]))]
    for store in found["stores"]:
        latency = "" if store["latency_ms"] is None else f", {store['latency_ms']:.1f} ms"
        rows.append(("store", f"{store['url']}: {store['state']}{latency}, {counted(store['errors'], 'error')}"))
    session.output.table(("", ""), rows)
    session.output.line("")
    session.output.table(("counter", "value"), sorted(found["counters"].items()), right=("value",))
