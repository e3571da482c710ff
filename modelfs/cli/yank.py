"""`modelfs yank`: withdraw a version.

Rule: nothing is deleted: who mounts it is warned, or refused where `policy.yanked` says so.
"""

from __future__ import annotations

from dataclasses import asdict

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import BadInput
from modelfs.ids import ModelRef


@click.command(epilog=examples('modelfs yank /srv/models acme/llama:v3 --reason "wrong tokenizer"',
                               "modelfs yank /srv/models acme/llama:v3 --undo"))
@click.argument("repo")
@click.argument("model")
@click.option("--reason", metavar="R", help="Why, in a line: whoever reads the version is told.")
@click.option("--undo", is_flag=True, help="Take the version back in.")
@command_options()
def command(session: Session, repo: str, model: str, reason: str | None, undo: bool) -> None:
    """Withdraw the version MODEL, org/name:vN, of REPO: it stays, but should not be used any more.

    A mount warns who opens it, or refuses with `policy.yanked = "deny"`; so do pull and cache warm. Tags that name it
    stay: move them with `modelfs tag`. `modelfs rm` removes it.
    """
    if (reason is None) != undo:
        raise BadInput("cannot yank", why="either --reason R or --undo is needed")
    ref = ModelRef.parse(model)
    from modelfs.app.repositories import deadline_of, repository_at
    from modelfs.maintenance.yanking import yank

    config = session.config()
    done = yank(repository_at(config, repo, tell=session.output.note), ref, reason, lambda: deadline_of(config))
    session.output.document(asdict(done))
    state = "is back in" if done.reason is None else f"is withdrawn: {done.reason}"
    session.output.line(f"{done.model}:{done.version} {state}" + ("" if done.changed else "; nothing changed"))
    if done.tags and done.reason is not None:
        names = "The tag" if len(done.tags) == 1 else "The tags"
        session.output.note(f"{names} {', '.join(done.tags)} still {'names' if len(done.tags) == 1 else 'name'} it: "
                            f"`modelfs tag {repo} {done.model}:vN {done.tags[0]}` moves a tag to another version")
