"""Recipes by name, from TOML files, and as JSON: one form for all three.

    native_dtype = false            # optional: store the small dtypes themselves
    [[rule]]                        # in order, the first that matches a tensor decides
    tensors = ["*.weight"]          # shell patterns for whole names; default ["*"]
    files = ["*.safetensors"]       # for paths in the model; default ["*"]
    dtypes = ["F32", "BF16"]        # default all but F8_E4M3
    least_elements = 4096           # the default
    least_dimensions = 2            # the default: matrices; norms and biases have one dimension
    prune = {sparsity = 0.5, scope = "tensor"}      # or scope = "global"; or {threshold = 0.01}; or {keep = "2:4"}
    quantise = {bits = 8, group = 128, zero_point = false}      # one of these three, alone or after prune
    cluster = {bits = 4, group = 0, start = "quantile", seed = 0}
    round = {to = "bf16"}                           # or fp16, fp8; {to = "fp8", scaled = true}
    skip = true                                     # alone: what matches stays as it is

Rule: whatever is not of this form is BadInput with file, key, value and what is allowed; so are contradictions.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelfs.errors import BadInput
from modelfs.transforms.chain import Chain
from modelfs.transforms.cluster import Cluster
from modelfs.transforms.dtypes import BITS
from modelfs.transforms.kmeans import STARTS
from modelfs.transforms.prune import Prune, PrunePattern
from modelfs.transforms.quantise import Affine
from modelfs.transforms.recipe import (
    LEAST_DIMENSIONS,
    LEAST_ELEMENTS,
    USUAL_DTYPES,
    Method,
    Recipe,
    Rule,
    nominal_bits,
)
from modelfs.transforms.rounding import SHORT, Rounding

_PRUNE_90 = {"prune": {"sparsity": 0.9}, "cluster": {"bits": 5}}
_BY_NAME: Mapping[str, dict[str, object]] = MappingProxyType({
    "int8": {"quantise": {"bits": 8}}, "int4": {"quantise": {"bits": 4}},
    "bf16": {"round": {"to": "bf16"}, "dtypes": ["F64", "F32"]},
    "fp16": {"round": {"to": "fp16"}, "dtypes": ["F64", "F32"]},
    "kmeans16": {"cluster": {"bits": 4}}, "kmeans256": {"cluster": {"bits": 8}},
    "prune50": {"prune": {"sparsity": 0.5}}, "prune2:4": {"prune": {"keep": "2:4"}},
    "prune50+int8": {"prune": {"sparsity": 0.5}, "quantise": {"bits": 8}}, "deep-compression": _PRUNE_90})
"""Each one rule for all matrices of 4096 elements or more, embeddings among them; norms and biases stay."""
NAMES = tuple(_BY_NAME)

_Check = Callable[[Any], bool]
_LARGEST_GROUP = 1 << 16


def recipe_named(word: str) -> Recipe:
    """word: a name of NAMES, or the path of a TOML file. Raises BadInput."""
    if word in _BY_NAME:
        return parse_recipe({"rule": [_BY_NAME[word]]}, word, word)
    path = Path(word)
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no recipe {word!r}", why="it is neither a name nor a file",
                       advice=f"Names: {', '.join(NAMES)}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput("a recipe that cannot be read", where=word, why=str(error),
                       advice="Its form stands in docs/compression.md.") from error
    return parse_recipe(document, path.stem, word)


def parse_recipe(document: Mapping[str, Any], name: str, where: str) -> Recipe:
    """document: a TOML file's content, or what document_of gave. where: for errors. Raises BadInput."""
    reader = _Reader(where, "the recipe")
    reader.known(document, {"name", "native_dtype", "rule"})
    name = reader.value(document, "name", name, lambda value: isinstance(value, str), "a text")
    native = reader.value(document, "native_dtype", False, _is_bool, "true, false")
    tables = reader.value(document, "rule", [], lambda value: isinstance(value, list)
                          and bool(value) and all(isinstance(each, dict) for each in value), "one [[rule]] or more")
    if not tables:
        raise BadInput("a recipe without a rule", where=where, advice="Allowed: one [[rule]] or more.")
    rules = [_rule(_Reader(where, f"rule {number}"), table) for number, table in enumerate(tables, 1)]
    for later, rule in enumerate(rules):
        for earlier in range(later):
            if rules[earlier].covers(rule):
                raise BadInput(f"rule {later + 1} can never match", where=where,
                               why=f"rule {earlier + 1} before it matches all that it would",
                               advice="Put the narrower rule first, or leave it out.")
    recipe = Recipe(name, tuple(rules))
    return recipe.for_native_dtype() if native else recipe


