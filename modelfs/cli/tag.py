"""`modelfs tag`: have a tag name a version.

Rule: a tag that is there already is no error; what was said holds afterwards.
"""

from __future__ import annotations

from dataclasses import asdict

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.ids import ModelRef, check_tag


@click.command(epilog=examples("modelfs tag /srv/models acme/llama:v3 prod",
                               "modelfs tag /srv/models acme/llama:staging prod"))
@click.argument("repo")
@click.argument("model")
@click.argument("tag")
@command_options()
def command(session: Session, repo: str, model: str, tag: str) -> None:
    """Have TAG name the version that MODEL means in REPO: org/name:vN, org/name:tag, or org/name for latest.

    Mounts see it within their poll period; open files keep their bytes.
    """
    ref = ModelRef.parse(model)
    check_tag(tag)
    from modelfs.app.repositories import deadline_of, repository_at
    from modelfs.maintenance.tagging import move_tag

    config = session.config()
    moved = move_tag(repository_at(config, repo, tell=session.output.note), ref, tag, lambda: deadline_of(config))
    session.output.document(asdict(moved))
    session.output.line(f"{moved.model}:{moved.tag} is {moved.version}" + ("" if moved.changed else
                                                                          " already: nothing changed"))
