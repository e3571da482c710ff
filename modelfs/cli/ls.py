"""`modelfs ls`: the models of a repository, or the files of one version.

Rule: sizes are those that the history holds, so that listing models reads no manifest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, command_options, counted, examples, to_the_second
from modelfs.ids import ModelName, ModelRef
from modelfs.units import Deadline, rfc3339_ns, show_size

if TYPE_CHECKING:
    from modelfs.config import Config
    from modelfs.repository.repository import Repository


@click.command(epilog=examples("modelfs ls /srv/models", "modelfs ls https://models.example.org acme/llama:v2 --json"))
@click.argument("repo")
@click.argument("model", required=False)
@command_options()
def command(session: Session, repo: str, model: str | None) -> None:
    """List the models of REPO, or the files of MODEL: org/name, org/name:tag or org/name:vN."""
    ref = None if model is None else ModelRef.parse(model)
    from modelfs.app import repositories

    config = session.config()
    repository = repositories.readable_at(config, repo, tell=session.output.note)
    if ref is None:
        _models(session, config, repository)
    else:
        _files(session, config, repository, ref)


def _models(session: Session, config: Config, repository: Repository) -> None:
    catalog = repository.catalog(Deadline(config.fetch.deadline_s)).catalog

    def row(model: ModelName) -> dict[str, object]:
        history = repository.history(catalog, model, Deadline(config.fetch.deadline_s))
        versions = repository.versions(history, Deadline(config.fetch.deadline_s))
        tags = history.live_tags
        shown = next((version for version in versions if version.number == tags.get("latest")),
                     versions[0] if versions else None)
        return {"model": str(model), "versions": len(versions),
                "tags": {tag: f"v{number}" for tag, number in tags.items()},
                "latest": f"v{tags['latest']}" if "latest" in tags else None,
                "created": versions[0].created if versions else catalog.created,
                "decoded_bytes": shown.decoded_bytes if shown else 0,
                "stored_bytes": shown.stored_bytes if shown else 0}

    with ThreadPoolExecutor(config.fetch.connections) as pool:
        rows = list(pool.map(row, sorted(catalog.models)))
    session.output.document({"models": rows})
    session.output.table(("model", "versions", "latest", "tags", "created", "size", "stored"),
                         [(at["model"], at["versions"], at["latest"] or "-", _tags(at["tags"]),
                           to_the_second(str(at["created"])), _size(at["decoded_bytes"]), _size(at["stored_bytes"]))
                          for at in rows], right=("versions", "size", "stored"))
    if not rows:
        session.output.note("no models yet: `modelfs push` brings one")


def _files(session: Session, config: Config, repository: Repository, ref: ModelRef) -> None:
    catalog = repository.catalog(Deadline(config.fetch.deadline_s)).catalog
    version = repository.resolve(catalog, ref, Deadline(config.fetch.deadline_s)).version
    files = [{"path": file.path, "size": file.size, "mtime": rfc3339_ns(file.mtime_ns)}
             for file in repository.manifest(version.manifest, Deadline(config.fetch.deadline_s)).files()]
    session.output.document({"model": str(ref.model), "version": version.name, "files": files})
    session.output.line(f"{ref.model} {version.name}, {counted(len(files), 'file')}")
    session.output.table(("size", "modified", "path"), [(_size(at["size"]), to_the_second(str(at["mtime"])), at["path"])
                                                        for at in files], right=("size",))


def _tags(tags: object) -> str:
    return ", ".join(f"{tag}={version}" for tag, version in tags.items()) if isinstance(tags, dict) else ""


def _size(size_bytes: object) -> str:
    return show_size(size_bytes) if isinstance(size_bytes, int) else ""
