"""Train a small network, prune and cluster it, and see what a repository stores of it (Han et al., "Deep Compression",
ICLR 2016: pruning, clustering, entropy coding), and of its checkpoints as differences to one another.

    deep_compression.py /tmp/deep-compression

It draws its own task: digits of a 5×7 font, moved, turned, scaled and drowned in noise. The network is the paper's
LeNet-300-100. Needs numpy and safetensors, and `modelfs` on the PATH; writes below the directory it is given.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Array = NDArray[np.float32]
Weights = dict[str, Array]

SIDE, CLASSES = 28, 10
LAYERS = (SIDE * SIDE, 300, 100, CLASSES)
SPARSITY = 0.9
FONT = ("0E11131519110E", "040C040404040E", "0E11010204081F", "1F02040201110E", "02060A121F0202", "1F101E0101110E",
        "0608101E11110E", "1F010204080808", "0E11110E11110E", "0E11110F01020C")
"""A digit a word, a row of five dots a byte."""


def glyph(digit: int) -> Array:
    """[7, 5] of 0 and 1."""
    rows = np.frombuffer(bytes.fromhex(FONT[digit]), np.uint8)
    return np.unpackbits(rows[:, None], axis=1)[:, 3:].astype(np.float32)


def digits(count: int, pick: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Pictures [count, 784] and what they show [count]."""
    shown = pick.integers(0, CLASSES, count)
    glyphs = np.pad(np.stack([glyph(digit) for digit in range(CLASSES)]), ((0, 0), (1, 1), (1, 1)))
    y, x = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    angle, scale = pick.normal(0, 0.2, (2, count, 1, 1)) + [[[[0]]], [[[1]]]]
    move = pick.normal(0, 0.12, (2, count, 1, 1))
    across = (np.cos(angle) * x + np.sin(angle) * y) * scale + move[0]
    down = (np.cos(angle) * y - np.sin(angle) * x) * scale + move[1]
    row = np.clip(np.rint((down + 1) * 4), 0, 8).astype(np.int64)
    column = np.clip(np.rint((across + 1) * 3), 0, 6).astype(np.int64)
    pictures = glyphs[shown[:, None, None], row, column] + pick.normal(0, 0.4, (count, SIDE, SIDE))
    return pictures.reshape(count, -1).astype(np.float32), shown


def beginning(pick: np.random.Generator) -> Weights:
    weights: Weights = {}
    for layer, (before, after) in enumerate(pairwise(LAYERS)):
        weights[f"fc{layer}.weight"] = pick.normal(0, (2 / before) ** 0.5, (before, after)).astype(np.float32)
        weights[f"fc{layer}.bias"] = np.zeros(after, np.float32)
    return weights


def forward(weights: Weights, pictures: Array) -> list[Array]:
    """The input of each layer, and the last one's output."""
    at = [pictures]
    for layer in range(len(LAYERS) - 1):
        out = at[-1] @ weights[f"fc{layer}.weight"] + weights[f"fc{layer}.bias"]
        at.append(np.maximum(out, 0) if layer < len(LAYERS) - 2 else out)
    return at


def accuracy(weights: Weights, pictures: Array, shown: NDArray[np.int64]) -> float:
    return float((forward(weights, pictures)[-1].argmax(1) == shown).mean())


def train(weights: Weights, pictures: Array, shown: NDArray[np.int64], rate: float, pick: np.random.Generator,
          masks: Weights | None = None) -> None:
    """One epoch of stochastic gradient descent with momentum, in place. What masks hold as 0 stays 0."""
    speed = {name: np.zeros_like(values) for name, values in weights.items()}
    for batch in np.array_split(pick.permutation(len(shown)), len(shown) // 64):
        at = forward(weights, pictures[batch])
        odds = np.exp(at[-1] - at[-1].max(1, keepdims=True))
        error = odds / odds.sum(1, keepdims=True)
        error[np.arange(len(batch)), shown[batch]] -= 1
        for layer in reversed(range(len(LAYERS) - 1)):
            name = f"fc{layer}.weight"
            slopes = {name: at[layer].T @ error / len(batch), f"fc{layer}.bias": error.mean(0)}
            error = (error @ weights[name].T) * (at[layer] > 0)
            for each, slope in slopes.items():
                speed[each] = 0.9 * speed[each] - rate * slope
                weights[each] += speed[each]
            if masks is not None and name in masks:
                weights[name] *= masks[name]


def pruned(weights: Weights, sparsity: float) -> Weights:
    """Masks of the largest weights of each matrix that the recipe prunes, too."""
    return {name: (np.abs(values) > np.quantile(np.abs(values), sparsity)).astype(np.float32)
            for name, values in weights.items() if values.ndim == 2 and values.size >= 4096}


def modelfs(*words: object) -> dict[str, object]:
    done = subprocess.run(["modelfs", *map(str, words), "--json"], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def main(place: str) -> None:
    root, pick = Path(place), np.random.default_rng(1)
    root.mkdir(parents=True, exist_ok=True)
    repository = root / "repository"
    modelfs("init", repository)
    known, unknown = digits(12_000, pick), digits(4_000, pick)
    weights = beginning(pick)
    print("checkpoint  accuracy  as a difference to the one before, of its bytes")
    for epoch in range(6):
        train(weights, *known, rate=0.05 * 0.5 ** epoch, pick=pick)
        pushed = _push(repository, root / f"epoch{epoch}", weights, "acme/lenet", "--delta")
        print(f"{pushed['version']:10}  {accuracy(weights, *unknown):8.4f}  "
              f"{pushed['stored_bytes'] / pushed['decoded_bytes']:.3f}")  # type: ignore[operator]
    whole = accuracy(weights, *unknown)
    for sparsity, rate in ((0.5, 0.02), (0.7, 0.02), (0.8, 0.02), *((SPARSITY, 0.02 / n) for n in (1, 2, 4))):
        masks = pruned(weights, sparsity)
        for name, mask in masks.items():
            weights[name] *= mask
        train(weights, *known, rate=rate, pick=pick, masks=masks)
    _save(root / "pruned", weights)
    modelfs("compress", root / "pruned", root / "small", "--recipe", "deep-compression")
    small = modelfs("push", root / "small", repository, "acme/lenet@small")
    clustered = load_file(root / "small" / "model.safetensors")
    stored, original = small["stored_bytes"], (root / "pruned" / "model.safetensors").stat().st_size
    print(f"pruned to {SPARSITY:.0%} zeros, 32 clusters: {original} bytes stored in {stored}, "
          f"{original / stored:.1f} times smaller; "  # type: ignore[operator]
          f"accuracy {whole:.4f} before, {accuracy(weights, *unknown):.4f} pruned, "
          f"{accuracy(clustered, *unknown):.4f} clustered")


def _save(directory: Path, weights: Weights) -> None:
    directory.mkdir(exist_ok=True)
    save_file(weights, directory / "model.safetensors")


def _push(repository: Path, directory: Path, weights: Weights, model: str, *options: str) -> dict[str, object]:
    _save(directory, weights)
    return modelfs("push", directory, repository, model, *options)


if __name__ == "__main__":
    main(*sys.argv[1:])
