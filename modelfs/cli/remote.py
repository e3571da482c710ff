"""`modelfs remote`: the repositories that the configuration names, and how their mirrors are.

Rule: `ls` asks nobody; `check` asks each store once, and its exit code says whether all are well.
"""

from __future__ import annotations

from dataclasses import asdict

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import Unavailable


@click.group(epilog=examples("modelfs remote ls", "modelfs remote check lab"))
def command() -> None:
    """See the remotes of the configuration, and ask their stores how they are."""


@command.command(short_help="list the remotes of the configuration", epilog=examples("modelfs remote ls --json"))
@command_options()
def ls(session: Session) -> None:
    """List the remotes: a name for one repository and its mirrors, in order of preference."""
    remotes = list(session.config().remotes.values())
    session.output.document({"remotes": [{"name": remote.name, "urls": list(remote.urls),
                                          "token_file": str(remote.token_file) if remote.token_file else None}
                                         for remote in remotes]})
    session.output.table(("remote", "url"), [(remote.name if not number else "", url) for remote in remotes
                                             for number, url in enumerate(remote.urls)])
    if not remotes:
        session.output.note("no remotes: [remotes.NAME] urls = [...] in the configuration names one")


@command.command(short_help="ask the stores of remotes how they are", epilog=examples(
    "modelfs remote check", "modelfs remote check lab --json"))
@click.argument("name", nargs=-1)
@command_options()
def check(session: Session, name: tuple[str, ...]) -> None:
    """Ask each store of the remotes NAME (all without one) for its catalog: whether it answers, how soon, and how many
    changes it is behind the newest. Exit 5 where one does not, or sends what is wrong; lagging is no fault."""
    from modelfs.app import remotes

    config = session.config()
    found = {remote.name: remotes.check(config, remote) for remote in remotes.chosen(config, name)}
    session.output.document({"remotes": [{"name": remote, "stores": [asdict(one) for one in stores]}
                                         for remote, stores in found.items()]})
    session.output.table(("remote", "state", "latency", "serial", "behind", "url"),
                         [(remote if not number else "", one.state,
                           "-" if one.latency_ms is None else f"{one.latency_ms:.0f} ms",
                           "-" if one.serial is None else one.serial, "-" if one.behind is None else one.behind,
                           one.url)
                          for remote, stores in found.items() for number, one in enumerate(stores)],
                         right=("latency", "serial", "behind"))
    bad = [one for stores in found.values() for one in stores if one.state != "ok"]
    if bad:
        raise Unavailable("stores are not well", where=bad[0].url, why=bad[0].error or bad[0].state,
                          advice=f"{len(bad)} of {sum(map(len, found.values()))}: the table has them.")
