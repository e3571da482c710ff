"""A comparison as people read it: tables on a terminal and in Markdown, and plots.

Rule: every number comes from the results; docs/benchmarks.md keeps what people wrote around the marked part.

    python -m benchmarks.report RESULTS.json DOCS     writes the tables and plots of an older run again
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.bars import bars, subject
from benchmarks.conditions import NAMES
from benchmarks.results import Results, read_results

FREE, LINK, FAR = NAMES
Table = list[list[str]]
BEGIN, END = "<!-- figures: written by benchmarks/report.py -->", "<!-- end of figures -->"
RESULTS, SPEED_PLOT, NETWORK_PLOT = "benchmarks.json", "benchmarks-reads.svg", "benchmarks-networks.svg"
OURS, THEIRS = "#1f6f8b", "#b8b8b8"


def reads_table(results: Results) -> Table:
    """Unthrottled: what a disk and a processor allow."""
    rows = [["", "cold GB/s", "warm seq", "warm mmap", "8 threads", "4 KiB reads/s", "cold load s", "CPU s",
             "peak MiB", "fetched ÷ needed"]]
    for peer in results.peers():
        reads = results.median(FREE, peer, "random_reads") or 0
        random_s = results.median(FREE, peer, "random_s")
        fetched, again = (results.median(FREE, peer, name) for name in ("fetched_bytes", "warm_fetched_bytes"))
        local = not fetched
        rows.append([
            peer + (" (fetched while warm)" if again else ""),
            *(speed(results, FREE, peer, name) for name in ("cold_s", "warm_s", "mapped_s", "threaded_s")),
            f"{reads / random_s:,.0f}" if random_s else "–",
            number(results.median(FREE, peer, "load_s")),
            "–" if local else number(results.median(FREE, peer, "cpu_s")),
            number(results.median(FREE, peer, "peak_bytes") or None, 1 << 20, "{:.0f}"),
            "–" if local else number(fetched, results.facts["size_bytes"])])
    return rows


def networks_table(results: Results) -> Table:
    """Cold over a narrow and a long line."""
    rows = [["", f"{LINK}: GB/s", "with 20 ms: GB/s", "one tensor s", "round trips, ready", "round trips, from start",
             "MB fetched for it"]]
    for peer in results.peers():
        if results.values(LINK, peer, "cold_s") or results.values(FAR, peer, "cold_s"):
            rows.append([peer, speed(results, LINK, peer, "cold_s", 3), speed(results, FAR, peer, "cold_s", 3),
                         number(results.median(FAR, peer, "tensor_s")),
                         *(number(results.median(FAR, peer, name), 1, "{:.0f}") for name in ("trips_ready",
                                                                                            "trips_start")),
                         number(results.median(FAR, peer, "tensor_fetched_bytes"), 1e6, "{:.1f}")])
    return rows


def bars_table(results: Results) -> Table:
    return [[f"{subject(results)}", "figure", "bar", ""], *(
        [bar.what, number(bar.figure), "" if bar.bound is None else f"{'≤' if bar.most else '≥'} {bar.bound:.2f}",
         bar.verdict] for bar in bars(results))]


def speed(results: Results, condition: str, peer: str, name: str, digits: int = 2) -> str:
    seconds = results.median(condition, peer, name)
    return f"{results.facts['size_bytes'] / seconds / 1e9:.{digits}f}" if seconds else "–"


def number(value: float | None, divisor: float = 1, shown: str = "{:.2f}") -> str:
    return "–" if value is None else shown.format(value / divisor)


def about(results: Results) -> str:
    """One paragraph: on what, of what, how often."""
    facts, told = results.facts, results.about
    # an idle machine enters with less than 1; the run itself brings it to 2 or 3
    doubt = " (others were busy on the machine: provisional)" if float(told["load average before"]) > 1 else ""
    return (f"{told['date']}; {told['machine']}, Linux {told['kernel']}, Python {told['python']}; {told['versions']}. "
            f"{facts['size_bytes'] / 1e9:.2f} GB of bf16 in shards, stored {facts['stored_bytes'] / 1e9:.2f} GB "
            f"(juicefs {facts['juicefs_bytes'] / 1e9:.2f}), push {facts['push_s']:.1f} s; medians of "
            f"{facts['rounds']:.0f} rounds; one tensor: {facts['tensor_bytes'] / 1e6:.1f} MB. Load average "
            f"before: {told['load average before']}, after: {told['load average after']}{doubt}. The "
            f"delaying proxy alone passes {facts['proxy_ceiling_Bps'] / 1e9:.2f} GB/s. Command: `{told['command']}`.")


def show_tables(results: Results) -> None:
    print(about(results))
    for table in (reads_table(results), networks_table(results)):
        print()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            print("  ".join(cell.ljust(width) if at == 0 else cell.rjust(width)
                            for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip())
    for what, why in results.skipped.items():
        print(f"\nleft out: {what}: {why}")


def markdown(table: Table) -> str:
    head, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join([head, "|" + "---|" * len(table[0]), *rows])


def write_report(results: Results, docs: Path) -> None:
    """The results as JSON, the plots, and the marked part of benchmarks.md."""
    results.write(docs / RESULTS)
    plot_reads(results, docs / SPEED_PLOT)
    plot_networks(results, docs / NETWORK_PLOT)
    left_out = "".join(f"\nLeft out: {what}: {why}\n" for what, why in results.skipped.items())
    figures = "\n\n".join([about(results) + left_out, markdown(reads_table(results)), f"![reads]({SPEED_PLOT})",
                           markdown(networks_table(results)), f"![networks]({NETWORK_PLOT})",
                           markdown(bars_table(results))])
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{rest.partition(END)[2]}")


def plot_reads(results: Results, path: Path) -> None:
    plot(results, path, [("cold", FREE, "cold_s"), ("warm, sequential", FREE, "warm_s"),
                         ("warm, mmap", FREE, "mapped_s"), ("warm, 8 threads", FREE, "threaded_s")])


def plot_networks(results: Results, path: Path) -> None:
    plot(results, path, [(f"cold, {LINK}", LINK, "cold_s"), (f"cold, {FAR}", FAR, "cold_s")])


def plot(results: Results, path: Path, panels: list[tuple[str, str, str]]) -> None:
    """One panel a figure: a bar a peer, and a dot a round, so that the noise is seen."""
    size, peers = results.facts["size_bytes"], results.peers()[::-1]
    with rc_context({"svg.hashsalt": "modelfs", "font.size": 8}):  # the same figures make the same file
        figure = Figure(figsize=(2.6 * len(panels) + 1, 2.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, condition, name) in zip(axes, panels, strict=True):
            for at, peer in enumerate(peers):
                speeds = [size / seconds / 1e9 for seconds in results.values(condition, peer, name).values()]
                if speeds:
                    axis.barh(at, median(speeds), color=OURS if peer.startswith("modelfs") else THEIRS)
                    axis.plot(speeds, [at] * len(speeds), ".", color="black", markersize=2)
            axis.set_title(title)
            axis.set_xlabel("GB/s")
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_yticks(range(len(peers)), peers)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    write_report(read_results(Path(sys.argv[1])), Path(sys.argv[2]))
