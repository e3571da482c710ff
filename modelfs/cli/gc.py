"""`modelfs gc`: free what no version needs.

Rule: without --grace nothing is deleted that a reader or a push of the last seven days may need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, Whole, command_options, counted, examples
from modelfs.errors import BadInput
from modelfs.ids import ModelName
from modelfs.units import parse_time, show_size, show_time

if TYPE_CHECKING:
    from modelfs.maintenance.gc import GcReport
    from modelfs.maintenance.retention import Retention

_MOST_KEPT = 1_000_000


@click.command(epilog=examples("modelfs gc /srv/models --dry-run", "modelfs gc /srv/models --grace 1d",
                               "modelfs gc /srv/models --keep-last 10 --keep-within 30d --repack"))
@click.argument("repo")
@click.option("--grace", metavar="T", default="7d", show_default=True,
              help="How long readers and pushes may go on with what was removed; 0s only when there are none.")
@click.option("--keep-last", metavar="N", type=Whole(1, _MOST_KEPT),
              help="First remove versions that no tag names and that are not among the newest N of their model.")
@click.option("--keep-within", metavar="T",
              help="The same of versions older than T, as in 30d. With both, what either keeps stays.")
@click.option("--model", "models", metavar="MODEL", multiple=True,
              help="Remove old versions of this org/name only; may be given again.")
@click.option("--repack", is_flag=True, help="Copy what is needed out of packs that are mostly dead, and put versions "
              "that lie scattered over many packs in order.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@command_options()
def command(session: Session, repo: str, grace: str, keep_last: int | None, keep_within: str | None,
            models: tuple[str, ...], repack: bool, dry_run: bool) -> None:
    """Free the space of what was removed from REPO, a directory or an object store.

    What no version needs is dropped from the catalog now, and deleted by the first gc after the grace.
    """
    grace_s = parse_time(grace)
    retention = _retention(keep_last, keep_within, models)
    from dataclasses import asdict

    from modelfs.app.repositories import deadline_of, repository_at, sweep_of
    from modelfs.maintenance.gc import GcOptions, collect

    config = session.config()
    repository = repository_at(config, repo, tell=session.output.note)
    with session.output.progress(None, "rewriting packs") as progress:
        def advance(done: int, total: int) -> None:
            progress.total(total)
            progress.advance(done)

        report = collect(repository, GcOptions(grace_s, dry_run, lambda: deadline_of(config), config.fetch.connections,
                                               sweep_of(config, repo), retention=retention, repack=repack,
                                               progress=advance))
    session.output.document(asdict(report))
    _show(session, report, grace_s)


def _retention(keep_last: int | None, keep_within: str | None, models: tuple[str, ...]) -> Retention | None:
    """Raises BadInput."""
    from modelfs.maintenance.retention import Retention

    if keep_last is None and keep_within is None:
        if models:
            raise BadInput("--model alone removes nothing", where="gc", advice="Add --keep-last N or --keep-within T.")
        return None
    return Retention(keep_last, None if keep_within is None else parse_time(keep_within),
                     tuple(dict.fromkeys(map(ModelName.parse, models))))


def _show(session: Session, report: GcReport, grace_s: float) -> None:
    would = "would be " if report.dry_run else ""
    for name in report.versions_removed:
        session.output.line(f"{name}: {would}removed")
    if report.versions_rewritten:
        session.output.line(f"{counted(report.versions_rewritten, 'version')} {would}laid out anew: "
                            f"{show_size(report.bytes_rewritten)} copied, {counted(report.packs_rewritten, 'pack')} "
                            "not needed any more")
    waits = f"; {show_size(report.bytes_waiting)} in {counted(report.objects_waiting, 'object')} wait for the " \
        f"grace of {show_time(grace_s)}" if report.objects_waiting else ""
    session.output.line(f"{'would free' if report.dry_run else 'freed'} {show_size(report.bytes_freed)} in "
                        f"{counted(report.objects_deleted, 'object')}, {show_size(report.bytes_kept)} stay{waits}")
