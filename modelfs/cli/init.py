"""`modelfs init`: make an empty repository.

Rule: what is a repository already is left as it is.
"""

from __future__ import annotations

import time

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.units import parse_size, show_size


@click.command(epilog=examples("modelfs init /srv/models", "modelfs init s3://bucket/models --chunk-size 4MiB"))
@click.argument("repo")
@click.option("--chunk-size", metavar="S", default="2MiB", show_default=True,
              help="Largest chunk: a power of two from 64 KiB to 16 MiB.")
@command_options()
def command(session: Session, repo: str, chunk_size: str) -> None:
    """Make an empty repository at REPO: a directory (it is made, too), a server that may be written to, or a place in
    an object store.

    The chunk size is the unit of deduplication and of what a read fetches at least; it cannot be changed later.
    """
    from modelfs.app import repositories
    from modelfs.repository.info import check_chunk_size, initialise

    size_bytes = check_chunk_size(parse_size(chunk_size))
    config = session.config()
    store = repositories.store_at(config, repo, tell=session.output.note)
    info = initialise(store, size_bytes, time.time(), repositories.deadline_of(config))
    session.output.document({"repository": store.url, "id": info.id, "chunk_size": info.chunk_size})
    session.output.line(f"made an empty repository at {store.url}, chunk size {show_size(info.chunk_size)}")
