"""`modelfs bench`: how fast a store, the cache's disk and a mount are here, and what limits a read.

Rule: the sentences follow from the figures in the table; nothing that was measured with is left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Output, Session, command_options, examples
from modelfs.errors import BadInput
from modelfs.ids import ModelRef
from modelfs.units import parse_size, show_size

if TYPE_CHECKING:
    from modelfs.app.benchmarking import Report


@click.command(epilog=examples("modelfs bench", "modelfs bench https://models.example.org acme/llama",
                               "modelfs bench /mnt/models acme/llama/v2/model.safetensors --json"))
@click.argument("place", metavar="[REPO|MOUNTPOINT]", required=False)
@click.argument("what", metavar="[MODEL|PATH]", required=False)
@click.option("--size", metavar="S", default="256MiB", show_default=True, help="Read at most so much of a file.")
@command_options()
def command(session: Session, place: str | None, what: str | None, size: str) -> None:
    """Measure this machine, a repository as it is seen from here, or a mount, and say what limits reads.

    Without arguments a generated model is pushed to a temporary repository, so that codec, hash, disk and kernel are
    measured and no network is. Of a REPO the largest file of MODEL is read (without MODEL, of the largest model), stage
    by stage, then through a mount of the command's own. Of a MOUNTPOINT the file at PATH (the largest) is read twice.
    """
    from modelfs.app import benchmarking

    config = session.config()
    size_bytes = parse_size(size)
    if size_bytes < benchmarking.LEAST_BYTES:
        raise BadInput(f"too small a size {size!r}", why=f"at least {show_size(benchmarking.LEAST_BYTES)}, since a "
                                                         "chunk may be that large")
    with session.output.progress(None, "bench") as bar:
        bench = benchmarking.Bench(config, session.environ, session.config_file, size_bytes, bar)
        if place is None:
            report = benchmarking.bench_machine(bench)
        elif benchmarking.is_mount(config, place):
            report = benchmarking.bench_mount(bench, Path(place), what)
        else:
            report = benchmarking.bench_repository(bench, place, ModelRef.parse(what) if what else None)
    session.output.document(report.fields())
    _show(session.output, report)


def _show(output: Output, report: Report) -> None:
    model = f" {report.model} {report.version}" if report.model else ""
    output.line(f"{report.repository}{model}, {report.file}")
    if report.round_trip_ms is not None:
        output.line(f"round trip {report.round_trip_ms:.2f} ms")
    output.line("")
    output.table(("stage", "what was measured", "size", "GB/s", "s per GB"),
                 [(stage.name, stage.what, show_size(stage.bytes), f"{stage.bytes_per_s / 1e9:.2f}",
                   f"{stage.s_per_gb:.3f}") for stage in report.stages], right=("size", "GB/s", "s per GB"))
    if report.mount is not None:
        output.line("")
        counters = report.mount["counters"]
        shown = ("bytes_fetched", "chunks_fetched", "cache_hits", "cache_misses", "passthrough_opens")
        output.table(("the mount's counters", *shown),
                     [(name, *(counted[each] for each in shown)) for name, counted in counters.items()], right=shown)
    output.line("")
    for sentence in (report.limits.cold, report.limits.warm):
        if sentence is not None:
            output.line(sentence)
    for note in report.notes:
        output.note(note)
