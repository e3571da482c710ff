"""`modelfs push`: a directory or a file becomes a new version.

Rule: numbers on standard output are those of the push that was made; progress is for terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Progress, Session, Whole, command_options, counted, examples
from modelfs.cli.rates import rate_option, throttle_of
from modelfs.errors import BadInput
from modelfs.ids import ModelRef
from modelfs.transfer.push import PushOptions, PushProgress, PushReport, push
from modelfs.units import show_size

if TYPE_CHECKING:
    from modelfs.app.variants import Variant
    from modelfs.repository.repository import Repository


@click.command(epilog=examples("modelfs push ./llama /srv/models acme/llama",
                               "modelfs push ./llama /srv/models acme/llama:prod --message 'after SFT' --meta run=17"))
@click.argument("src")
@click.argument("repo")
@click.argument("model")
@click.option("--message", metavar="M", help="What this version is; `modelfs log` shows it.")
@click.option("--meta", metavar="KEY=VALUE", multiple=True, help="Kept with the version; may be given again.")
@click.option("--jobs", type=Whole(1, 1024), metavar="N", help="Encode on N cores (default: all).")
@click.option("--follow-links", is_flag=True, help="Push what links out of SRC lead to, too.")
@click.option("--delta", is_flag=True,
              help="Store what differs from the version that the tag names as differences, where that saves a tenth.")
@click.option("--base", metavar="MODEL", help="As --delta, from this model or version in REPO.")
@click.option("--recipe", "recipe_name", metavar="NAME|FILE",
              help="Push a copy transformed with some loss, as `modelfs compress` makes it. Until it is pushed it lies "
                   "in the state directory.")
@click.option("--sync", type=Whole(1, 64), metavar="N",
              help="Return once N stores of the remote REPO, its first among them, hold the version.")
@rate_option("Send, and read from REPO, at most R bytes a second, like 50MB.")
@click.option("--dry-run", is_flag=True, help="Read, encode and count, and write nothing.")
@command_options()
def command(session: Session, src: str, repo: str, model: str, message: str | None, meta: tuple[str, ...],
            jobs: int | None, follow_links: bool, delta: bool, base: str | None, recipe_name: str | None,
            sync: int | None, bwlimit: str | None, dry_run: bool) -> None:
    """Store SRC, a directory or a file, as a new version of MODEL (org/name or org/name:tag) in REPO.

    Only chunks that REPO lacks are stored. The tag (latest, if none is given) moves to the new version. With --sync N
    the remote's next stores are brought up to date before this returns; exit 5 where fewer than N could be: the
    version is there all the same, and `modelfs replicate` brings it to the others later. A variant, such as
    org/name@int8 of --recipe int8, is a tag beside the others; its parent is what latest names.
    """
    from modelfs.app.repositories import check_outside, deadline_of, repository_at
    from modelfs.app.syncing import check_enough, hold_by
    from modelfs.app.transfers import throttled
    from modelfs.paths import state_dir

    ref = ModelRef.parse(model)
    if ref.version:
        raise BadInput(f"cannot push to {model}", why="versions are numbered by the repository",
                       advice="Give a tag, or none.")
    config, throttle = session.config(), throttle_of(bwlimit)
    if sync is not None and not dry_run:
        check_enough(config, repo, sync)
    options = PushOptions(state_dir(session.environ), lambda: deadline_of(config), message, _metadata(meta),
                          jobs or 0, follow_links, dry_run, delta or base is not None,
                          None if base is None else ModelRef.parse(base))
    check_outside(config, repo, Path(src))
    repository = throttled(repository_at(config, repo, tell=session.output.note), throttle)
    with ExitStack() as copy:
        source = Path(src)
        if recipe_name is not None:
            variant = copy.enter_context(_variant(session, source, repository, ref, recipe_name, options))
            source = variant.source
            options = replace(options, metadata={**variant.metadata, **options.metadata}, variant=True)
        with session.output.progress(None, f"push {ref.model}") as bar:
            report = push(source, repository, ref, options, _Bar(bar))
    held = None
    if sync is not None and not dry_run:
        held = hold_by(config, repo, sync, session.output.note, throttle)
    session.output.document({**asdict(report), **({} if held is None else {"held_by": held})})
    session.output.line(_summary(report, dry_run))
    if held:
        session.output.line(f"held by {', '.join(held)}")
    if not report.new_version and (message or meta):
        session.output.note("--message and --meta are kept with new versions only: not with this one")


@contextmanager
def _variant(session: Session, source: Path, repository: Repository, ref: ModelRef, recipe: str,
             options: PushOptions) -> Iterator[Variant]:
    from modelfs.app.variants import variant_of
    from modelfs.transforms import recipe_named

    with session.output.progress(None, f"compress {source}") as bar, \
            variant_of(source, repository.info.id, ref, recipe_named(recipe), options.state, jobs=options.jobs,
                       follow_links=options.follow_links, total=bar.total, advance=bar.advance,
                       tell=session.output.note) as made:
        yield made


class _Bar(PushProgress):
    def __init__(self, bar: Progress) -> None:
        self._bar, self._known = bar, 0

    def total(self, size_bytes: int) -> None:
        self._bar.total(size_bytes)

    def advance(self, size_bytes: int, known_bytes: int) -> None:
        self._known += known_bytes
        self._bar.advance(size_bytes)
        if self._known:
            self._bar.note(f"saved by dedup {show_size(self._known)}")


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadInput(f"not metadata {pair!r}", why="--meta takes KEY=VALUE")
        out[key] = value
    return out


def _summary(report: PushReport, dry_run: bool) -> str:
    if not report.changed:
        return f"{report.model}:{report.tag} is {report.version} already: nothing changed"
    if not report.new_version:
        return (f"{report.model}: moved {report.tag} to {report.version}, which has the same content"
                + (", dry run: nothing written" if dry_run else ""))
    size = f"{counted(report.files, 'file')}, {show_size(report.decoded_bytes)}, " \
        f"stored {show_size(report.stored_bytes)}"
    if report.difference_chunks:
        size += f", {counted(report.difference_chunks, 'chunk')} as differences"
    return (f"{report.model} {report.version} ({report.tag}): {size}; {counted(report.new_chunks, 'new chunk')}, "
            f"{report.reused_chunks} there before" + (", dry run: nothing written" if dry_run else
                                                      f", {show_size(report.uploaded_bytes)} uploaded"))
