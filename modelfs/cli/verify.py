"""`modelfs verify`: check repositories, and mend what their packs can tell.

Rule: exit 4 where anything is not as it should be, whatever was asked to be checked.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.errors import BadInput, IntegrityError, ModelfsError
from modelfs.units import show_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelfs.config import Config
    from modelfs.maintenance.auditing import Question, Word
    from modelfs.maintenance.survey import Fault
    from modelfs.maintenance.verify import Report
    from modelfs.repository.repository import Repository

_SHOWN_FAULTS = 20


@dataclass(frozen=True, slots=True)
class _Check:
    """What is asked for. part: of --sample."""

    session: Session
    config: Config
    read_data: bool
    part: float | None
    read_here: bool
    repair: bool


@click.command(epilog=examples("modelfs verify /srv/models --read-data",
                               "modelfs verify https://models.example.org --sample 5% --json"))
@click.argument("repos", nargs=-1, required=True, metavar="REPO…")
@click.option("--read-data", is_flag=True, help="Read every pack, and check every chunk in it.")
@click.option("--sample", metavar="P", help="Check only such a part of the chunks, as in 5% or 0.05; others each time.")
@click.option("--read-here", is_flag=True, help="Have all bytes read and hashed here, none by a REPO's own server.")
@click.option("--repair", is_flag=True, help="Make missing or unreadable layouts and indexes anew, from the packs; of "
              "several REPOs, put what one lacks or has wrong from another that has it right.")
@command_options()
def command(session: Session, repos: tuple[str, ...], read_data: bool, sample: str | None, read_here: bool,
            repair: bool) -> int:
    """Check that all that each REPO's catalog leads to is there; with --read-data, that every byte is right.

    Several REPOs are replicas of one repository: where they differ, that is a fault, too. A REPO that `modelfs serve`
    serves hashes its bytes itself, all of them at the same time; what they say is compared.
    """
    from modelfs.app import repositories

    part = None if sample is None else parse_part(sample)
    config = session.config()
    opened = [repositories.repository_at(config, repo, tell=session.output.note) for repo in repos]
    check = _Check(session, config, read_data, part, read_here, repair)
    question, words = _consulted(check, opened)
    differing = _differences(opened, config)
    reports = [_verify(check, repository, question, word) for repository, word in zip(opened, words, strict=True)]
    false = _contradictions(opened, reports, question, config)
    failed: list[ModelfsError] = []
    if repair and len(opened) > 1:
        reports = [_mended(check, number, opened, reports, failed) for number in range(len(opened))]
    reports = [replace(report, faults=(*report.faults, *faults, *lies))
               for report, faults, lies in zip(reports, differing, false, strict=True)]
    ok = all(report.ok for report in reports)
    session.output.document({"ok": ok, "repositories": [_document(report) for report in reports]})
    for report in reports:
        _show(session, report)
    if failed:
        raise failed[0]
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


def _consulted(check: _Check, opened: Sequence[Repository]) -> tuple[Question | None, list[Word | None]]:
    """What is asked of the servers, where any answers, and what each says: it is at work from now on."""
    from modelfs.maintenance.auditing import Question, consult

    if check.read_here:
        return None, [None] * len(opened)
    question = None
    if check.read_data or check.part is not None:
        question = Question.fresh("digests", 1.0 if check.part is None else check.part)
    words = [consult(one.store, question, deadline_s=check.config.fetch.deadline_s) for one in opened]
    return question if any(words) else None, words


def _contradictions(opened: list[Repository], reports: list[Report], question: Question | None,
                    config: Config) -> list[list[Fault]]:
    from modelfs.maintenance.agreement import contradictions

    if question is None or len(opened) == 1:
        return [[] for _ in opened]
    return contradictions(opened, [report.marks for report in reports], question, deadline_s=config.fetch.deadline_s)


def _verify(check: _Check, repository: Repository, question: Question | None, word: Word | None) -> Report:
    from modelfs.maintenance.repair import repair as mend
    from modelfs.maintenance.verify import verify

    output, deadline_s, jobs = check.session.output, check.config.fetch.deadline_s, check.config.fetch.connections
    repaired = mend(repository, now=time.time(), deadline_s=deadline_s, jobs=jobs) if check.repair else ()
    with output.progress(None, f"checking {repository.store.url}") as progress:
        def advance(done: int, total: int) -> None:
            progress.total(total)
            progress.advance(done)

        report = verify(repository, read_data=check.read_data, sample=check.part, question=question, word=word,
                        progress=advance, deadline_s=deadline_s, jobs=jobs)
    if word is not None and word.trouble is not None:
        output.note(f"{repository.store.url} did not hash all that it was asked to; the rest was read here: "
                    f"{word.trouble}")
    return replace(report, repaired=repaired)


def _mended(check: _Check, number: int, opened: list[Repository], reports: list[Report],
            failed: list[ModelfsError]) -> Report:
    """The report of one of several, once it has what the others have right. failed: gets why it could not be given
    that; the others may be mended all the same."""
    from modelfs.maintenance.agreement import mend

    report, done = reports[number], set[str]()
    while not report.ok:  # a history that was brought may name manifests that are missing, too
        try:
            put = mend(opened[number], report.faults, [*opened[:number], *opened[number + 1:]],
                       deadline_s=check.config.fetch.deadline_s, jobs=check.config.fetch.connections)
        except ModelfsError as error:
            failed.append(error)
            break
        if done.issuperset(put):
            break
        done.update(put)
        question, (word,) = _consulted(check, [opened[number]])
        again = _verify(check, opened[number], question, word)
        # another question's root is like no other's
        report = replace(again, repaired=(*report.repaired, *put, *again.repaired), root=None)
    return report


def _document(report: Report) -> dict[str, object]:
    return {"repository": report.repository, "ok": report.ok, "versions": report.versions,
            "chunks_checked": report.chunks_checked, "bytes_checked": report.bytes_checked,
            "faults": [{"kind": fault.kind, "object": fault.object, "model": fault.model, "version": fault.version,
                        "path": fault.path, "detail": fault.detail} for fault in report.faults],
            "repaired": list(report.repaired), "hashed_by": report.hashed_by, "root": report.root}


def _show(session: Session, report: Report) -> None:
    output, checked = session.output, ""
    if report.chunks_checked:
        how = "hashed by its server" if report.hashed_by == "server" else "read and checked"
        checked = f", {counted(report.chunks_checked, 'chunk')} ({show_size(report.bytes_checked)}) {how}" + (
            f", root {report.root[:16]}" if report.root else "")
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
