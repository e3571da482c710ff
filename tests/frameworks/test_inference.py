"""What models answer, loaded from a mount, equals what they answer loaded from the local directory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from frameworks.mapped import is_mapped
from frameworks.tiny_gguf import write_tiny_llama
from mount.mounting import ROOT
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

Shown = Callable[[Path], Path]
SENTENCES = ["A file system is where models live.", "Ein Dateisystem", "carrots, by the bunch " * 40]


def test_sentence_transformers_gives_the_same_embeddings(through_a_mount: Shown, minilm: Path) -> None:
    shown = through_a_mount(minilm)
    model = SentenceTransformer(str(shown), device="cpu")
    there = model.encode(SENTENCES)
    assert is_mapped(shown / "model.safetensors"), "its parameters stay mapped"
    here = SentenceTransformer(str(minilm), device="cpu").encode(SENTENCES)
    assert here.shape == (3, 384) and np.ptp(here) > 0.1
    assert np.array_equal(there, here)


def test_transformers_gives_the_same_hidden_states(through_a_mount: Shown, minilm: Path) -> None:
    def states(place: Path) -> torch.Tensor:
        model = AutoModel.from_pretrained(place)
        assert is_mapped(place / "model.safetensors"), "its parameters stay mapped"
        tokens = AutoTokenizer.from_pretrained(place)(SENTENCES, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            return model(**tokens).last_hidden_state

    assert torch.equal(states(through_a_mount(minilm)), states(minilm))


def test_onnxruntime_reads_external_data(through_a_mount: Shown, source: Path) -> None:
    write_onnx(source)
    assert (source / "weights.data").stat().st_size > 4_000_000 > 20_000 > (source / "model.onnx").stat().st_size
    shown = through_a_mount(source)
    given = {"x": np.random.default_rng(2).normal(size=(3, 1024)).astype(np.float32)}
    session = onnxruntime.InferenceSession(shown / "model.onnx", providers=["CPUExecutionProvider"])
    here = onnxruntime.InferenceSession(source / "model.onnx", providers=["CPUExecutionProvider"])
    assert not is_mapped(shown / "weights.data"), "mapped while the session is made, and packed into its own memory"
    assert np.array_equal(session.run(None, given)[0], here.run(None, given)[0])
    onnx.checker.check_model(shown / "model.onnx")


def write_onnx(place: Path) -> None:
    """y = relu(x · first) · second, with both matrices in weights.data."""
    helper, random = onnx.helper, np.random.default_rng(1)
    weights = [onnx.numpy_helper.from_array(random.normal(0, 0.02, shape).astype(np.float32), name)
               for name, shape in (("first", (1024, 1024)), ("second", (1024, 16)))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "first"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
         helper.make_node("MatMul", ["r", "second"], ["y"])], "tiny",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 1024])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 16])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, place / "model.onnx", save_as_external_data=True, location="weights.data", size_threshold=1024)


@pytest.mark.parametrize("mode", ["NONE", "MMAP", "DIRECT_IO"])
def test_llama_cpp_generates_the_same_text(mode: str, through_a_mount: Shown, source: Path) -> None:
    """In processes of their own, as llama.cpp keeps threads; with probabilities, which show a difference text hides."""
    write_tiny_llama(source / "tiny.gguf")
    there = generated(through_a_mount(source) / "tiny.gguf", mode)
    here = generated(source / "tiny.gguf", mode)
    assert len(here["tokens"]) > 12 and there["tokens"] == here["tokens"]
    assert there["mapped"] == here["mapped"] == (mode == "MMAP")


GENERATE = """
import json, sys
from pathlib import Path
import xllamacpp
from frameworks.mapped import is_mapped
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.load_mode = getattr(xllamacpp.llama_load_mode, "LLAMA_LOAD_MODE_" + sys.argv[2])
params.n_ctx, params.n_parallel, params.warmup, params.verbosity, params.cpuparams.n_threads = 128, 1, False, 0, 1
server = xllamacpp.Server(params)
answer = server.handle_completions(
    {"prompt": "Models are files", "n_predict": 24, "temperature": 0, "seed": 1, "n_probs": 1})
tokens = [(each["id"], each["logprob"]) for each in answer["choices"][0]["logprobs"]["content"]]
print(json.dumps({"tokens": tokens, "mapped": is_mapped(Path(sys.argv[1]))}))
"""


def generated(path: Path, mode: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", GENERATE, str(path), mode], cwd=ROOT / "tests", timeout=120,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
