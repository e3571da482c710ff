"""What smaller models are worth at load time: a cold sequential read through a mount, over a link of 1 Gbit/s and over
loopback, of a bf16 model, of its variants, and of a fine-tune that is stored as differences to it.

Rule: all are read in turn in each round, with the page cache dropped and an empty cache but where the base is said to
be in it; seconds are medians, and every ratio is within a round. Needs root.

    python -m benchmarks.variants [--mib 256] [--rounds 3]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.checkpoint import shard_paths, tensors_of, write_checkpoint
from benchmarks.conditions import NAMES, Condition, condition
from benchmarks.measures import drop_pages, sequential_s
from benchmarks.mounts import mounted
from benchmarks.peers import MODEL, MODELFS, REPOSITORY
from benchmarks.processes import interruptible, run
from benchmarks.server import bytes_sent
from modelfs.codecs.floats import BF16
from modelfs.units import MiB

RECIPES = ("int8", "kmeans16", "prune50")
TUNED, SIGMA = "acme/tuned", 1e-2


@dataclass(frozen=True, slots=True)
class Case:
    """before: a model that was read through the same cache before."""

    name: str
    model: str
    before: str | None = None


CASES = (Case("original", MODEL), *(Case(recipe, f"{MODEL}@{recipe}") for recipe in RECIPES),
         Case("fine-tune, --delta", TUNED), Case("fine-tune, --delta, base in the cache", TUNED, MODEL))


@dataclass(frozen=True, slots=True)
class Read:
    """sent: bytes that the server sent meanwhile."""

    seconds: float
    sent: int


def tune(source: Path, target: Path) -> None:
    """A copy, each weight of which is moved by relative noise N(0, SIGMA) and rounded to bf16."""
    shutil.copytree(source, target)
    rng = np.random.default_rng(5)
    for path in shard_paths(target):
        for _, tensor in tensors_of(path):
            bits = np.memmap(path, np.uint16, "r+", tensor.offset, (tensor.length // 2,))
            noise = 1 + rng.standard_normal(len(bits), np.float32) * np.float32(SIGMA)
            bits[:] = BF16.rounded((bits.astype(np.uint32) << 16).view(np.float32) * noise)


def push_all(root: Path, scratch: Path, size: int) -> int:
    """The bytes of one model's shards."""
    source, tuned, repository = scratch / "source", scratch / "tuned", root / REPOSITORY
    write_checkpoint(source, size)
    tune(source, tuned)
    run([*MODELFS, "init", repository])
    for words in ((source, MODEL), *((source, f"{MODEL}@{recipe}", "--recipe", recipe) for recipe in RECIPES),
                  (tuned, TUNED, "--base", MODEL)):
        run([*MODELFS, "push", words[0], repository, *words[1:], "--quiet"])
    size = sum(path.stat().st_size for path in shard_paths(source))
    shutil.rmtree(source)
    shutil.rmtree(tuned)
    return size


def read(case: Case, network: Condition, scratch: Path) -> Read:
    try:
        for model in (case.before, case.model):
            if model is not None:
                with mounted(f"{network.url}/{REPOSITORY}", scratch, "--model", model) as here:
                    drop_pages()
                    since = network.server.position()
                    seconds = sequential_s(shard_paths(here.place))
                    sent = bytes_sent(network.server.requests(since))
        return Read(seconds, sent)
    finally:
        shutil.rmtree(scratch / "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="modelfs-variants-"))
    try:
        with interruptible():
            (work / "www").mkdir()
            size = push_all(work / "www", work, args.mib * MiB)
            for name in NAMES[1::-1]:
                with condition(name, work / "www", work / "nginx") as network:
                    show(name, size, [{case.name: read(case, network, work / "mount") for case in CASES}
                                      for _ in range(args.rounds)])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def show(network: str, size: int, rounds: Sequence[Mapping[str, Read]]) -> None:
    print(f"{network:38}{'sent ÷ its bytes':>17}{'seconds':>9}{'÷ original':>11}")
    for case in CASES:
        sent, seconds, ratio = (statistics.median(values) for values in zip(*(
            (one[case.name].sent / size, one[case.name].seconds, one[case.name].seconds / one["original"].seconds)
            for one in rounds), strict=True))
        print(f"{case.name:38}{sent:17.3f}{seconds:9.2f}{ratio:11.2f}", flush=True)


if __name__ == "__main__":
    main()
