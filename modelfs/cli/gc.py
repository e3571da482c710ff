"""`modelfs gc`: free what no version needs.

Rule: without --grace nothing is deleted that a reader or a push of the last seven days may need.
"""

from __future__ import annotations

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.units import parse_time, show_size, show_time


@click.command(epilog=examples("modelfs gc /srv/models --dry-run", "modelfs gc /srv/models --grace 1d"))
@click.argument("repo")
@click.option("--grace", metavar="T", default="7d", show_default=True,
              help="How long readers and pushes may go on with what was removed; 0s only when there are none.")
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and change nothing.")
@command_options()
def command(session: Session, repo: str, grace: str, dry_run: bool) -> None:
    """Free the space of what was removed from REPO, a directory.

    What no version needs is dropped from the catalog now, and deleted by the first gc after the grace.
    """
    grace_s = parse_time(grace)
    from dataclasses import asdict

    from modelfs.app.repositories import deadline_of, repository_at, sweep_of
    from modelfs.maintenance.gc import GcOptions, collect

    config = session.config()
    repository = repository_at(config, repo, tell=session.output.note)
    report = collect(repository, GcOptions(grace_s, dry_run, lambda: deadline_of(config), config.fetch.connections,
                                           sweep_of(config, repo)))
    session.output.document(asdict(report))
    waits = f"; {show_size(report.bytes_waiting)} in {counted(report.objects_waiting, 'object')} wait for the " \
        f"grace of {show_time(grace_s)}" if report.objects_waiting else ""
    session.output.line(f"{'would free' if dry_run else 'freed'} {show_size(report.bytes_freed)} in "
                        f"{counted(report.objects_deleted, 'object')}, {show_size(report.bytes_kept)} stay{waits}")
