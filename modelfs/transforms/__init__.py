"""Lossy changes of a model's weights, made once before a push: pruning, quantisation, clustering, and recipes of them.

Rule: pure functions over numpy arrays and blocks of them. No file is opened here but a recipe's.
"""

from modelfs.transforms.blocks import Block, ReadTensor, Tensor, of_array, of_bytes
from modelfs.transforms.chain import Chain
from modelfs.transforms.cluster import Cluster
from modelfs.transforms.prune import MagnitudeHistogram, Prune, PrunePattern
from modelfs.transforms.quantise import Affine
from modelfs.transforms.recipe import Choice, Recipe, Rule, Survey, nothing_matched
from modelfs.transforms.recipe_file import NAMES, document_of, parse_recipe, recipe_named
from modelfs.transforms.report import Comparison, Report, TensorReport, left_alone
from modelfs.transforms.rounding import Rounding
from modelfs.transforms.transform import Fitted, LeftAlone, Part, Transform, Transformed, transform_array

__all__ = ["NAMES", "Affine", "Block", "Chain", "Choice", "Cluster", "Comparison", "Fitted", "LeftAlone",
           "MagnitudeHistogram", "Part", "Prune", "PrunePattern", "ReadTensor", "Recipe", "Report", "Rounding", "Rule",
           "Survey", "Tensor", "TensorReport", "Transform", "Transformed", "document_of", "left_alone",
           "nothing_matched", "of_array", "of_bytes", "parse_recipe", "recipe_named", "transform_array"]
