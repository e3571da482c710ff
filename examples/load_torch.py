"""Load a state dict with torch, from safetensors or from what torch.save wrote. Both are mapped, not read: a parameter
is fetched when it is first used.

    load_torch.py /mnt/models/acme/minilm/latest/model.safetensors
    load_torch.py /mnt/models/acme/base/latest/pytorch_model.bin
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file


def main(path: str) -> None:
    if path.endswith(".safetensors"):
        state = load_file(path)
    else:
        # weights_only: a checkpoint of somebody else's runs no code here.
        state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    parameters = sum(tensor.numel() for tensor in state.values())
    total = sum(tensor.double().sum().item() for tensor in state.values())
    print(f"{len(state)} tensors, {parameters} parameters, their sum {total:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
