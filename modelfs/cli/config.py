"""`modelfs config`: the settings that hold and where each comes from; having a running mount read them again.

Rule: what is shown is what every other command and mount started now would get.
"""

from __future__ import annotations

from pathlib import Path

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import NotFound


@click.group(no_args_is_help=False, epilog=examples("modelfs config show", "modelfs config reload /mnt/models"))
def command() -> None:
    """Show the configuration, or have a mount read it again."""


@command.command(short_help="show every setting and its source", epilog=examples(
    "modelfs config show", "MODELFS_CACHE_SIZE=5% modelfs config show --json"))
@command_options()
def show(session: Session) -> None:
    """Show every setting, its value and where it comes from.

    Later wins: built in, /etc/modelfs/config.toml, the user's config.toml, --config, the environment, flags.
    """
    settings = session.config().show()
    session.output.document(settings)
    session.output.table(("key", "value", "source"),
                         [(key, _as_written(at["value"]), at["source"]) for key, at in settings.items()])


@command.command(short_help="have a mount read its settings again", epilog=examples(
    "modelfs config reload /mnt/models", "modelfs config reload /mnt/models --json"))
@click.argument("mountpoint")
@command_options()
def reload(session: Session, mountpoint: str) -> None:
    """Have the mount at MOUNTPOINT read its configuration again.

    What can change live is applied; what needs a remount is named. A configuration with a fault in it changes nothing.
    """
    from modelfs import paths
    from modelfs.daemon import control

    place = paths.canonical(Path(mountpoint))
    try:
        done = control.ask(paths.socket_path(place, session.environ), {"op": "reload"}).fields
    except control.NoDaemon as error:
        raise NotFound("no mount of ours", where=str(place), advice="`modelfs status` lists them.") from error
    session.output.document({"mountpoint": str(place), **done})
    session.output.line(f"applied: {', '.join(done['applied']) or 'nothing new'}")
    if done["needs_remount"]:
        session.output.line(f"needs a remount: {', '.join(done['needs_remount'])}")


def _as_written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
