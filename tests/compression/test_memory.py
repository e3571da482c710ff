"""A tensor is never in memory whole: neither in the workers nor in who asks them."""

from __future__ import annotations

import resource
from pathlib import Path

from modelfiles import weights

from modelfs.compression.journal import Destination
from modelfs.compression.layout import ModelFile
from modelfs.compression.pool import LocalPool
from modelfs.compression.run import compress
from modelfs.transforms import recipe_named
from modelfs.units import MiB

SHARD = 512 * MiB


def high_water(pid: int) -> int:
    """The most bytes of memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_a_tensor_of_512_mib_takes_a_fraction_of_that_over_all_processes(tmp_path: Path) -> None:
    head = b'{"w":{"dtype":"F64","shape":[8192,8192],"data_offsets":[0,536870912]}}'
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:  # most of it is a hole
        file.write(len(head).to_bytes(8, "little") + head + weights(4 << 20, dtype="f8").tobytes())
        file.truncate(8 + len(head) + SHARD)
    status = path.stat()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pool = LocalPool(2)
    try:
        outcome = compress([ModelFile(path.name, str(path), status.st_size, status.st_mtime_ns, 0o644)],
                           Destination(tmp_path / "made", True), recipe_named("int8"), pool, source="x",
                           advance=lambda size: None, tell=lambda text: None)
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        workers = sum(map(high_water, pool.pids))
    finally:
        pool.close()
    assert outcome.totals.changed == 1 and (tmp_path / "made").stat().st_size == status.st_size
    assert mine + workers < SHARD // 2
    path.unlink()
    (tmp_path / "made").unlink()
