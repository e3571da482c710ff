"""`modelfs verify`: check repositories, and mend what their packs can tell.

Rule: exit 4 where anything is not as it should be, whatever was asked to be checked.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.errors import BadInput, IntegrityError
from modelfs.units import show_size

if TYPE_CHECKING:
    from modelfs.config import Config
    from modelfs.maintenance.survey import Fault
    from modelfs.maintenance.verify import Report
    from modelfs.repository.repository import Repository

_SHOWN_FAULTS = 20


@click.command(epilog=examples("modelfs verify /srv/models --read-data",
                               "modelfs verify https://models.example.org --sample 5% --json"))
@click.argument("repos", nargs=-1, required=True, metavar="REPO…")
@click.option("--read-data", is_flag=True, help="Read every pack, and check every chunk in it.")
@click.option("--sample", metavar="P", help="Check only such a part of the chunks, as in 5% or 0.05; others each time.")
@click.option("--repair", is_flag=True, help="Make missing or unreadable layouts and indexes anew, from the packs; of "
              "several REPOs, put what one lacks or has wrong from another that has it right.")
@command_options()
def command(session: Session, repos: tuple[str, ...], read_data: bool, sample: str | None, repair: bool) -> int:
    """Check that all that each REPO's catalog leads to is there; with --read-data, that every byte is right.

    Several REPOs are replicas of one repository: where they differ, that is a fault, too.
    """
    from modelfs.app import repositories

    part = None if sample is None else parse_part(sample)
    config = session.config()
    opened = [repositories.repository_at(config, repo, tell=session.output.note) for repo in repos]
    differing = _differences(opened, config)
    reports = [_verify(session, config, repository, read_data, part, repair) for repository in opened]
    if repair and len(opened) > 1:
        reports = [_mended(session, config, number, opened, reports, read_data, part) for number in range(len(opened))]
    reports = [replace(report, faults=(*report.faults, *faults))
               for report, faults in zip(reports, differing, strict=True)]
    ok = all(report.ok for report in reports)
    session.output.document({"ok": ok, "repositories": [_document(report) for report in reports]})
    for report in reports:
        _show(session, report)
    return 0 if ok else IntegrityError.exit_code


def parse_part(text: str) -> float:
    """0.05 of "5%" or "0.05". Raises BadInput unless it is above 0 and at most 1."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)", text.strip())
    part = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < part <= 1:
        raise BadInput(f"not a part {text!r}", where="--sample", why="write it like 5% or 0.05")
    return part


def _differences(opened: list[Repository], config: Config) -> list[list[Fault]]:
    from modelfs.maintenance.agreement import differences

    if len(opened) == 1:
        return [[]]
    return differences(opened, deadline_s=config.fetch.deadline_s)


def _verify(session: Session, config: Config, repository: Repository, read_data: bool, part: float | None,
            repair: bool) -> Report:
    from modelfs.maintenance.repair import repair as mend
    from modelfs.maintenance.verify import verify

    deadline_s, jobs = config.fetch.deadline_s, config.fetch.connections
    repaired = mend(repository, now=time.time(), deadline_s=deadline_s, jobs=jobs) if repair else ()
    with session.output.progress(None, f"checking {repository.store.url}") as progress:
        def advance(done: int, total: int) -> None:
            progress.total(total)
            progress.advance(done)

        report = verify(repository, read_data=read_data, sample=part, progress=advance, deadline_s=deadline_s,
                        jobs=jobs)
    return replace(report, repaired=repaired)


def _mended(session: Session, config: Config, number: int, opened: list[Repository], reports: list[Report],
            read_data: bool, part: float | None) -> Report:
    """The report of one of several, once it has what the others have right."""
    from modelfs.maintenance.agreement import mend

    report = reports[number]
    if report.ok:
        return report
    put = mend(opened[number], report.faults, [*opened[:number], *opened[number + 1:]],
               deadline_s=config.fetch.deadline_s, jobs=config.fetch.connections)
    if not put:
        return report
    again = _verify(session, config, opened[number], read_data, part, True)
    return replace(again, repaired=(*report.repaired, *put, *again.repaired))


def _document(report: Report) -> dict[str, object]:
    return {"repository": report.repository, "ok": report.ok, "versions": report.versions,
            "chunks_checked": report.chunks_checked, "bytes_checked": report.bytes_checked,
            "faults": [{"kind": fault.kind, "object": fault.object, "model": fault.model, "version": fault.version,
                        "path": fault.path, "detail": fault.detail} for fault in report.faults],
            "repaired": list(report.repaired)}


def _show(session: Session, report: Report) -> None:
    output = session.output
    checked = f", {counted(report.chunks_checked, 'chunk')} ({show_size(report.bytes_checked)}) read and checked" \
        if report.chunks_checked else ""
    state = "ok" if report.ok else counted(len(report.faults), "fault")
    versions = counted(report.versions, "version")
    output.line(f"{report.repository}: {state}; {versions}{checked}")
    for key in report.repaired:
        output.line(f"made anew: {key}")
    if report.faults:
        shown = report.faults if output.verbose else report.faults[:_SHOWN_FAULTS]
        output.table(("kind", "model", "version", "path", "object", "detail"),
                     [(fault.kind, fault.model or "-", fault.version or "-", fault.path or "-", fault.object or "-",
                       fault.detail) for fault in shown])
        if len(shown) < len(report.faults):
            output.note(f"{len(report.faults) - len(shown)} more; --verbose or --json shows all")
