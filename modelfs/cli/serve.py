"""`modelfs serve`: a repository over HTTP.

Rule: it listens on this machine only unless told otherwise, and serves nothing but the repository's objects.
"""

from __future__ import annotations

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import BadInput


@click.command(epilog=examples("modelfs serve /srv/models", "modelfs serve /srv/models --host 0.0.0.0 --port 80"))
@click.argument("repo")
@click.option("--host", default="127.0.0.1", metavar="H", help="Address to listen on (127.0.0.1).")
@click.option("--port", default=8750, type=click.IntRange(0, 65535), metavar="N", help="Port (8750; 0: a free one).")
@command_options(prints_json=False)
def command(session: Session, repo: str, host: str, port: int) -> None:
    """Serve the repository REPO, a directory here, over HTTP until SIGTERM or Ctrl-C."""
    from modelfs.app.repositories import deadline_of
    from modelfs.repository.repository import Repository
    from modelfs.server.running import run_server
    from modelfs.stores.file_store import FileStore
    from modelfs.stores.opening import open_store

    config = session.config()
    store = open_store(repo)
    if not isinstance(store, FileStore):
        raise BadInput(f"cannot serve {repo}", why="only a repository in a directory here can be served")
    Repository.open(store, deadline_of(config))
    run_server(store.root, host, port, lambda url: session.output.note(f"serving {repo} at {url}"))
