"""`modelfs compress`: a model's files with fewer bits a weight, in the formats that they had.

Rule: numbers on standard output are those of the files that were made; progress is for terminals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, Whole, command_options, counted, examples
from modelfs.errors import BadInput
from modelfs.units import show_size

if TYPE_CHECKING:
    from modelfs.compression.run import Outcome
    from modelfs.transforms import TensorReport

_NUMBERS = ("bits", "max error", "RMS error", "cosine", "SNR dB")


@click.command(epilog=examples("modelfs compress ./llama ./llama-int8 --recipe int8",
                               "modelfs compress a.safetensors b.safetensors --recipe rules.toml --report report.json",
                               "modelfs compress ./llama ./llama-int4 --recipe int4 --executor dask://scheduler:8786"))
@click.argument("src")
@click.argument("dst")
@click.option("--recipe", "recipe_name", metavar="NAME|FILE", required=True,
              help="int8, int4, bf16, fp16, kmeans16, kmeans256, prune50, prune2:4, prune50+int8, deep-compression, "
                   "or a TOML file of rules.")
@click.option("--report", metavar="F", help="Write what was done to each tensor, as JSON.")
@click.option("--plot", metavar="F", help="Draw the error against the bits: .png, .svg or .pdf; needs modelfs[plot].")
@click.option("--native-dtype", is_flag=True,
              help="safetensors only: store the small dtypes themselves; other programs will not read them as weights.")
@click.option("--jobs", type=Whole(1, 1024), metavar="N", help="Work in N processes (default: one a core).")
@click.option("--executor", metavar="dask://HOST:PORT",
              help="Work on this Dask cluster, whose workers see the same files; needs modelfs[dask].")
@click.option("--follow-links", is_flag=True, help="Take what links out of SRC lead to, too.")
@command_options()
def command(session: Session, src: str, dst: str, recipe_name: str, report: str | None, plot: str | None,
            native_dtype: bool, jobs: int | None, executor: str | None, follow_links: bool) -> None:
    """Make DST, like SRC, a directory or a file, but with weights transformed by a recipe, with some loss.

    Files keep their formats, tensors their names, shapes and dtypes, so everything opens them as before. They are as
    large as before, and take as much GPU memory: what gets smaller is what a repository stores and sends of them.
    A run that was killed goes on where it was when it is run again.
    """
    from modelfs.app.compressing import Request, run
    from modelfs.compression.plot import check_plot, draw
    from modelfs.transforms import recipe_named

    if executor is not None and jobs is not None:
        raise BadInput("--jobs and --executor", why="a cluster has the workers that it has",
                       advice="Leave out --jobs.")
    for path in (report, plot):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise BadInput("cannot be written", where=path, why="no such directory")
    if plot is not None:
        check_plot(Path(plot))
    recipe = recipe_named(recipe_name)
    if native_dtype:
        recipe = recipe.for_native_dtype()
    request = Request(Path(src), Path(dst), recipe, jobs or 0, executor, follow_links,
                      session.config().fetch.deadline_s)
    with session.output.progress(None, f"compress {src}") as bar:
        outcome = run(request, bar.total, bar.advance, session.output.note)
    document = {"src": src, "dst": dst} | outcome.document()
    if report is not None:
        _write(Path(report), json.dumps(document, indent=2) + "\n")
    if plot is not None:
        try:
            draw([tensor for _, tensor in outcome.tensors], f"{src}: {recipe.name}", Path(plot))
        except OSError as error:
            raise BadInput("cannot be written", where=plot, why=error.strerror or str(error)) from error
    session.output.document(document)
    _show(session, outcome, dst)


def _show(session: Session, outcome: Outcome, dst: str) -> None:
    output, totals = session.output, outcome.totals
    for number, file in enumerate(outcome.files):
        rows = [_row(tensor) for at, tensor in outcome.tensors if at == number]
        if rows:
            output.table((file.path, "dtype", "weights", "method", *_NUMBERS), rows, right=("weights", *_NUMBERS))
            output.line("")
    before, after = sum(file.size_before for file in outcome.files), sum(file.size for file in outcome.files)
    output.line(f"{dst}: {counted(len(outcome.files), 'file')}, {totals.changed} of "
                f"{counted(totals.tensors, 'tensor')} changed; {_number(totals.bits, '.2f')} bits a weight, "
                f"RMS error {_number(totals.rms_error, '.3g')}, SNR {_number(totals.snr_db, '.1f')} dB")
    if outcome.resumed_tensors:
        output.line(f"{counted(outcome.resumed_tensors, 'tensor')} done by a run before")
    if outcome.recipe.native_dtype:
        output.line(f"{show_size(before)} → {show_size(after)}, in small dtypes: "
                    "modelfs.compression.read_native reads them")
    else:
        output.line(f"{show_size(after)} as before: pushed to a repository it takes about so many bits a weight, and "
                    "as much GPU memory as ever")


def _row(tensor: TensorReport) -> tuple[object, ...]:
    return (tensor.name or "-", tensor.dtype, tensor.elements, tensor.method, _number(tensor.bits, ".2f"),
            _number(tensor.max_error, ".3g"), _number(tensor.rms_error, ".3g"), _number(tensor.cosine, ".6f"),
            _number(tensor.snr_db, ".1f"))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise BadInput("cannot be written", where=str(path), why=error.strerror or str(error)) from error
