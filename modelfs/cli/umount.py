"""`modelfs umount`: end a mount, and wait until its daemon has gone.

Rule: a plain umount of a busy mount changes nothing; --force always ends it.
"""

from __future__ import annotations

from pathlib import Path

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import BadInput


@click.command(epilog=examples("modelfs umount /mnt/models", "modelfs umount /mnt/models --force"))
@click.argument("mountpoint")
@click.option("--lazy", is_flag=True, help="Take it out of sight now; what is open lives on until it is closed.")
@click.option("--force", is_flag=True, help="Fail what still waits or reads, and end it in any case.")
@command_options(prints_json=False)
def command(session: Session, mountpoint: str, lazy: bool, force: bool) -> None:
    """End the mount at MOUNTPOINT."""
    if lazy and force:
        raise BadInput("--lazy and --force exclude each other")
    from modelfs import paths
    from modelfs.daemon import ending

    place = paths.canonical(Path(mountpoint))
    ending.unmount(place, paths.socket_path(place, session.environ),
                   "lazy" if lazy else "force" if force else "plain")
    session.output.note(f"unmounted {place}")
