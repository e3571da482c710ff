"""`modelfs cache`: models brought into the disk cache ahead of need, kept there, listed, and cleared away.

Rule: only `warm` waits for a store; whatever is removed is only a copy, and what mounts read goes on being right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from modelfs.cli.output import Session, command_options, counted, examples
from modelfs.ids import ModelRef
from modelfs.units import show_size

if TYPE_CHECKING:
    from modelfs.app.caching import Listed, Pinning
    from modelfs.config import Config


@click.group(no_args_is_help=False, epilog=examples(
    "modelfs cache warm https://models.example.org acme/llama --pin", "modelfs cache ls",
    "modelfs cache unpin https://models.example.org acme/llama", "modelfs cache clear"))
def command() -> None:
    """Fetch models into the disk cache, keep them there, see and clear what is in it."""


def _directory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--cache-dir", metavar="D", help="The cache's directory, if not the configured one.")(function)


@command.command(short_help="fetch a model, or some of its files", epilog=examples(
    "modelfs cache warm https://models.example.org acme/llama --pin",
    "modelfs cache warm /srv/models acme/llama:v3 '*.json' tokenizer.model"))
@click.argument("repo")
@click.argument("model")
@click.argument("path", nargs=-1)
@click.option("--pin", is_flag=True, help="Keep it until `modelfs cache unpin`, whatever else needs room.")
@_directory_option
@command_options()
def warm(session: Session, repo: str, model: str, path: tuple[str, ...], pin: bool, cache_dir: str | None) -> None:
    """Fetch MODEL, or the files of it that PATHs name (globs, too), into the cache.

    Then it serves, and is mounted again, with the network gone. What does not fit is refused before anything is
    fetched. Run again, it fetches only what is missing.
    """
    from modelfs.app.caching import WarmRequest
    from modelfs.app.caching import warm as run

    config, ref = _config(session, cache_dir), ModelRef.parse(model)
    with session.output.progress(None, f"warm {ref}") as bar:
        done = run(config, repo, WarmRequest(ref, path, pin), session.environ, bar,
                   session.output.note)
    if done.get("warning"):  # a mount of an older modelfs does not say
        session.output.note(done["warning"])
    session.output.document(done)
    session.output.line(f"{done['model']} {done['version']}: {counted(done['files'], 'file')}, "
                        f"{show_size(done['bytes'])}; {show_size(done['fetched_bytes'])} new in the cache"
                        + (", pinned" if pin else "")
                        + (f"; through the mount {done['through']}" if done["through"] else ""))


@command.command(short_help="keep what the cache has of a model", epilog=examples(
    "modelfs cache pin https://models.example.org acme/llama:v3"))
@click.argument("repo")
@click.argument("model")
@click.argument("path", nargs=-1)
@_directory_option
@command_options()
def pin(session: Session, repo: str, model: str, path: tuple[str, ...], cache_dir: str | None) -> None:
    """Keep what the cache has of MODEL, and say what it lacks."""
    from modelfs.app import caching

    config = _config(session, cache_dir)
    with caching.cache_of(config) as cache:
        done = caching.pin(cache, config, repo, ModelRef.parse(model), path, session.output.note)
    _show_pinning(session, done, "pinned")
    if done.missing:
        some = ", ".join(done.missing[:5]) + (", …" if len(done.missing) > 5 else "")
        session.output.note(f"not, or not whole, in the cache: {some}. "
                            f"`modelfs cache warm {repo} {model} --pin` fetches it.")


@command.command(short_help="let it go when room is needed", epilog=examples(
    "modelfs cache unpin https://models.example.org acme/llama"))
@click.argument("repo")
@click.argument("model")
@click.argument("path", nargs=-1)
@_directory_option
@command_options()
def unpin(session: Session, repo: str, model: str, path: tuple[str, ...], cache_dir: str | None) -> None:
    """Let the cache drop MODEL when it needs room: all its versions, or the one that a tag or :vN names."""
    from modelfs.app import caching

    config = _config(session, cache_dir)
    with caching.cache_of(config) as cache:
        done = caching.unpin(cache, caching.url_of(config, repo), ModelRef.parse(model), path)
    _show_pinning(session, done, "unpinned")


@command.command("ls", short_help="show what is in the cache", epilog=examples(
    "modelfs cache ls", "modelfs cache ls https://models.example.org acme/llama"))
@click.argument("repo", required=False)
@click.argument("model", required=False)
@_directory_option
@command_options()
def list_(session: Session, repo: str | None, model: str | None, cache_dir: str | None) -> None:
    """Show what is in the cache: of everything, of a repository, or the files of a model."""
    from modelfs.app import caching

    config = _config(session, cache_dir)
    with caching.cache_of(config) as cache:
        found = caching.listing(cache, None if repo is None else caching.url_of(config, repo),
                                None if model is None else ModelRef.parse(model))
    session.output.document({"directory": str(config.cache.directory), "files": [_fields(one) for one in found]})
    if model is None:
        _show_models(session, found)
    else:
        session.output.table(("version", "path", "size", "cached", ""),
                             [(at["version"], at["path"], show_size(at["size"]), show_size(at["cached_bytes"]),
                               "pinned" if at["pinned"] else "") for at in map(_fields, found)],
                             right=("size", "cached"))


@command.command(short_help="remove what is not pinned", epilog=examples(
    "modelfs cache clear", "modelfs cache clear https://models.example.org acme/llama"))
@click.argument("repo", required=False)
@click.argument("model", required=False)
@_directory_option
@command_options()
def clear(session: Session, repo: str | None, model: str | None, cache_dir: str | None) -> None:
    """Remove what is not pinned: everything, what is of a repository, or of a model."""
    from modelfs.app import caching

    config = _config(session, cache_dir)
    with caching.cache_of(config) as cache:
        done = caching.clear(cache, None if repo is None else caching.url_of(config, repo),
                             None if model is None else ModelRef.parse(model))
    session.output.document({"directory": str(config.cache.directory), **asdict(done)})
    session.output.line(f"{counted(done.files, 'file')} removed, {show_size(done.freed_bytes)} freed; "
                        f"{done.kept_pinned} pinned, {done.kept_in_use} in use by the kernel")


def _config(session: Session, cache_dir: str | None) -> Config:
    return session.config(cache_directory=None if cache_dir is None else os.path.abspath(cache_dir))


def _fields(listed: Listed) -> dict[str, Any]:
    """Of the newest version that has the file; null where no name is known."""
    version, path = listed.of[0] if listed.of else (None, None)
    return {"repository": version.repository if version else None, "model": str(version.model) if version else None,
            "version": version.name if version else None, "path": path, "file": listed.file.name,
            "size": listed.file.size_bytes, "cached_bytes": listed.file.cached_bytes, "pinned": listed.file.pinned,
            "also": [{"repository": other.repository, "model": str(other.model), "version": other.name, "path": where}
                     for other, where in listed.of[1:]]}


def _show_models(session: Session, found: list[Listed]) -> None:
    """A row for each version; a file that several have counts for the newest."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for at in map(_fields, found):
        name = (at["repository"], at["model"], at["version"]) if at["model"] else ("", f"file {at['file'][:16]}…", "")
        groups.setdefault(name, []).append(at)
    session.output.table(("repository", "model", "version", "files", "size", "cached", "pinned"), [
        (*name, len(files), show_size(sum(at["size"] for at in files)),
         show_size(sum(at["cached_bytes"] for at in files)), sum(at["pinned"] for at in files))
        for name, files in sorted(groups.items())], right=("files", "size", "cached", "pinned"))
    if not found:
        session.output.note("nothing of this is in the cache")


def _show_pinning(session: Session, done: Pinning, what: str) -> None:
    session.output.document({"model": done.model, "versions": list(done.versions), what: list(done.paths),
                             "missing": list(done.missing), "bytes": done.bytes})
    session.output.line(f"{done.model} {', '.join(done.versions) or '(nothing)'}: "
                        f"{counted(len(done.paths), 'file')} {what}, {show_size(done.bytes)}")
