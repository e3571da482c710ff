"""`modelfs rm`: remove a tag, a version, or a whole model.

Rule: a whole model goes only after a yes, typed on a terminal or given by --yes.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.errors import BadInput
from modelfs.ids import ModelRef

if TYPE_CHECKING:
    from modelfs.maintenance.removal import Removal


@click.command(epilog=examples("modelfs rm /srv/models acme/llama:v2", "modelfs rm /srv/models acme/llama:prod",
                               "modelfs rm /srv/models acme/llama --yes"))
@click.argument("repo")
@click.argument("model")
@click.option("--yes", is_flag=True, help="Remove a whole model without being asked.")
@command_options()
def command(session: Session, repo: str, model: str, yes: bool) -> None:
    """Remove from REPO what MODEL means: the tag of org/name:tag, the version of org/name:vN, or all of org/name.

    A version that a tag names is not removed. Version numbers are not given again. `modelfs gc` frees the space.
    Before a whole model goes you are asked; "no" removes nothing, and is exit 0.
    """
    ref = ModelRef.parse(model)
    from modelfs.app.repositories import deadline_of, repository_at
    from modelfs.maintenance.removal import remove

    config = session.config()
    repository = repository_at(config, repo, tell=session.output.note)
    if not (ref.tag or ref.version or yes):
        rows = repository.history(repository.catalog(deadline_of(config)).catalog, ref.model, deadline_of(config))
        if not _asked(ref, len(repository.versions(rows, deadline_of(config)))):
            session.output.document({"model": str(ref.model), "tag": None, "versions": [], "model_removed": False})
            session.output.line("nothing removed")
            return
    removal = remove(repository, ref, lambda: deadline_of(config))
    session.output.document(asdict(removal))
    session.output.line(_summary(removal))


def _asked(ref: ModelRef, versions: int) -> bool:
    """Whether the answer is yes. Raises BadInput where nobody can be asked, Abort where no answer comes."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        raise BadInput(f"not removing all of {ref.model}", why="there is no terminal to ask for a yes on",
                       advice="Say --yes, or name a version or tag to remove only that.")
    return click.confirm(f"Remove {ref.model} with {counted(versions, 'version')} and all its tags?", err=True)


def _summary(removal: Removal) -> str:
    if removal.tag:
        return f"removed the tag {removal.model}:{removal.tag}"
    if len(removal.versions) == 1 and not removal.model_removed:
        return f"removed {removal.model}:{removal.versions[0]}; `modelfs gc` frees its space"
    return f"removed {removal.model}, {counted(len(removal.versions), 'version')}; `modelfs gc` frees their space"
