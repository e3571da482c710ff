"""`modelfs serve`: a repository over HTTP, or a site's cache of one that is elsewhere.

Rule: it listens on this machine only unless told otherwise, and serves nothing but the repository's objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, Whole, command_options, examples
from modelfs.errors import BadInput, NotFound

if TYPE_CHECKING:
    from modelfs.server.access import Access
    from modelfs.stores.file_store import FileStore


@click.command(epilog=examples("modelfs serve /srv/models",
                               "modelfs serve /srv/models --host 0.0.0.0 --token-file /etc/modelfs/tokens",
                               "modelfs serve /srv/models --host 0.0.0.0 --anonymous-read",
                               "modelfs serve /srv/cache --upstream https://models.example.org --cache-size '2 TiB' "
                               "--host 0.0.0.0 --anonymous-read"))
@click.argument("repo")
@click.option("--host", default="127.0.0.1", metavar="H", help="Address to listen on (127.0.0.1).")
@click.option("--port", default=8750, type=Whole(0, 65535), metavar="N", help="Port (8750; 0: a free one).")
@click.option("--token-file", metavar="F", help="Answer only who shows a token of F: a line is TOKEN (reads and "
                                                "writes) or TOKEN read. F has mode 0600, and is read again when it "
                                                "changes.")
@click.option("--anonymous-read", is_flag=True, help="Let everyone read; only tokens write, without F nobody.")
@click.option("--upstream", metavar="UPSTREAM", help="Serve this repository (a URL, a remote, a directory) by way of "
                                                  "a cache in the directory REPO: for the hosts of a site.")
@click.option("--cache-size", metavar="S", help="With --upstream, the cache's limit: 2TiB, or 10% of the disk.")
@command_options(prints_json=False)
def command(session: Session, repo: str, host: str, port: int, token_file: str | None, anonymous_read: bool,
            upstream: str | None, cache_size: str | None) -> None:
    """Serve the repository REPO, a directory here, over HTTP until SIGTERM or Ctrl-C.

    Without --token-file whoever is on this machine may read and push; an address that others reach needs it, or
    --anonymous-read. An empty directory is served, too: `modelfs init` with the URL makes a repository in it.

    With --upstream, REPO is a directory for a cache of that repository, which clients use by this server's URL in its
    place: what many of them read is fetched once, checked, and kept. Pushes go to the upstream itself.
    """
    from modelfs.server.access import Access
    from modelfs.stores.file_store import FileStore
    from modelfs.stores.opening import open_store
    from modelfs.tokens import TokenFile

    access = Access(TokenFile(Path(token_file)) if token_file is not None else None, anonymous_read)
    store = open_store(repo)
    if not isinstance(store, FileStore):
        raise BadInput(f"cannot serve {repo}", why="only a repository in a directory here can be served"
                       if upstream is None else "a site's cache lies in a directory here")
    if upstream is not None:
        from modelfs.app.serving import SiteRequest, serve_site

        serve_site(session.config(cache_size=cache_size), SiteRequest(store.root, upstream, host, port), access,
                   session.output.note)
        return
    if cache_size is not None:
        raise BadInput("--cache-size has no cache to limit", why="it goes with --upstream")
    _serve_directory(session, repo, store, host, port, access)


def _serve_directory(session: Session, repo: str, store: FileStore, host: str, port: int, access: Access) -> None:
    from modelfs.app.repositories import deadline_of
    from modelfs.repository.repository import Repository
    from modelfs.server.access import check_exposure
    from modelfs.server.running import run_server

    config = session.config()
    check_exposure(host, access)
    try:
        Repository.open(store, deadline_of(config))
    except NotFound:
        if not access.may_ever_write or not _is_empty(store.root):
            raise
        session.output.note(f"{repo} is empty: `modelfs init` with the URL makes a repository in it")
    run_server(store.root, host, port, lambda url: session.output.note(f"serving {repo} at {url}"), access)


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())
