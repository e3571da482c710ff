#!/usr/bin/env bash
# A fine-tune that changes a tenth of its base's tensors takes a tenth of the space: push both, and see what was new.
# In a temporary directory that is gone afterwards. Needs modelfs, and python3 with numpy and safetensors.
set -euo pipefail
work=$(mktemp -d "${TMPDIR:-/tmp}/modelfs-finetune.XXXXXX")
trap 'rm -rf "$work"' EXIT

python3 - "$work" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

work, random = Path(sys.argv[1]), np.random.default_rng(1)
tensors = {f"layer.{n:02}.weight": random.normal(0, 0.02, (512, 1024)).astype(np.float32) for n in range(20)}
for name, changed in (("base", []), ("tuned", ["layer.18.weight", "layer.19.weight"])):
    for tensor in changed:
        tensors[tensor] = tensors[tensor] + np.float32(0.001)
    (work / name).mkdir()
    save_file(tensors, work / name / "model.safetensors")
PYTHON

pushed() {
    python3 -c '
import json, sys
pushed = json.load(sys.stdin)
sent, whole = pushed["uploaded_bytes"] / 1e6, pushed["decoded_bytes"] / 1e6
print(pushed["model"] + ":", pushed["new_chunks"], "new chunks,", pushed["reused_chunks"], "reused,",
      f"{sent:.1f} MB written for {whole:.1f} MB")'
}

modelfs init "$work/repository" >/dev/null
modelfs push --json "$work/base" "$work/repository" acme/base | pushed
modelfs push --json "$work/tuned" "$work/repository" acme/tuned | pushed
