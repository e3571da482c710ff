"""List a safetensors file and load its tensors one by one: only what is touched is fetched.

    load_safetensors.py /mnt/models/acme/minilm/latest/model.safetensors
    load_safetensors.py /mnt/models/acme/minilm/latest/model.safetensors embeddings.word_embeddings.weight
"""

from __future__ import annotations

import sys

from safetensors import safe_open


def main(path: str, *names: str) -> None:
    with safe_open(path, "numpy") as file:
        for name in names or sorted(file.keys()):
            tensor = file.get_tensor(name)
            print(f"{name}  {tensor.dtype}  {list(tensor.shape)}  mean {float(tensor.mean()):+.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
