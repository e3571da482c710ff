"""`modelfs replicate`: other stores become, and stay, like a repository.

Rule: each destination is one pass of its own, so that one that fails holds up no other; its error ends the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Progress, Session, command_options, counted, examples
from modelfs.cli.rates import rate_option, throttle_of
from modelfs.errors import BadInput, ModelfsError
from modelfs.ids import ModelName
from modelfs.transfer.copying import CopyProgress
from modelfs.units import Deadline, show_size

if TYPE_CHECKING:
    from modelfs.repository.repository import Repository
    from modelfs.stores.store import ObjectStore
    from modelfs.transfer.replicate import ReplicateReport

_FAILED_PAUSE_S = 5.0


@click.command(epilog=examples(
    "modelfs replicate /srv/models s3://backup/models", "modelfs replicate lab /mnt/usb/models --model acme/llama",
    "modelfs replicate https://models.example.org /srv/mirror --watch --bwlimit 50MB"))
@click.argument("src")
@click.argument("dst", nargs=-1, required=True)
@click.option("--model", "models", metavar="MODEL", multiple=True,
              help="Only org/name, from now on, beside what DST has; may be given again.")
@click.option("--repack", is_flag=True, help="With --model: copy only chunks that it needs, into new packs; else "
                                             "whole packs of SRC.")
@click.option("--watch", is_flag=True, help="Go on: look for changes every mount.poll, until it is interrupted.")
@rate_option("Read at most R bytes a second, like 50MB, of all destinations together.")
@command_options()
def command(session: Session, src: str, dst: tuple[str, ...], models: tuple[str, ...], repack: bool,
            watch: bool, bwlimit: str | None) -> None:
    """Make the stores DST replicas of the repository SRC, or bring them up to date.

    A replica takes no pushes until `modelfs promote`. What was cut off goes on at the pack. A DST that took changes
    itself, since it was the primary once, becomes a replica, too: what only it has is merged into SRC first.
    """
    from modelfs.app.repositories import deadline_of, repository_at, store_at
    from modelfs.app.transfers import throttled
    from modelfs.transfer.replicate import replicate

    config = session.config()
    names = [ModelName.parse(name) for name in models]
    throttle = throttle_of(bwlimit)
    source = throttled(repository_at(config, src, tell=session.output.note), throttle)
    targets = [store_at(config, each, tell=session.output.note) for each in dst]

    def once(target: ObjectStore) -> ReplicateReport:
        with session.output.progress(None, f"replicate to {target.url}") as bar:
            return replicate(source, target, lambda: deadline_of(config).patient(), models=names, repack=repack,
                             progress=_Bar(bar), tell=session.output.note)

    if not watch:
        reports, failed = [], []
        for target in targets:
            try:
                reports.append(once(target))
            except ModelfsError as error:
                failed.append(error)
                if len(targets) > 1:
                    session.output.note(f"warning: {target.url} is behind: {error}")
        if reports or not failed:
            session.output.document({"replicas": [asdict(report) for report in reports]})
        for report in reports:
            session.output.line(_summary(report))
        if failed:
            raise failed[0]
        return
    if session.output.json:
        raise BadInput("--watch has no one JSON document", advice="Leave one of --watch and --json.")
    _watch(session, source, targets, once, config.mount.poll_s, lambda: deadline_of(config))


def _watch(session: Session, source: Repository, targets: list[ObjectStore],
           once: Callable[[ObjectStore], ReplicateReport], poll_s: float, renew: Callable[[], Deadline]) -> None:
    """For ever. A destination that fails is tried again; a look at the source is one conditional request."""
    etag, late = source.catalog(renew()).etag, list(targets)  # before the first pass: what comes during it is seen
    since = time.monotonic()
    while True:
        for target in list(late):
            try:
                report = once(target)
            except BadInput:  # tried again it is no better
                raise
            except ModelfsError as error:
                session.output.note(f"warning: {target.url} is behind since {time.monotonic() - since:.0f} s: {error}")
                continue
            late.remove(target)
            if report.changed:
                session.output.line(f"{_summary(report)}, {time.monotonic() - since:.1f} s after it was seen")
        time.sleep(min(poll_s, _FAILED_PAUSE_S) if late else poll_s)
        try:
            found = source.newer_catalog(etag, renew())
        except ModelfsError as error:
            session.output.note(f"warning: {error}")
            continue
        if found is not None:
            etag, late, since = found.etag, list(targets), time.monotonic()


class _Bar(CopyProgress):
    def __init__(self, bar: Progress) -> None:
        self._bar, self._total, self._known = bar, 0, 0

    def total(self, size_bytes: int) -> None:
        self._total += size_bytes
        self._bar.total(self._total)

    def advance(self, size_bytes: int, known_bytes: int) -> None:
        self._known += known_bytes
        self._bar.advance(size_bytes)
        if self._known:
            self._bar.note(f"{show_size(self._known)} there before")


def _summary(report: ReplicateReport) -> str:
    if not report.changed:
        return f"{report.destination}: up to date, serial {report.serial}"
    merged = f", {counted(len(report.reconciled), 'model')} merged into the source" if report.reconciled else ""
    return (f"{report.destination}: serial {report.serial}, {counted(report.behind, 'change')} behind before; "
            f"{counted(report.versions, 'new version')}, {counted(report.packs, 'pack')}, {show_size(report.bytes)} "
            f"copied, {show_size(report.known_bytes)} there before{merged}")
