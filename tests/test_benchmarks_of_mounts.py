"""What the benchmarks of one mount stand on: its percentiles and ratios, and the repository of very many chunks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bars import Bar, show_bars
from benchmarks.engine import Case, engine_bars
from benchmarks.latency import Round, Span, latency_bars, p99_s
from benchmarks.many import Tree, publish, renew, write_objects
from benchmarks.processes import Failed
from benchmarks.starting import Start, Way, start_bars
from modelfs.ids import ModelName, ModelRef
from modelfs.repository.info import MIN_CHUNK_SIZE, initialise
from modelfs.repository.layout import Layout
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import MiB

NAME = ModelName("acme", "many")


def reads(*taken: float, began: float = 0) -> list[Span]:
    return [Span(began, began + seconds) for seconds in taken]


def test_p99_is_what_one_read_in_a_hundred_takes_longer_than() -> None:
    assert p99_s(reads(*range(1, 101))) == 99
    assert p99_s(reads(*range(200, 0, -1))) == 198
    assert p99_s(reads(*[1] * 98, 7, 9)) == 7


def test_only_reads_that_began_while_a_version_was_loaded_count() -> None:
    within = reads(*[2] * 100, began=10) + reads(*[3] * 100, began=30)
    without = reads(*[9] * 300, began=9.9) + reads(*[9] * 300, began=20)
    assert p99_s(within + without, [Span(10, 20), Span(30, 31)]) == 3
    with pytest.raises(Failed, match="too few"):
        p99_s(without, [Span(10, 20)])


def test_a_disturbed_idle_round_does_not_make_the_busy_ones_look_better() -> None:
    rounds = [Round(0.001, 0.002, 0.008, ()), Round(0.020, 0.002, 0.006, ())]
    *_, ratio = latency_bars(rounds)
    assert ratio.figure == pytest.approx(6) and ratio.verdict == "NOT MET"


def case(kb: int, what: str, **speeds: float) -> Case:
    """Of a single round."""
    return Case(kb, what, {name: [1 / speed] for name, speed in speeds.items()})


def test_an_engines_ratio_is_of_speeds_within_a_round() -> None:
    found = Case(128, "mmap", {"native": [1.0, 10.0, 3.0], "bare": [0.5, 5.0, 0.1]})  # the machine slowed down
    assert found.ratio("native", "bare") == pytest.approx(0.5)
    assert found.ratio("bare", "native") == pytest.approx(2)


def test_storing_ahead_is_judged_where_the_kernel_asks_for_little() -> None:
    cases = [case(kb, what, native=native, storing=native * gain, bare=2, fusepy=0.5)
             for kb, native, gain in ((1024, 1.9, 1), (128, 1.0, 1.6)) for what in ("sequential", "mmap")]
    figures = {bar.what: (round(bar.figure or 0, 2), bar.bound) for bar in engine_bars(cases)}
    assert figures == {
        "sequential, 1024 KiB: native ÷ bare": (0.95, 0.85), "mmap, 1024 KiB: native ÷ bare": (0.95, 0.85),
        "sequential, 128 KiB: storing ÷ bare": (0.8, 0.85), "mmap, 128 KiB: storing ÷ bare": (0.8, 0.85),
        "sequential, 128 KiB: native ÷ bare": (0.5, None), "mmap, 128 KiB: native ÷ bare": (0.5, None),
        "sequential, 1024 KiB: native ÷ fusepy": (3.8, 1.3), "mmap, 1024 KiB: native ÷ fusepy": (3.8, 1.3),
        "sequential, 128 KiB: storing ÷ fusepy": (3.2, 1.3), "mmap, 128 KiB: storing ÷ fusepy": (3.2, 1.3),
        "mmap, 128 KiB: storing ÷ native": (1.6, 1.5)}


def test_a_start_is_judged_by_the_median_of_its_rounds() -> None:
    starts = [Start(seconds, mib * MiB, 20 * MiB, 100 * MiB) for seconds, mib in ((0.5, 91), (9.0, 89), (0.7, 95))]
    ready, worker, both, after = start_bars(Way("one version", False, True), starts)
    assert (ready.figure, ready.verdict) == (0.7, "NOT MET")
    assert (worker.figure, worker.verdict) == (91, "NOT MET")
    assert (both.figure, after.figure, both.verdict) == (111, 100, "reported")
    assert len(start_bars(Way("one version", False, False), starts)) == 3


def test_bars_are_printed_with_their_bound_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    show_bars("of something", [Bar("speed", 1.234, 0.97), Bar("seconds", 1.5, 1, most=True), Bar("CPU", None, None)])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [" ".join(line.split()) for line in lines] == [
        "Bars: of something", "speed 1.23 ≥ 0.97 met", "seconds 1.50 ≤ 1.00 NOT MET", "CPU – not measured"]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    store = FileStore(tmp_path / "repo")
    initialise(store, MIN_CHUNK_SIZE, 0, renew())
    return Repository.open(store, renew())


def test_a_version_of_very_many_chunks_is_one_that_readers_and_pushes_understand(repository: Repository) -> None:
    tree = Tree(files=30, chunks=1000)  # several packs; files of 33 chunks and of 34
    assert publish(repository, NAME, write_objects(repository, tree)) == "v1"
    assert publish(repository, NAME, write_objects(repository, Tree(30, 1000, seed=1))) == "v2"
    catalog = repository.catalog(renew()).catalog
    found = repository.resolve(catalog, ModelRef(NAME, version=1), renew()).version
    manifest, layout = repository.manifest_and_layout(found.manifest, renew())
    assert isinstance(layout, Layout)
    assert len(layout.places.packs) == 4
    for number in range(tree.files):
        entry = manifest.file(number)
        rows = range(entry.first_row, entry.first_row + entry.row_count)
        assert (entry.path, rows) == (tree.path(number), tree.rows(number))
        assert b"".join(repository.read_chunk(manifest, layout, row, renew()) for row in rows) == tree.content(number)
    assert (found.files, found.chunks, found.decoded_bytes) == (30, 1000, manifest.decoded_bytes)
    first, second = repository.indexes(catalog, renew())
    assert len(first) == len(second) == 1000 and not set(map(bytes, first.ids)) & set(map(bytes, second.ids))
    latest = repository.resolve(catalog, ModelRef(NAME), renew()).version
    assert (latest.number, latest.parent) == (2, 1)
