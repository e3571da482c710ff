"""`modelfs inspect`: what a version holds and how it is stored, down to its tensors.

Rule: the numbers are maintenance/inspect.py's; this only shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Output, Session, command_options, counted, examples, to_the_second
from modelfs.ids import ModelRef
from modelfs.units import show_size

if TYPE_CHECKING:
    from modelfs.maintenance.inspect import FileStored, Inspection


@click.command(epilog=examples("modelfs inspect /srv/models acme/llama",
                               "modelfs inspect /srv/models acme/llama:v2 model.safetensors --json"))
@click.argument("repo")
@click.argument("model")
@click.argument("path", required=False)
@command_options()
def command(session: Session, repo: str, model: str, path: str | None) -> None:
    """Show a version of MODEL: its files, or with PATH one file (or a directory's) and its tensors."""
    ref = ModelRef.parse(model)
    from modelfs.app import repositories
    from modelfs.maintenance.inspect import inspect

    config = session.config()
    repository = repositories.readable_at(config, repo, tell=session.output.note)
    found = inspect(repository, ref, path, deadline_s=config.fetch.deadline_s,
                    jobs=config.fetch.connections)
    session.output.document(_document(found))
    _show(session.output, found, tensors=path is not None)


def _document(found: Inspection) -> dict[str, object]:
    version = found.version
    return {"model": str(found.ref.model), "version": version.name, "manifest": version.manifest.hex(),
            "created": version.created, "message": version.message, "metadata": dict(version.metadata),
            "decoded_bytes": found.decoded_bytes, "stored_bytes": found.stored_bytes, "chunks": found.chunks,
            "commit": found.commit, "yanked": found.yanked, "files": [_file(file) for file in found.files]}


def _file(file: FileStored) -> dict[str, object]:
    return {"path": file.entry.path, "size": file.entry.size, "stored_bytes": file.stored_bytes,
            "chunks": file.chunks, "format": file.entry.format, "digest": file.entry.digest.hex(),
            "sha256": file.entry.sha256.hex(), "tensors": [
                {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.length,
                 "stored_bytes": tensor.stored_bytes, "codecs": tensor.codecs} for tensor in file.tensors]}


def _show(output: Output, found: Inspection, *, tensors: bool) -> None:
    version = found.version
    output.line(f"{found.ref.model} {version.name}, created {to_the_second(version.created)}, commit {found.commit}")
    if found.yanked is not None:
        output.line(f"withdrawn: {found.yanked}")
    if version.message:
        output.line(version.message)
    for key, value in version.metadata.items():
        output.line(f"  {key} = {value}")
    output.line(f"{show_size(found.decoded_bytes)} in {counted(found.chunks, 'chunk')}, stored in "
                f"{show_size(found.stored_bytes)} ({_ratio(found.stored_bytes, found.decoded_bytes)})")
    output.table(("path", "format", "size", "stored", "ratio", "chunks", "tensors"),
                 [(file.entry.path, file.entry.format or "-", show_size(file.entry.size),
                   show_size(file.stored_bytes), _ratio(file.stored_bytes, file.entry.size), file.chunks,
                   len(file.tensors)) for file in found.files], right=("size", "stored", "ratio", "chunks", "tensors"))
    for file in found.files if tensors else ():
        if file.tensors:
            output.line("")
            output.table((file.entry.path, "dtype", "shape", "size", "stored", "codecs"),
                         [(tensor.name, tensor.dtype, "×".join(map(str, tensor.shape)) or "scalar",
                           show_size(tensor.length), show_size(tensor.stored_bytes),
                           ", ".join(f"{name} {count}" for name, count in tensor.codecs.items()))
                          for tensor in file.tensors], right=("size", "stored"))


def _ratio(stored_bytes: int, decoded_bytes: int) -> str:
    return f"{stored_bytes / decoded_bytes:.3f}" if decoded_bytes else "-"
