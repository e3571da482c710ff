"""Recipes: the first rule that matches, forms that are read back the same, and errors that say what is allowed."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from transforms.test_transforms import weights

from modelfs.errors import BadInput
from modelfs.transforms import (
    NAMES,
    Affine,
    Chain,
    Cluster,
    Prune,
    PrunePattern,
    Rounding,
    Survey,
    document_of,
    nothing_matched,
    of_array,
    parse_recipe,
    recipe_named,
    transform_array,
)


def recipe_file(directory: Path, text: str) -> str:
    file = directory / "mine.toml"
    file.write_text(text)
    return str(file)


def test_the_promised_names_are_there_and_each_treats_matrices_only() -> None:
    assert NAMES == ("int8", "int4", "bf16", "fp16", "kmeans16", "kmeans256", "prune50", "prune2:4", "prune50+int8",
                     "deep-compression")
    methods = [recipe_named(name).rules[0].method for name in NAMES]
    assert methods == [Affine(8), Affine(4), Rounding("bf16"), Rounding("fp16"), Cluster(4), Cluster(8), Prune(0.5),
                       PrunePattern(2, 4), Chain(Prune(0.5), Affine(8)), Chain(Prune(0.9), Cluster(5))]
    for name in NAMES:
        recipe = recipe_named(name)
        assert recipe.name == name and recipe.choose("m.safetensors", "embed.weight", "F32", (64, 64)).method
        norm = recipe.choose("m.safetensors", "norm.weight", "F32", (8192,))
        assert norm.method is None and norm.reason == "fewer than 2 dimensions"
        assert recipe.choose("m.safetensors", "w", "F32", (63, 65)).reason == "fewer than 4096 elements"
        assert recipe.choose("m.safetensors", "ids", "I64", (64, 64)).reason == "dtype I64"


def test_the_first_rule_that_matches_decides(tmp_path: Path) -> None:
    recipe = recipe_named(recipe_file(tmp_path, """
        [[rule]]
        tensors = ["embed*", "lm_head.weight"]
        skip = true
        [[rule]]
        files = ["vision/*"]
        round = {to = "fp8", scaled = true}
        dtypes = ["F32"]
        [[rule]]
        least_elements = 0
        least_dimensions = 1
        prune = {keep = "1:4"}
        cluster = {bits = 3, group = 512, start = "k-means++", seed = 7}
    """))
    assert recipe.name == "mine"
    skipped = recipe.choose("a.safetensors", "embed.tokens", "F32", (100, 100))
    assert (skipped.rule, skipped.method, skipped.reason) == (0, None, "rule 1 skips it")
    assert recipe.choose("vision/a.safetensors", "w", "F32", (100, 100)).method == Rounding("fp8", scaled=True)
    last = Chain(PrunePattern(1, 4), Cluster(3, 512, "k-means++", 7))
    assert recipe.choose("vision/a.safetensors", "w", "BF16", (100, 100)).method == last
    assert recipe.choose("a.safetensors", "Embed", "F32", (1,)).method == last, "patterns mind case"
    assert recipe.choose("a.safetensors", "w", "F32", ()).reason == "no rule matches"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_same_read_back_from_its_json(name: str) -> None:
    recipe = recipe_named(name)
    document = json.loads(json.dumps(document_of(recipe)))
    assert parse_recipe(document, "another", "metadata") == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_file_with_every_key_is_the_same_read_back(tmp_path: Path) -> None:
    recipe = recipe_named(recipe_file(tmp_path, """
        name = "all"
        native_dtype = true
        rule = [{tensors = ["a"], skip = true}, {tensors = ["b"], quantise = {bits = 4, group = 64, zero_point = true}},
                {tensors = ["c"], prune = {threshold = 1}, round = {to = "fp16"}, dtypes = ["F32"]},
                {tensors = ["d"], prune = {sparsity = 0.25, scope = "global"}, cluster = {}}]
    """))
    assert recipe.name == "all" and recipe.native_dtype
    assert parse_recipe(json.loads(json.dumps(document_of(recipe))), "x", "y") == recipe
    assert recipe.rules[2].method == Chain(Prune(threshold=1.0), Rounding("fp16"))


BAD = [
    ("rule = 3", "rule = 3 in the recipe", "one [[rule]] or more"),
    ("", "a recipe without a rule", "one [[rule]] or more"),
    ("rule = []", "rule = []", "one [[rule]] or more"),
    ("colour = 1\n[[rule]]\nskip = true", "unknown key 'colour' in the recipe", "name, native_dtype, rule"),
    ("native_dtype = 1\n[[rule]]\nskip = true", "native_dtype = 1", "true, false"),
    ("[[rule]]\ntensor = ['a']", "unknown key 'tensor' in rule 1", "tensors"),
    ("[[rule]]\ntensors = 'a'\nskip = true", "tensors = 'a' in rule 1", "a list of one pattern or more"),
    ("[[rule]]\ntensors = []\nskip = true", "tensors = [] in rule 1", "a list of one pattern or more"),
    ("[[rule]]\ndtypes = ['F31']\nskip = true", "dtypes = ['F31']", "F64, F32, F16, BF16, F8_E4M3"),
    ("[[rule]]\nleast_elements = -1\nskip = true", "least_elements = -1", "a whole number from 0"),
    ("[[rule]]\nleast_elements = true\nskip = true", "least_elements = True", "a whole number from 0"),
    ("[[rule]]\nleast_dimensions = 1.5\nskip = true", "least_dimensions = 1.5", "from 0 to 64"),
    ("[[rule]]\ntensors = ['a']", "no method in rule 1", "prune, quantise, cluster, round, or skip = true"),
    ("[[rule]]\nskip = false", "skip = False", "true, alone in its rule"),
    ("[[rule]]\nskip = true\nprune = {sparsity = 0.5}", "skip in rule 1", "prune stands beside it"),
    ("[[rule]]\nquantise = {}\ncluster = {}", "quantise and cluster in rule 1", "they exclude each other"),
    ("[[rule]]\nquantise = 8", "quantise = 8 in rule 1", "a table"),
    ("[[rule]]\nquantise = {bits = 9}", "bits = 9 in quantise of rule 1", "4, 8"),
    ("[[rule]]\nquantise = {bits = true}", "bits = True", "4, 8"),
    ("[[rule]]\nquantise = {group = 3}", "group = 3", "an even number from 8 to 65536"),
    ("[[rule]]\nquantise = {zero_point = 'yes'}", "zero_point = 'yes'", "true, false"),
    ("[[rule]]\ncluster = {bits = 9}", "bits = 9 in cluster of rule 1", "from 2 to 8"),
    ("[[rule]]\ncluster = {group = 100}", "group = 100", "0 for the whole tensor"),
    ("[[rule]]\ncluster = {start = 'random'}", "start = 'random'", "quantile, k-means++"),
    ("[[rule]]\ncluster = {seed = -1}", "seed = -1", "from 0"),
    ("[[rule]]\nround = {}", "no to in round of rule 1", "bf16, fp16, fp8"),
    ("[[rule]]\nround = {to = 'fp4'}", "to = 'fp4'", "bf16, fp16, fp8"),
    ("[[rule]]\nround = {to = 'bf16', scaled = true}", "scaled = True", "bf16 needs no scale"),
    ("[[rule]]\nround = {to = 'bf16'}\ndtypes = ['BF16', 'F16']", "dtypes = ['BF16', 'F16']", "bf16 has 16 bits"),
    ("[[rule]]\nprune = {}", "no sparsity in prune of rule 1", "sparsity (with scope), threshold, or keep"),
    ("[[rule]]\nprune = {sparsity = 1.5}", "sparsity = 1.5 in prune of rule 1", "above 0 and below 1"),
    ("[[rule]]\nprune = {sparsity = 0}", "sparsity = 0 ", "above 0 and below 1"),
    ("[[rule]]\nprune = {sparsity = nan}", "sparsity = nan", "above 0 and below 1"),
    ("[[rule]]\nprune = {sparsity = 0.5, scope = 'layer'}", "scope = 'layer'", "tensor, global"),
    ("[[rule]]\nprune = {threshold = -1}", "threshold = -1", "a number from 0"),
    ("[[rule]]\nprune = {threshold = 1, sparsity = 0.5}", "sparsity and threshold", "each says by itself"),
    ("[[rule]]\nprune = {threshold = 1, scope = 'global'}", "no sparsity", "sparsity"),
    ("[[rule]]\nprune = {keep = '4:4'}", "keep = '4:4'", "less than m"),
    ("[[rule]]\nprune = {keep = 2}", "keep = 2 ", "2:4"),
    ("[[rule]]\nprune = {keep = '2:4', sparsity = 0.5}", "keep in prune of rule 1", "sparsity stands beside it"),
    ("native_dtype = true\n[[rule]]\nprune = {sparsity = 0.5}", "with native dtypes, rule 1", "alone leaves the dtype"),
    ("[[rule]]\nquantise = {}\n[[rule]]\ntensors = ['a*']\ncluster = {}", "rule 2 can never match", "rule 1 before it"),
    ("[[rule]]\ntensors = ['*.weight']\nskip = true\n[[rule]]\ntensors = ['a.?.weight']\ndtypes = ['F32']\n"
     "least_elements = 5000\nround = {to = 'bf16'}", "rule 2 can never match", "rule 1 before it"),
    ("[[rule", "cannot be read", "mine.toml"),
    ("rule = " + "[" * 5000, "cannot be read", "mine.toml"),
    ("[[rule]]\nquantise = {}\nquantise = {}", "cannot be read", "Cannot overwrite a value"),
    ("[[rule]]\nprune = {threshold = inf}", "threshold = inf", "a number from 0"),
]


@pytest.mark.parametrize(("text", "what", "allowed"), BAD, ids=[text[:60] for text, _, _ in BAD])
def test_a_bad_recipe_names_file_key_and_value_and_what_is_allowed(tmp_path: Path, text: str, what: str,
                                                                  allowed: str) -> None:
    with pytest.raises(BadInput) as error:
        recipe_named(recipe_file(tmp_path, text))
    line = str(error.value)
    assert what in line and allowed in line, line
    assert "mine" in line and "\n" not in line and line.endswith("."), line


def test_a_rule_after_a_narrower_one_is_fine(tmp_path: Path) -> None:
    for first in ('tensors = ["a*"]', 'files = ["x/*"]', 'dtypes = ["F32"]', "least_elements = 9000",
                  "least_dimensions = 3", 'tensors = ["?.weight"]'):
        assert len(recipe_named(recipe_file(tmp_path, f"[[rule]]\n{first}\nskip = true\n"
                                                      '[[rule]]\ntensors = ["*.weight"]\nquantise = {}')
                                ).rules) == 2


@pytest.mark.parametrize("word", ["int9", "no/such.toml"])
def test_a_word_that_is_neither_name_nor_file_is_told_the_names(word: str) -> None:
    with pytest.raises(BadInput, match=f"no recipe '{word}'.*neither a name nor a file.*int8, int4.*deep-compression"):
        recipe_named(word)


def test_a_file_that_is_no_text_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "r.toml", tmp_path):
        with pytest.raises(BadInput, match="cannot be read"):
            recipe_named(str(path))


def test_what_to_say_when_nothing_matched_counts_the_reasons() -> None:
    recipe = recipe_named("int8")
    shapes = [("F32", (10,)), ("F32", (20,)), ("F32", (2, 2)), ("I64", (100, 100))]
    error = nothing_matched(recipe, "org/model", [recipe.choose("f", "t", *each) for each in shapes])
    line = str(error)
    assert error.exit_code == 2 and "recipe 'int8' matches no tensor, org/model" in line
    assert "2 for fewer than 2 dimensions, 1 for fewer than 4096 elements, 1 for dtype I64" in line
    assert "no tensor in a format" in str(nothing_matched(recipe, "org/model", []))


def test_one_threshold_is_found_by_several_surveys_and_stands_in_the_document() -> None:
    recipe = parse_recipe({"rule": [{"tensors": ["other"], "skip": True},
                                    {"prune": {"sparsity": 0.5, "scope": "global"}, "quantise": {}}]}, "r", "r")
    assert recipe.needs_survey
    layers = {"small": weights(64, 100) * np.float32(0.01), "large": weights(64, 100, seed=2),
              "other": weights(64, 100) * 100, "bad": np.full((64, 100), np.nan, np.float32)}
    surveys = []
    for name, layer in layers.items():
        surveys.append(Survey())
        surveys[-1].add(recipe.choose("f", name, "F32", layer.shape), of_array(layer, "F32"))
    for other in surveys[1:]:
        surveys[0].merge(pickle.loads(pickle.dumps(other)))
    resolved = recipe.resolved(surveys[0])
    assert not resolved.needs_survey and resolved.rules[0] == recipe.rules[0]
    method = resolved.rules[1].method
    assert method is not None
    zeros = [np.mean(transform_array(method, layers[name]).values == 0) for name in ("small", "large")]
    assert zeros[0] > 0.9 and np.mean(zeros) == pytest.approx(0.5, abs=0.01)
    assert parse_recipe(json.loads(json.dumps(document_of(resolved))), "r", "r") == resolved
    assert recipe_named("int8").needs_survey is False


def test_the_documents_recipe_and_tables_are_those_of_the_source(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "compression.md").read_text()
    recipe = recipe_named(recipe_file(tmp_path, text.split("```toml\n")[1].split("```")[0]))
    assert [rule.method for rule in recipe.rules] == [
        None, Rounding("fp8", scaled=True), Chain(Prune(0.5, across=True), Cluster(5)), Affine(8)]
    told = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert sorted(told[:len(NAMES)]) == sorted(NAMES)
    keys = [key for key in document_of(recipe)["rule"][0] if key != "skip"]
    assert told[len(NAMES):] == [*keys, "skip", "prune", "quantise", "cluster", "round"]


def test_native_dtypes_can_be_asked_for_later_but_not_of_pruning_alone() -> None:
    assert recipe_named("prune50+int8").for_native_dtype().native_dtype
    with pytest.raises(BadInput, match=r"rule 1.*prune 2:4.*leaves the dtype as it is"):
        recipe_named("prune2:4").for_native_dtype()
