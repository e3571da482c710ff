"""Transforms and codecs together: a model's arrays, or its files, made small, and back.

Rule: the loss is the transform's alone; what the codecs store comes back bit for bit.
"""

from modelfs.compression.arrays import CompressedArray, compress_model, decompress_model
from modelfs.compression.native import read_native

__all__ = ["CompressedArray", "compress_model", "decompress_model", "read_native"]
