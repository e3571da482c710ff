"""`modelfs verify`: check repositories, and mend what their packs can tell.

Rule: exit 4 where anything is not as it should be, whatever was asked to be checked.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.errors import BadInput, IntegrityError
from modelfs.units import show_size

if TYPE_CHECKING:
    from modelfs.config import Config
    from modelfs.maintenance.verify import Report

_SHOWN_FAULTS = 20


@click.command(epilog=examples("modelfs verify /srv/models --read-data",
                               "modelfs verify https://models.example.org --sample 5% --json"))
@click.argument("repos", nargs=-1, required=True, metavar="REPO…")
@click.option("--read-data", is_flag=True, help="Read every pack, and check every chunk in it.")
@click.option("--sample", metavar="P", help="Check only such a part of the chunks, as in 5% or 0.05; others each time.")
@click.option("--repair", is_flag=True, help="Make missing or unreadable layouts and indexes anew, from the packs.")
@command_options()
def command(session: Session, repos: tuple[str, ...], read_data: bool, sample: str | None, repair: bool) -> int:
    """Check that all that each REPO's catalog leads to is there; with --read-data, that every byte is right."""
    part = None if sample is None else parse_part(sample)
    config = session.config()
    reports = [_verify(session, config, repo, read_data, part, repair) for repo in repos]
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


def _verify(session: Session, config: Config, repo: str, read_data: bool, part: float | None, repair: bool) -> Report:
    from dataclasses import replace

    from modelfs.app import repositories
    from modelfs.maintenance.repair import repair as mend
    from modelfs.maintenance.verify import verify

    repository = repositories.repository_at(config, repo, tell=session.output.note)
    deadline_s, jobs = config.fetch.deadline_s, config.fetch.connections
    repaired = mend(repository, now=time.time(), deadline_s=deadline_s, jobs=jobs) if repair else ()
    with session.output.progress(None, f"checking {repo}") as progress:
        def advance(done: int, total: int) -> None:
            progress.total(total)
            progress.advance(done)

        report = verify(repository, read_data=read_data, sample=part, progress=advance, deadline_s=deadline_s,
                        jobs=jobs)
    return replace(report, repaired=repaired)


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
