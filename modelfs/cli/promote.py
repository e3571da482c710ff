"""`modelfs promote`: a replica becomes a repository that takes changes."""

from __future__ import annotations

import click

from modelfs.cli.output import Session, command_options, examples


@click.command(epilog=examples("modelfs promote /srv/mirror", "modelfs replicate /srv/mirror https://models.example.org"))
@click.argument("repo")
@command_options()
def command(session: Session, repo: str) -> None:
    """Let the replica REPO take pushes itself: it is the primary from now on.

    When the old primary is back, `modelfs replicate REPO OLD` makes that a replica; what only it has is merged first.
    """
    from modelfs.app.repositories import deadline_of, repository_at
    from modelfs.transfer.replicate import promote

    config = session.config()
    repository = repository_at(config, repo, tell=session.output.note)
    was = repository.catalog(deadline_of(config)).catalog.replica_of
    promoted = promote(repository, lambda: deadline_of(config))
    session.output.document({"repository": repository.store.url, "serial": promoted.serial, "was_replica_of": was})
    session.output.line(f"{repository.store.url} takes changes itself now, serial {promoted.serial}; it was a replica "
                        f"of {was}")
