"""Makes the golden repository, once: v1/ and, beside it, v1.json with what is in it. (python tests/golden/make.py)

Rule: v1/ is never made again once it was released: it stands for every repository of that format out there.
Format 2 gets a directory of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.repository import keys
from modelfs.repository.info import initialise
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.transfer.push import PushOptions, push
from modelfs.units import Deadline, KiB, rfc3339

HERE = Path(__file__).parent
Files = Mapping[str, bytes]


def safetensors(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(data for _, _, data in tensors.values())])


def gguf(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Version 3, one string of metadata, F32 tensors, alignment 32."""
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    out += string("general.architecture") + struct.pack("<I", 8) + string("golden")
    at, bodies = 0, []
    for name, array in tensors.items():
        body = array.astype("<f4").tobytes()
        body += bytes(-len(body) % 32)
        out += string(name) + struct.pack("<I", array.ndim)
        out += struct.pack(f"<{array.ndim}Q", *array.shape[::-1]) + struct.pack("<IQ", 0, at)
        bodies.append(body)
        at += len(body)
    return out + bytes(-len(out) % 32) + b"".join(bodies)


def torch_zip(records: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(f"golden/{name}", (2026, 1, 1, 0, 0, 0)), data)
    return out.getvalue()


def bf16(values: np.ndarray) -> bytes:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def first() -> dict[str, bytes]:
    """Every format, and data for which each codec is the best."""
    rng = np.random.default_rng(20260101)
    normal = lambda *shape: rng.normal(0, 0.02, shape).astype("<f4")  # noqa: E731
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, normal(60, 90))
    np.savez(npz, a=normal(40, 30), b=rng.integers(0, 99, 500))
    return {
        "model.safetensors": safetensors({
            "embedding": ("BF16", [400, 150], bf16(normal(400, 150))), "norm": ("F32", [64], normal(64).tobytes()),
            "layer": ("F32", [150, 150], normal(150, 150).tobytes()),
            "zeros": ("F32", [200, 128], bytes(4 * 200 * 128))}),
        "weights.gguf": gguf({"token_embd.weight": normal(32, 64), "output.weight": normal(32, 64)}),
        "pytorch_model.bin": torch_zip({"data.pkl": b"\x80\x02}q\x00.", "byteorder": b"little",
                                        "data/0": normal(50, 60).tobytes(), "data/1": normal(9).tobytes()}),
        "array.npy": npy.getvalue(),
        "arrays.npz": npz.getvalue(),
        "codecs/noise": rng.bytes(20_000),
        "codecs/repeats": rng.bytes(4096) * 16,
        "codecs/two_planes": (rng.integers(0, 256, 16_384) | 0x3F00).astype("<u2").tobytes(),
        "codecs/four_planes": (rng.integers(0, 256, 16_384) | 0x3F801100).astype("<u4").tobytes(),
        "codecs/text": "".join(f"{n}: {n * n}\n" for n in range(3000)).encode(),
        "config.json": b'{"model_type": "golden"}\n',
        "empty": b"",
        "run.sh": b"#!/bin/sh\necho golden\n",
        "ünïcode/名前.txt": "ж\n".encode(),
    }


def write(root: Path, files: Files) -> Path:
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if path.endswith(".sh") else 0o644)
        os.utime(target, ns=(0, 1_767_225_600_123_456_789))
    return root


def remove(repository: Repository, model: str, number: int | None) -> None:
    """One version, or the whole model."""
    name, now = ModelName.parse(model), rfc3339(time.time())
    state = repository.catalog(Deadline(60))
    rows = repository.history(state.catalog, name, Deadline(60))
    gone = [row for row in repository.versions(rows, Deadline(60)) if number in (row.number, None)]
    if number is None:
        for tag in rows.live_tags:
            rows = rows.with_tag(tag, None, now)
    text = rows.without(gone, now).serialise()
    repository.store.put(keys.history(ObjectId.of(text)), text, Deadline(60))
    models, removed = dict(state.catalog.models), dict(state.catalog.removed)
    (models if number else removed)[name] = ObjectId.of(text)
    if number is None:
        del models[name]
    after = state.catalog.next(now, models=models, removed=removed)
    repository.store.swap(keys.CATALOG, state.etag, after.serialise(), Deadline(60))


def main() -> None:
    root = HERE / "v1"
    if root.exists():
        sys.exit(f"{root} is there already, and is never made again")
    store = FileStore(root)
    initialise(store, 64 * KiB, time.time(), Deadline(60))
    repository = Repository.open(store, Deadline(60))
    expected: dict[str, dict[str, list[object]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        pushes = [("golden/mixed:prod", first(), "the first"), ("golden/mixed", {"config.json": b"{}"}, "a mistake"),
                  ("golden/mixed", {**first(), "config.json": b'{"model_type": "golden", "steps": 2}\n'}, None),
                  ("golden/small", {"config.json": b"{}", "only.txt": b"only\n"}, None),
                  ("golden/gone", {"gone.txt": b"gone\n"}, None)]
        for number, (ref, files, message) in enumerate(pushes):
            report = push(write(Path(scratch) / f"{number}", files), repository, ModelRef.parse(ref), PushOptions(
                Path(scratch) / "state", lambda: Deadline(60), message, {"kind": "golden"} if message else {}))
            expected[f"{report.model}:{report.version}"] = {
                path: [len(data), hashlib.sha256(data).hexdigest()] for path, data in sorted(files.items())}
    for model, version in (("golden/mixed", 2), ("golden/gone", None)):
        remove(repository, model, version)
        del expected[f"{model}:v{version or 1}"]
    (root / ".lock").unlink(missing_ok=True)
    (HERE / "v1.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
