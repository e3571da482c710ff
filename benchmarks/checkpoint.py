"""A checkpoint like llama's, of any size: bf16 safetensors in shards, with an index and a config.

Rule: the same arguments make the same bytes, and the values are what weights look like (N(0, 0.02)), since what a
codec gains depends on them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HIDDEN, INTERMEDIATE, KEYS = 2048, 5632, 256
LAYER = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
         "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
         "mlp.up_proj": (INTERMEDIATE, HIDDEN), "mlp.down_proj": (HIDDEN, INTERMEDIATE),
         "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
BF16_BYTES = 2
WHOLE_VOCABULARY = 32000
PROBED = "self_attn.q_proj"  # 8 MiB: the tensor that the latency benchmark reads


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor's bytes lie in its file."""

    path: str
    offset: int
    length: int


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of about `size` bytes of tensors, in the order of the shards."""
    vocabulary = WHOLE_VOCABULARY if size >= 1 << 30 else WHOLE_VOCABULARY // 8
    layer_bytes = sum(int(np.prod(shape)) for shape in LAYER.values()) * BF16_BYTES
    layers = max(1, round((size - 2 * vocabulary * HIDDEN * BF16_BYTES) / layer_bytes))
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for number in range(layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in LAYER.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}


def write_checkpoint(directory: Path, size: int, shards: int = 2) -> None:
    """Writes about `size` bytes into `shards` files of nearly equal size, and the small files beside them."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = shapes(size)
    total = sum(int(np.prod(shape)) for shape in wanted.values()) * BF16_BYTES
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    done = 0
    for name, shape in wanted.items():
        length = int(np.prod(shape)) * BF16_BYTES
        groups[min(shards - 1, (done + length // 2) * shards // total)][name] = shape
        done += length
    rng = np.random.default_rng(1)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        _write_shard(directory / name, group, rng)
        weight_map |= dict.fromkeys(group, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN}))


def write_small_shards(directory: Path, shards: int) -> None:
    """A model of many shards of 1 MiB: what opening it costs is headers."""
    directory.mkdir()
    rng = np.random.default_rng(3)
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        _write_shard(directory / name, {f"model.layers.{number}.weight": (256, HIDDEN)}, rng)
        weight_map[f"model.layers.{number}.weight"] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": shards}))


def replace_tensor(directory: Path, name: str) -> None:
    """Gives one tensor of a checkpoint other values, in place."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    path = directory / weight_map[name]
    tensor = dict(tensors_of(path))[name]
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(_weights(tensor.length // BF16_BYTES, np.random.default_rng(4)).tobytes())


def _write_shard(path: Path, group: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    header, at = {}, 0
    for name, shape in group.items():
        end = at + int(np.prod(shape)) * BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in group.values():
            file.write(_weights(int(np.prod(shape)), rng).tobytes())


def _weights(count: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    values = rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """What a safetensors file's header says, with two reads."""
    with path.open("rb", buffering=0) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield name, Tensor(path.name, 8 + length + start, end - start)


def middle_tensor(directory: Path) -> Tensor:
    """The probed tensor nearest to the middle of the first shard."""
    path = shard_paths(directory)[0]
    middle = path.stat().st_size // 2
    return min((tensor for name, tensor in tensors_of(path) if PROBED in name),
               key=lambda tensor: abs(tensor.offset + tensor.length // 2 - middle))


def shard_paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))
