"""`modelfs pull`: a version becomes a plain directory.

Rule: what stands under its name afterwards is whole and checked; run again, a pull goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.cli.rates import rate_option, throttle_of
from modelfs.errors import NotFound
from modelfs.ids import ModelRef
from modelfs.units import show_size


@click.command(epilog=examples("modelfs pull https://models.example.org acme/llama ./llama",
                               "modelfs pull /srv/models acme/llama:v3 ./configs --include '*.json'"))
@click.argument("repo")
@click.argument("model")
@click.argument("dest")
@click.option("--include", metavar="GLOB", multiple=True, help="Only these files; may be given again.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Not these files; may be given again.")
@rate_option("Read at most R bytes a second, like 50MB.")
@command_options()
def command(session: Session, repo: str, model: str, dest: str, include: tuple[str, ...],
            exclude: tuple[str, ...], bwlimit: str | None) -> None:
    """Copy a version of MODEL from REPO to the directory DEST, each chunk checked."""
    from modelfs.app.policy import check_yanked
    from modelfs.app.repositories import deadline_of
    from modelfs.app.transfers import transfer
    from modelfs.transfer.pull import chosen, pull

    config, ref = session.config(), ModelRef.parse(model)
    with transfer(config, repo, session.output.note, throttle_of(bwlimit)) as parts:
        found = parts.repository.resolve(parts.repository.catalog(deadline_of(config)).catalog, ref,
                                         deadline_of(config))
        if (warning := check_yanked(config.policy, ref.model, found)) is not None:
            session.output.note(warning)
        version = parts.versions.load(found.version.manifest)
        files = chosen(list(version.manifest.files()), include, exclude)
        if not files and len(version.manifest):
            raise NotFound(f"no file of {ref}", where=repo, why="none matches --include and --exclude")
        numbers = [number for file in files if (number := version.manifest.find(file.path)) is not None]
        with session.output.progress(sum(file.size for file in files), f"pull {ref}") as bar:
            report = pull(version, numbers, Path(dest), parts.fetcher, parts.metrics, bar.advance)
    session.output.document({"model": str(ref.model), "version": found.version.name, **asdict(report)})
    session.output.line(f"{ref.model} {found.version.name}: {counted(report.files, 'file')}, "
                        f"{show_size(report.bytes)} in {dest}; {show_size(report.downloaded_bytes)} downloaded, "
                        f"{show_size(report.resumed_bytes)} there before")
