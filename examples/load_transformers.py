"""Embed sentences with a sentence-transformers model that lies in a mount: its directory is the model's name.

    load_transformers.py /mnt/models/acme/minilm/latest "a file system" "a place for files" "a bunch of carrots"

transformers' own classes work alike: AutoModel.from_pretrained("/mnt/models/acme/minilm/latest").
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import, which reads it: all files are here, no hub is asked

from sentence_transformers import SentenceTransformer


def main(model: str, *sentences: str) -> None:
    vectors = SentenceTransformer(model, device="cpu").encode(list(sentences), normalize_embeddings=True)
    for sentence, vector in zip(sentences, vectors, strict=True):
        print(f"{float(vectors[0] @ vector):.6f}  {sentence}")


if __name__ == "__main__":
    main(*sys.argv[1:])
