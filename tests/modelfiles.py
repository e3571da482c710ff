"""Model files for tests: weights of every format in small, torch's without torch."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def weights(*shape: int, dtype: str = "f4", seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def write_gguf(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """F32 and F16, without metadata."""
    table, data = b"", b""
    for name, array in tensors.items():
        shape, kind = array.shape[::-1], {"f4": 0, "f2": 1}[array.dtype.str[1:]]
        table += struct.pack("<Q", len(name)) + name.encode() + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += array.tobytes() + b"\0" * (-array.nbytes % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + table
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


@dataclass(frozen=True)
class Storage:
    """What torch.save writes as a record of its own; kind such as FloatStorage."""

    kind: str
    key: str
    data: bytes


@dataclass(frozen=True)
class View:
    """A tensor of a storage; start and strides in elements."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def whole(key: str, array: np.ndarray, kind: str = "FloatStorage") -> View:
    strides = tuple(each // array.itemsize for each in array.strides)
    return View(Storage(kind, key, array.tobytes()), 0, array.shape, strides)


def write_torch(path: Path, state: object, storages: Sequence[Storage], *, raw_pickle: bytes | None = None,
                byteorder: bytes = b"little") -> None:
    """As torch.save does, records at multiples of 64 bytes with data descriptors after them."""
    with path.open("wb") as file, zipfile.ZipFile(_Unseekable(file), "w") as archive:
        for name, data in [("m/data.pkl", raw_pickle if raw_pickle is not None else _pickled(state)),
                           ("m/byteorder", byteorder), *((f"m/data/{each.key}", each.data) for each in storages),
                           ("m/version", b"3\n")]:
            info = zipfile.ZipInfo(name)
            padding = -(file.tell() + 34 + len(name)) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            with archive.open(info, "w") as record:
                record.write(data)


class _Unseekable(io.RawIOBase):
    """zipfile writes descriptors only where it cannot go back."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._file.write(data)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()


def _pickled(state: object) -> bytes:
    out = io.BytesIO()
    with _torch_of_names():
        _Pickler(out, 2).dump(state)
    return out.getvalue()


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return "storage", getattr(sys.modules["torch"], value.kind), value.key, "cpu", len(value.data)
        return None

    def reducer_override(self, value: object) -> object:
        if isinstance(value, View):
            rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (value.storage, value.start, value.shape, value.strides, False, {})
        return NotImplemented


@contextmanager
def _torch_of_names() -> Iterator[None]:
    """Modules that have what a pickle of torch's names, and do nothing."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None:
        pass
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    torch._utils = utils  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