def document_of(recipe: Recipe) -> dict[str, object]:
    """JSON that parse_recipe reads again; every default is written out, since defaults may change and versions not."""
    rules = []
    for rule in recipe.rules:
        rules.append({"tensors": list(rule.tensors), "files": list(rule.files), "dtypes": list(rule.dtypes),
                      "least_elements": rule.least_elements, "least_dimensions": rule.least_dimensions,
                      **_method_document(rule.method)})
    return {"name": recipe.name, "native_dtype": recipe.native_dtype, "rule": rules}


def _method_document(method: Method | None) -> dict[str, object]:
    if method is None:
        return {"skip": True}
    if isinstance(method, Chain):
        return _method_document(method.first) | _method_document(method.second)
    if isinstance(method, PrunePattern):
        return {"prune": {"keep": f"{method.keep}:{method.of}"}}
    if isinstance(method, Prune):
        told: dict[str, object] = {}
        if method.sparsity is not None:
            told = {"sparsity": method.sparsity, "scope": "global" if method.across else "tensor"}
        return {"prune": told if method.threshold is None else told | {"threshold": method.threshold}}
    if isinstance(method, Affine):
        return {"quantise": {"bits": method.bits, "group": method.group, "zero_point": method.zero_point}}
    if isinstance(method, Cluster):
        return {"cluster": {"bits": method.bits, "group": method.group, "start": method.start, "seed": method.seed}}
    return {"round": {"to": method.target, "scaled": method.scaled}}


class _Reader:
    """Takes values out of one table of a recipe, and says of a bad one where it stands and what is allowed."""

    def __init__(self, where: str, table: str) -> None:
        self._where, self._table = where, table

    def within(self, key: str) -> _Reader:
        return _Reader(self._where, f"{key} of {self._table}")

    def known(self, table: Mapping[str, Any], keys: set[str]) -> None:
        for key in table:
            if key not in keys:
                raise BadInput(f"unknown key {key!r} in {self._table}", where=self._where,
                               advice=f"Allowed: {', '.join(sorted(keys))}.")

    def value(self, table: Mapping[str, Any], key: str, default: Any, check: _Check, allowed: str) -> Any:
        value = table.get(key, default)
        if key in table and not check(value):
            self.refuse(f"{key} = {value!r}", f"Allowed: {allowed}.")
        return value

    def refuse(self, what: str, advice: str, why: str = "") -> None:
        raise BadInput(f"{what} in {self._table}", where=self._where, why=why, advice=advice)


def _rule(reader: _Reader, table: Mapping[str, Any]) -> Rule:
    reader.known(table, {"tensors", "files", "dtypes", "least_elements", "least_dimensions", "skip", "prune",
                         "quantise", "cluster", "round"})
    patterns = "a list of one pattern or more"
    rule = Rule(
        _method(reader, table),
        tuple(reader.value(table, "tensors", ["*"], _are_texts, patterns)),
        tuple(reader.value(table, "files", ["*"], _are_texts, patterns)),
        tuple(reader.value(table, "dtypes", USUAL_DTYPES, lambda value: _are_texts(value) and set(value) <= set(BITS),
                           f"a list of {', '.join(BITS)}")),
        reader.value(table, "least_elements", LEAST_ELEMENTS, _whole(0, 1 << 62), "a whole number from 0"),
        reader.value(table, "least_dimensions", LEAST_DIMENSIONS, _whole(0, 64), "a whole number from 0 to 64"))
    bits = nominal_bits(rule.method) if rule.method else None
    if bits is not None and all(BITS[dtype] <= bits for dtype in rule.dtypes):
        reader.refuse(f"dtypes = {list(rule.dtypes)}", "Name dtypes with more bits, or a method with fewer.",
                      f"{rule.method.name if rule.method else ''} has {bits} bits, and they have no more")
    return rule


