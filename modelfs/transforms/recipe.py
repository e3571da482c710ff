"""Which transform each tensor of a model gets: rules in order, of which the first that matches decides.

Rule: what no rule matches is left as it is. A recipe is data: it goes into a version's metadata as JSON (document), and
what is read from there is the same recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from modelfs.errors import BadInput
from modelfs.transforms.blocks import Tensor
from modelfs.transforms.chain import Chain
from modelfs.transforms.cluster import Cluster
from modelfs.transforms.dtypes import BITS
from modelfs.transforms.prune import MagnitudeHistogram, Prune, PrunePattern, can_prune
from modelfs.transforms.quantise import Affine
from modelfs.transforms.rounding import Rounding

Method = Prune | PrunePattern | Affine | Cluster | Rounding | Chain
USUAL_DTYPES = ("F64", "F32", "F16", "BF16")
LEAST_ELEMENTS, LEAST_DIMENSIONS = 4096, 2


@dataclass(frozen=True, slots=True)
class Rule:
    """method: None leaves alone what matches. tensors, files: shell patterns, one of which must match the name."""

    method: Method | None
    tensors: tuple[str, ...] = ("*",)
    files: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = USUAL_DTYPES
    least_elements: int = LEAST_ELEMENTS
    least_dimensions: int = LEAST_DIMENSIONS

    def refusal(self, file: str, tensor: str, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Why this rule is not for the tensor; None where it is."""
        if not any(fnmatchcase(file, pattern) for pattern in self.files):
            return "its file's name"
        if not any(fnmatchcase(tensor, pattern) for pattern in self.tensors):
            return "its name"
        if dtype not in self.dtypes:
            return f"dtype {dtype}"
        if len(shape) < self.least_dimensions:
            return f"fewer than {self.least_dimensions} dimensions"
        if math.prod(shape) < self.least_elements:
            return f"fewer than {self.least_elements} elements"
        return None

    def covers(self, other: Rule) -> bool:
        """Whether this matches whatever other matches."""
        return (_cover(self.tensors, other.tensors) and _cover(self.files, other.files)
                and set(other.dtypes) <= set(self.dtypes) and self.least_elements <= other.least_elements
                and self.least_dimensions <= other.least_dimensions)


@dataclass(frozen=True, slots=True)
class Choice:
    """rule: counted from 0, None where none matches. method: None leaves the tensor alone, and reason says why."""

    rule: int | None
    method: Method | None
    reason: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """native_dtype: the small dtypes themselves are stored, codes and scales as tensors, not the old dtype."""

    name: str
    rules: tuple[Rule, ...]
    native_dtype: bool = False

    def choose(self, file: str, tensor: str, dtype: str, shape: tuple[int, ...]) -> Choice:
        """file: its path in the model. tensor: "" where a format has one without a name (npy)."""
        refusals = []
        for number, rule in enumerate(self.rules):
            refusal = rule.refusal(file, tensor, dtype, shape)
            if refusal is None:
                return Choice(number, rule.method, "" if rule.method else f"rule {number + 1} skips it")
            refusals.append(refusal)
        return Choice(None, None, refusals[0] if len(set(refusals)) == 1 else "no rule matches")

    @property
    def needs_survey(self) -> bool:
        """Whether a threshold is to be found over several tensors before the first can be transformed."""
        return any(_waits(rule.method) for rule in self.rules)

    def resolved(self, survey: Survey) -> Recipe:
        """With the thresholds that the survey found; documents say them, too."""
        return replace(self, rules=tuple(
            replace(rule, method=_resolved(rule.method, survey.histograms[number])) if number in survey.histograms
            else rule for number, rule in enumerate(self.rules)))

    def for_native_dtype(self) -> Recipe:
        """With native_dtype. Raises BadInput where a rule only prunes: zeros have no smaller dtype."""
        for number, rule in enumerate(self.rules, 1):
            if isinstance(rule.method, Prune | PrunePattern):
                raise BadInput(f"recipe {self.name!r} with native dtypes", where=f"rule {number}",
                               why=f"{rule.method.name!r} alone leaves the dtype as it is",
                               advice="Add quantise, cluster or round to the rule, or leave out native dtypes.")
        return replace(self, native_dtype=True)


@dataclass(slots=True)
class Survey:
    """Magnitudes by the rules that prune across tensors. May be pickled and merged, so processes can share the work."""

    histograms: dict[int, MagnitudeHistogram] = field(default_factory=dict)

    def add(self, choice: Choice, tensor: Tensor) -> None:
        """What the choice's rule does not need, or cannot treat, is passed over."""
        if choice.rule is not None and _waits(choice.method) and can_prune(tensor):
            self.histograms.setdefault(choice.rule, MagnitudeHistogram()).add(tensor)

    def merge(self, other: Survey) -> None:
        for rule, histogram in other.histograms.items():
            self.histograms.setdefault(rule, MagnitudeHistogram()).merge(histogram)


def nothing_matched(recipe: Recipe, model: str, choices: Iterable[Choice]) -> BadInput:
    """What to raise when not one tensor of a model got a transform. model: as the user named it."""
    counts: dict[str, int] = {}
    for choice in choices:
        counts[choice.reason] = counts.get(choice.reason, 0) + 1
    told = ", ".join(f"{count} for {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1])[:4])
    return BadInput(f"recipe {recipe.name!r} matches no tensor", where=model,
                    why=f"left alone were {told}" if told else "no tensor in a format that modelfs knows",
                    advice="Check the rules' tensors, files, dtypes, least_elements and least_dimensions.")


def nominal_bits(method: Method) -> int | None:
    """Bits of a code; None for pruning alone. A dtype that has no more is not worth the method."""
    if isinstance(method, Chain):
        return nominal_bits(method.second)
    if isinstance(method, Affine | Cluster):
        return method.bits
    return BITS[method.stored] if isinstance(method, Rounding) else None


def _waits(method: Method | None) -> bool:
    first = method.first if isinstance(method, Chain) else method
    return isinstance(first, Prune) and first.across and first.threshold is None


def _resolved(method: Method | None, histogram: MagnitudeHistogram) -> Method | None:
    if isinstance(method, Chain) and isinstance(method.first, Prune):
        return replace(method, first=_with_threshold(method.first, histogram))
    return _with_threshold(method, histogram) if isinstance(method, Prune) else method


def _with_threshold(prune: Prune, histogram: MagnitudeHistogram) -> Prune:
    return replace(prune, threshold=histogram.threshold(prune.sparsity or 0.0))


def _cover(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    """A pattern whose only wildcard is * and which matches another pattern as text matches all that the other does."""
    return all(any(each == one or (not set("?[") & set(one) and fnmatchcase(each, one)) for one in wide)
               for each in narrow)
