"""What the benchmarks stand on: the checkpoint, the delaying proxy, the counting of round trips, the ratios."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.bars import Bar
from benchmarks.checkpoint import middle_tensor, shard_paths, tensors_of, write_checkpoint
from benchmarks.conditions import ROUND_TRIP_S, delayed
from benchmarks.processes import descendants, running
from benchmarks.results import Record, Results, read_results
from benchmarks.server import Request, Server, longest_chain

MiB = 1 << 20
BODY = bytes(range(256)) * 40_000


def test_a_checkpoint_is_what_safetensors_reads_in_shards_of_like_size(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 128 * MiB, shards=2)
    paths = shard_paths(tmp_path)
    sizes = [path.stat().st_size for path in paths]
    assert len(paths) == 2 and max(sizes) < 2 * min(sizes)
    assert sum(sizes) == pytest.approx(128 * MiB, rel=0.1)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for path in paths:
        with safe_open(path, "np") as file:
            lengths = {name: 2 * math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert {name: tensor.length for name, tensor in tensors_of(path)} == lengths
        assert lengths.keys() == {name for name, shard in weight_map.items() if shard == path.name}
    probed = middle_tensor(tmp_path)
    assert probed.length == 8 * MiB and probed.path == paths[0].name


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


def test_the_delaying_proxy_changes_no_byte_and_answers_no_sooner_than_a_round_trip(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            port = server.server_address[1]
            with delayed(Server("127.0.0.1", port, tmp_path / "log"), tmp_path) as far:
                connection = http.client.HTTPConnection("127.0.0.1", far, timeout=30)
                waits = []
                for _ in range(3):
                    began = time.monotonic()
                    connection.request("GET", "/")
                    answer = connection.getresponse()
                    waits.append(time.monotonic() - began)
                    assert answer.read() == BODY
                connection.close()
        finally:
            server.shutdown()
    assert waits[0] >= 2 * ROUND_TRIP_S, "the first has to connect, too"
    assert min(waits[1:]) >= ROUND_TRIP_S


def requests(*times: tuple[float, float]) -> list[Request]:
    return [Request(began, ended, 0, "/") for began, ended in times]


@pytest.mark.parametrize("times, length", [
    ([], 0),
    ([(0.0, 0.001), (0.02, 0.021), (0.04, 0.041)], 3),
    ([(0.0, 0.001), (0.001, 0.002), (0.002, 0.003)], 1),  # none could know of the one before
    ([(0.0, 0.001), (0.02, 0.5), (0.021, 0.022), (0.05, 0.06)], 3),  # the long one beside them does not hide them
])
def test_only_requests_a_round_trip_apart_count_as_a_chain(times: list[tuple[float, float]], length: int) -> None:
    assert longest_chain(requests(*times), ROUND_TRIP_S) == length


def test_connecting_is_no_round_trip_of_the_chain() -> None:
    first, beside, later = 0.0, 0.025, 0.045  # asked together once the first had come; one had to connect
    asked = [Request(first, first, 0, "/"), Request(beside, beside, 0, "/")]
    assert longest_chain([*asked, Request(later, later, 0, "/")], ROUND_TRIP_S) == 3
    assert longest_chain([*asked, Request(later, later, 0, "/", connecting=True)], ROUND_TRIP_S) == 2


def test_a_ratio_is_taken_within_each_round(tmp_path: Path) -> None:
    results = Results({}, {"size_bytes": 1})
    for number, slower in enumerate((1, 10, 3)):  # the machine
        results.records += [Record("free", "ours", number, {"cold_s": 2.0 * slower, "beside_s": 3.0 * slower}),
                            Record("free", "theirs", number, {"cold_s": 1.0 * slower})]
    results.records.append(Record("free", "theirs", 3, {"cold_s": 100.0}))  # a round that only one of them has
    results.write(tmp_path / "results.json")
    for each in (results, read_results(tmp_path / "results.json")):
        assert each.ratio("free", "ours", "theirs", "cold_s") == 2
        assert each.median("free", "ours", "cold_s") == 6
        assert each.ratio("free", "ours", "nobody", "cold_s") is None
        assert each.within("free", "ours", "beside_s", "cold_s") == 1.5
        assert each.within("free", "theirs", "beside_s", "cold_s") is None


@pytest.mark.parametrize("bar, verdict", [
    (Bar("speed", 1.0, 0.97), "met"), (Bar("speed", 0.96, 0.97), "NOT MET"),
    (Bar("trips", 2, 2, most=True), "met"), (Bar("trips", 3, 2, most=True), "NOT MET"),
    (Bar("speed", None, 0.97), "not measured"), (Bar("CPU", 3.0, None), "reported"),
])
def test_a_bar_is_met_by_its_figure_alone(bar: Bar, verdict: str) -> None:
    assert bar.verdict == verdict


def test_what_a_benchmark_starts_is_gone_after_an_error_with_all_its_children(tmp_path: Path) -> None:
    def family() -> list[int]:
        return descendants(process.pid)

    with pytest.raises(KeyboardInterrupt), running(["sh", "-c", "sleep 600 & sleep 600"], tmp_path / "log") as process:
        end = time.monotonic() + 10
        while len(family()) < 2:
            assert time.monotonic() < end
        children = family()
        raise KeyboardInterrupt
    assert process.returncode is not None
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/stat").exists()
              and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" for pid in children):
        assert time.monotonic() < end
