"""`modelfs log`: the versions of a model, newest first.

Rule: everything stands in the model's history; nothing else is read.
"""

from __future__ import annotations

import click

from modelfs.cli.output import Session, command_options, examples, to_the_second
from modelfs.errors import BadInput
from modelfs.ids import ModelRef
from modelfs.units import Deadline, show_size


@click.command(epilog=examples("modelfs log /srv/models acme/llama", "modelfs log lab acme/llama --json"))
@click.argument("repo")
@click.argument("model")
@command_options()
def command(session: Session, repo: str, model: str) -> None:
    """List the versions of MODEL in REPO, newest first, with their messages and tags."""
    ref = ModelRef.parse(model)
    if ref.tag or ref.version:
        raise BadInput(f"not a model {model!r}", why="log shows all versions of org/name, without a tag or version")
    from modelfs.app import repositories

    config = session.config()
    repository = repositories.readable_at(config, repo, tell=session.output.note)
    catalog = repository.catalog(Deadline(config.fetch.deadline_s)).catalog
    history = repository.history(catalog, ref.model, Deadline(config.fetch.deadline_s))
    rows = repository.versions(history, Deadline(config.fetch.deadline_s))
    tags: dict[int, list[str]] = {}
    for tag, number in history.live_tags.items():
        tags.setdefault(number, []).append(tag)
    session.output.document({"model": str(ref.model), "versions": [
        {"version": row.name, "manifest": row.manifest.hex(), "created": row.created, "message": row.message,
         "parent": f"v{row.parent}" if row.parent else None, "tags": tags.get(row.number, []),
         "metadata": dict(row.metadata), "decoded_bytes": row.decoded_bytes, "stored_bytes": row.stored_bytes,
         "yanked": history.yanked.get(row.number)}
        for row in rows]})
    session.output.table(("version", "tags", "created", "parent", "size", "stored", "message"),
                         [(row.name, ", ".join(tags.get(row.number, [])) or "-", to_the_second(row.created),
                           f"v{row.parent}" if row.parent else "-", show_size(row.decoded_bytes),
                           show_size(row.stored_bytes), _message(row.message, history.yanked.get(row.number)))
                          for row in rows],
                         right=("size", "stored"))


def _message(message: str | None, yanked: str | None) -> str:
    return (message or "") if yanked is None else f"withdrawn: {yanked}" + (f" ({message})" if message else "")
