"""What only modelfs is asked: a fine-tune beside its base, many processes at once, the headers of many shards.

Rule: each is counted in bytes or round trips by the server's log, so one run says it; no time is taken.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measures
from benchmarks.checkpoint import replace_tensor, shard_paths, tensors_of, write_small_shards
from benchmarks.conditions import Condition
from benchmarks.peers import MODEL, MODELFS, REPOSITORY, modelfs
from benchmarks.processes import Failed, end, run
from benchmarks.results import Record
from benchmarks.rounds import directory
from benchmarks.server import bytes_sent, longest_chain

MANY = "acme/many-shards"
SHARDS = 30
PROCESSES = 20
RETRAINED = "lm_head.weight"  # a sixteenth of the bytes: less than a usual fine-tune changes, all of it new


@dataclass(frozen=True, slots=True)
class Versions:
    """base, tuned: MODEL words. tuned_bytes, shard_bytes: stored, of the fine-tune, of the base's first shard."""

    base: str
    tuned: str
    tuned_bytes: int
    shard_bytes: int


def prepare(www: Path, original: Path, scratch: Path) -> Versions:
    """Pushes a fine-tune of the model and a model of many shards into the repository that is served."""
    repository = www / REPOSITORY
    with directory(scratch) as own:
        tuned = own / "tuned"
        shutil.copytree(original, tuned)
        replace_tensor(tuned, RETRAINED)
        push(tuned, repository, f"{MODEL}:tuned")
        write_small_shards(own / "many", SHARDS)
        push(own / "many", repository, MANY)
    first = shard_paths(original)[0].name
    shard = next(file for file in inspect(repository, MODEL)["files"] if file["path"] == first)
    return Versions(f"{MODEL}:latest", f"{MODEL}:tuned", inspect(repository, f"{MODEL}:tuned")["stored_bytes"],
                    shard["stored_bytes"])


def push(tree: Path, repository: Path, model: str) -> None:
    run([*MODELFS, "push", str(tree), str(repository), model, "--quiet"])


def inspect(repository: Path, model: str) -> dict[str, Any]:
    found = json.loads(run([*MODELFS, "inspect", str(repository), model, "--json"]))
    assert isinstance(found, dict)
    return found


def measure(found: Condition, engine: str, versions: Versions, scratch: Path) -> Record:
    peer = f"modelfs {engine}"
    if found.round_trip_s:
        return Record(found.name, peer, 0, {"headers_trips": headers_trips(found, engine, scratch)})
    return Record(found.name, peer, 0, {
        "tuned_fetched": tuned_fetched(found, engine, versions, scratch) / versions.tuned_bytes,
        "crowd_fetched": crowd_fetched(found, engine, scratch) / versions.shard_bytes})


def tuned_fetched(found: Condition, engine: str, versions: Versions, scratch: Path) -> int:
    """Bytes that travel for the fine-tune when its base is in the cache."""
    with directory(scratch) as own:
        with modelfs(engine, versions.base).open(found.url, own) as opened:
            measures.sequential_s(shard_paths(opened.directory))
        since = found.server.position()
        with modelfs(engine, versions.tuned).open(found.url, own) as opened:
            measures.sequential_s(shard_paths(opened.directory))
        found.server.position()
    return bytes_sent(found.server.requests(since))


def crowd_fetched(found: Condition, engine: str, scratch: Path) -> int:
    """Bytes that travel when twenty processes read one cold file, each from its own place on."""
    code = ("import os,sys\nfd=os.open(sys.argv[1],os.O_RDONLY); n=os.fstat(fd).st_size; s=n*int(sys.argv[2])//20\n"
            "for a,b in ((s,n),(0,s)):\n while a<b: a+=len(os.pread(fd,min(1<<20,b-a),a))")
    with directory(scratch) as own, modelfs(engine).open(found.url, own) as opened:
        since = found.server.position()
        path = shard_paths(opened.directory)[0]
        readers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(place)], start_new_session=True)
                   for place in range(PROCESSES)]
        try:
            if [reader.wait(300) for reader in readers] != [0] * PROCESSES:
                raise Failed(f"a reader of {path.name} failed")
        finally:
            for reader in readers:
                end(reader)
        found.server.position()
        return bytes_sent([each for each in found.server.requests(since) if "/packs/" in each.path])


def headers_trips(found: Condition, engine: str, scratch: Path) -> int:
    """Round trips, on a ready mount, for the headers and configurations of a model of many shards, one by one."""
    with directory(scratch) as own, modelfs(engine, MANY).open(found.url, own) as opened:
        since = found.server.position()
        for path in sorted(opened.directory.iterdir()):
            if path.suffix == ".safetensors":
                list(tensors_of(path))
            else:
                path.read_bytes()
        found.server.position()
        return longest_chain(found.server.requests(since), found.round_trip_s)