def _method(reader: _Reader, table: Mapping[str, Any]) -> Method | None:
    reader.value(table, "skip", True, lambda value: value is True, "true, alone in its rule")
    named = [key for key in _SECOND if key in table]
    if "skip" in table and (named or "prune" in table):
        reader.refuse("skip", "Leave out skip or the method.", f"{(['prune'] + named)[-1]} stands beside it")
    if len(named) > 1:
        reader.refuse(" and ".join(named), "Leave one of them.", "they exclude each other")
    for key in ("prune", *named):
        reader.value(table, key, {}, lambda value: isinstance(value, dict), "a table such as {bits = 4}")
    first = _prune(reader.within("prune"), table["prune"]) if "prune" in table else None
    if not named:
        if first is None and "skip" not in table:
            reader.refuse("no method", "Allowed: prune, quantise, cluster, round, or skip = true.")
        return first
    second = _SECOND[named[0]](reader.within(named[0]), table[named[0]])
    return second if first is None else Chain(first, second)


def _prune(reader: _Reader, table: Mapping[str, Any]) -> Prune | PrunePattern:
    reader.known(table, {"sparsity", "scope", "threshold", "keep"})
    keep = reader.value(table, "keep", "", _is_pattern, 'n:m such as "2:4", n at least 1 and less than m, m at most 16')
    sparsity = reader.value(table, "sparsity", None, lambda value: _is_number(value) and 0 < value < 1,
                            "a number above 0 and below 1")
    threshold = reader.value(table, "threshold", None, lambda value: _is_number(value) and value >= 0,
                             "a number from 0")
    scope = reader.value(table, "scope", "tensor", lambda value: value in ("tensor", "global"), "tensor, global")
    if keep and len(table) > 1:
        reader.refuse("keep", "Leave one of them.", f"{sorted(table.keys() - {'keep'})[0]} stands beside it")
    if keep:
        n, m = keep.split(":")
        return PrunePattern(int(n), int(m))
    if sparsity is None and (threshold is None or "scope" in table):
        reader.refuse("no sparsity", "Allowed: sparsity (with scope), threshold, or keep.")
    if sparsity is not None and threshold is not None and scope == "tensor":
        reader.refuse("sparsity and threshold", "Leave one of them.", "each says by itself what goes")
    return Prune(sparsity, threshold if threshold is None else float(threshold), scope == "global")


def _affine(reader: _Reader, table: Mapping[str, Any]) -> Affine:
    reader.known(table, {"bits", "group", "zero_point"})
    return Affine(
        reader.value(table, "bits", 8, lambda value: type(value) is int and value in (4, 8), "4, 8"),
        reader.value(table, "group", 128, lambda value: _whole(8, _LARGEST_GROUP)(value) and value % 2 == 0,
                     f"an even number from 8 to {_LARGEST_GROUP}"),
        reader.value(table, "zero_point", False, _is_bool, "true, false"))


def _cluster(reader: _Reader, table: Mapping[str, Any]) -> Cluster:
    reader.known(table, {"bits", "group", "start", "seed"})
    return Cluster(
        reader.value(table, "bits", 4, _whole(2, 8), "a whole number from 2 to 8"),
        reader.value(table, "group", 0, lambda value: value == 0 or _whole(256, _LARGEST_GROUP)(value),
                     f"0 for the whole tensor, or a whole number from 256 to {_LARGEST_GROUP}"),
        reader.value(table, "start", "quantile", lambda value: value in tuple(STARTS), ", ".join(STARTS)),
        reader.value(table, "seed", 0, _whole(0, (1 << 63) - 1), "a whole number from 0"))


def _rounding(reader: _Reader, table: Mapping[str, Any]) -> Rounding:
    reader.known(table, {"to", "scaled"})
    target = reader.value(table, "to", "", lambda value: value in tuple(SHORT), ", ".join(SHORT))
    scaled = reader.value(table, "scaled", False, _is_bool, "true, false")
    if not target:
        reader.refuse("no to", f"Allowed: {', '.join(SHORT)}.")
    if scaled and target != "fp8":
        reader.refuse("scaled = True", 'Leave it out, or round to = "fp8".', f"{target} needs no scale")
    return Rounding(target, scaled)


_SECOND: Mapping[str, Callable[[_Reader, Mapping[str, Any]], Affine | Cluster | Rounding]] = MappingProxyType(
    {"quantise": _affine, "cluster": _cluster, "round": _rounding})


def _whole(least: int, most: int) -> _Check:
    return lambda value: type(value) is int and least <= value <= most


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each for each in value)


def _is_pattern(value: Any) -> bool:
    found = re.fullmatch(r"([0-9]{1,2}):([0-9]{1,2})", value) if isinstance(value, str) else None
    return found is not None and 1 <= int(found[1]) < int(found[2]) <= 16
