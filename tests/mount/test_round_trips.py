"""What a start, the headers of a model, one tensor and a whole load ask the store for: counted, not timed.

Rule: requests that do not need one another are under way at the same time: the one is seen while the other hangs.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter, reader, until
from mount.readers import storm
from weights import gaussian

from modelfs.units import KiB, MiB

SHARDS = 30
TENSORS = 4
TENSOR = 256 * KiB  # a chunk


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """acme/many: shards of four tensors each, whose headers end within a page, and a config."""
    place = tmp_path_factory.mktemp("many")
    model = place / "model"
    model.mkdir()
    for number in range(SHARDS):
        entries = {f"layer.{number}.{n}": {"dtype": "U8", "shape": [TENSOR],
                                           "data_offsets": [n * TENSOR, (n + 1) * TENSOR]} for n in range(TENSORS)}
        header = json.dumps(entries).encode()
        (model / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + random.Random(number).randbytes(TENSORS * TENSOR))
    (model / "config.json").write_text("{}")
    environ = {"HOME": str(place), "PATH": "/usr/bin:/bin"}
    pusher = Mounter(place, environ)
    assert pusher.run("init", "repository", "--chunk-size", "256KiB").returncode == 0
    assert pusher.run("push", "model", "repository", "acme/many").returncode == 0
    return place


@pytest.fixture
def proxy(pushed: Path) -> Iterator[FaultProxy]:
    with FaultProxy(pushed / "repository") as server:
        yield server


def header_bytes(path: Path) -> int:
    """Reads a shard's header as safetensors does; where the tensors begin."""
    with path.open("rb", buffering=0) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length))
    return 8 + int(length)


def highest_bytes(pid: int) -> int:
    """VmHWM."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * KiB


@pytest.mark.parametrize(("first", "beside"), [("modelfs.json", "catalog.json"), ("catalog.json", "modelfs.json"),
                                               ("manifests/", "layouts/"), ("layouts/", "manifests/")])
def test_a_start_asks_at_once_for_what_does_not_need_one_another(mount: Mounter, proxy: FaultProxy, first: str,
                                                                beside: str) -> None:
    proxy.add("hang", first)
    mount.start(proxy.url, "--model", "acme/many")
    until(lambda: proxy.requests(beside) and proxy.requests(first))


def test_a_start_is_five_requests(mount: Mounter, proxy: FaultProxy) -> None:
    mount(proxy.url, "--model", "acme/many")
    assert sorted(seen.path.split("/")[1] for seen in proxy.seen()) == [
        "catalog.json", "histories", "layouts", "manifests", "modelfs.json"]


def test_the_first_header_brings_all_others_and_what_shares_their_pages(mount: Mounter, proxy: FaultProxy) -> None:
    """The head pack; what lies behind the header that was read; then, at once, what lies behind the other headers."""
    mount.environ["MODELFS_FETCH_HYDRATE"] = "off"
    mounted = mount(proxy.url, "--model", "acme/many")
    proxy.forget()
    shards = sorted(path for path in mounted.place.iterdir() if path.suffix == ".safetensors")
    header_bytes(shards[0])
    until(lambda: proxy.requests("packs/") == 1 + SHARDS)
    until(lambda: mounted.status()["counters"]["chunks_fetched"] == 2 * SHARDS + 1)
    assert proxy.bytes_sent("packs/") <= SHARDS * (TENSOR + KiB)
    for path in shards:
        header_bytes(path)
    assert (mounted / "config.json").read_text() == "{}"
    assert proxy.requests("packs/") == 1 + SHARDS


def test_a_tensor_of_a_file_that_nobody_read_is_one_request_of_its_bytes(mount: Mounter, proxy: FaultProxy,
                                                                         pushed: Path) -> None:
    mount.environ["MODELFS_FETCH_HYDRATE"] = "off"
    mounted = mount(proxy.url, "--model", "acme/many")
    name = f"model-00007-of-{SHARDS:05}.safetensors"
    start = header_bytes(pushed / "model" / name) + 2 * TENSOR
    proxy.forget()
    with (mounted / name).open("rb", buffering=0) as file:
        file.seek(start + 64 * KiB)
        file.read(4 * KiB)
    assert len(proxy.seen()) == 1
    assert proxy.bytes_sent() <= 2 * TENSOR


def test_a_whole_load_fetches_what_is_stored_once(mount: Mounter, proxy: FaultProxy, pushed: Path) -> None:
    mounted = mount(proxy.url, "--model", "acme/many")
    proxy.forget()
    for path in sorted(mounted.place.iterdir()):
        assert path.read_bytes() == (pushed / "model" / path.name).read_bytes()
    stored = json.loads(mount.run("inspect", pushed / "repository", "acme/many", "--json").stdout)["stored_bytes"]
    assert stored <= proxy.bytes_sent("packs/") <= 1.02 * stored


def test_sixteen_cold_readers_and_three_files_that_are_brought_stay_below_512_mib(mount: Mounter,
                                                                                tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.bin").write_bytes(random.Random(number).randbytes(64 * MiB))
    assert mount.run("init", "repository").returncode == 0
    assert mount.run("push", "large", "repository", "acme/large").returncode == 0
    mount.environ["MODELFS_FETCH_HYDRATE"] = "file"
    with FaultProxy(tmp_path / "repository") as proxy:
        mounted = mount(proxy.url, "--model", "acme/large")
        paths = [mounted / f"{number % 3}.bin" for number in range(16)]
        readers = [reader(path, 4 * MiB * number, 64 * MiB - 4 * MiB * number) for number, path in enumerate(paths)]
        try:
            for each in readers:
                each.wait(120)
                assert each.stdout and each.stdout.read() == "read\n"
            until(lambda: mounted.status()["cache"]["bytes"] >= 3 * 64 * MiB, 60)
            assert highest_bytes(mounted.status()["pid"]) < 512 * MiB
        finally:
            for each in readers:
                each.kill()
                each.wait()


def test_random_reads_of_many_of_the_largest_chunks_by_64_threads_stay_below_512_mib(mount: Mounter,
                                                                                   tmp_path: Path) -> None:
    source, chunk = tmp_path / "large", 16 * MiB
    source.mkdir()
    weights = (gaussian(chunk // 2).view(np.uint32) >> 16).astype("<u2")
    header = json.dumps({"layer": {"dtype": "BF16", "shape": [12, chunk // 2], "data_offsets": [0, 12 * chunk]}})
    with (source / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        for number in range(12):  # none equal to another
            file.write((weights ^ np.uint16(number)).data)
    assert mount.run("init", "repository", "--chunk-size", "16MiB").returncode == 0
    assert mount.run("push", "large", "repository", "acme/large").returncode == 0
    with FaultProxy(tmp_path / "repository") as proxy:
        mounted = mount(proxy.url, "--model", "acme/large", "--cache-size", "48MiB")
        with storm(mounted.place, source) as readers:
            until(lambda: mounted.status()["counters"]["chunks_fetched"] >= 18, 60)
            assert readers.finish() == "[]"
        assert highest_bytes(mounted.status()["pid"]) < 512 * MiB
